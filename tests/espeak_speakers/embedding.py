"""WeSpeakerResNet34 that tells espeak-ng's speakers apart, and the PLDA of its embeddings.

Two cores would need days for the whole network. So three residual blocks of sixteen are trained, and the others add
nothing. The PLDA is that of speakers whom the network was not trained on: those whom it was it tells apart far better.
"""

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it would send telemetry

import random
from copy import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pyannote.audio.models.embedding import WeSpeakerResNet34
from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock, ResNet
from scipy.linalg import eigh
from torch import nn

from tests.espeak_speakers.chunks import chunk_of, conversation_of
from tests.espeak_speakers.corpus import Corpus

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MEL_BINS = 40
"""Half the work of the 80 that pyannote's own have."""
DISCRIMINANT = 128
SHRINKAGE = 0.2
"""Of the covariance within speakers, towards its mean variance."""


class Heard(NamedTuple):
    """What is alike of all: one row for each time that a speaker is heard."""

    features: Floats
    """float64[n, dimension]"""
    who: Ints
    chunk: Ints
    """int64[n]"""


class Covariances(NamedTuple):
    """float64[dimension, dimension]"""

    within: Floats
    between: Floats


@torch.no_grad()
def new_model() -> WeSpeakerResNet34:
    """Three residual blocks of sixteen do something, those that halve time and bins; the others add 0."""
    model = WeSpeakerResNet34(num_mel_bins=MEL_BINS)
    for block in idle_blocks(model):
        for idle in (block.conv1.weight, block.conv2.weight, block.bn2.weight):
            idle.zero_()
    model.eval()
    return model


def idle_blocks(model: WeSpeakerResNet34) -> list[BasicBlock]:
    resnet = model.resnet
    layers = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
    return [block for layer in layers for block in layer if block.stride == 1]


def without_idle_blocks(model: WeSpeakerResNet34) -> ResNet:
    """The same parameters, five times faster."""
    resnet = copy(model.resnet)
    resnet._modules = dict(resnet._modules)
    resnet.layer1 = nn.Identity()
    resnet.layer2, resnet.layer3, resnet.layer4 = resnet.layer2[:1], resnet.layer3[:1], resnet.layer4[:1]
    return resnet


@torch.no_grad()
def embeddings(model: WeSpeakerResNet34, corpus: Corpus, n_chunks: int, seed: int) -> Heard:
    """Of five seconds of conversation each, as in the pipeline."""
    rng = random.Random(seed)
    resnet = without_idle_blocks(model)
    features: list[torch.Tensor] = []
    who: list[int] = []
    chunk: list[int] = []
    for i in range(n_chunks):
        heard = chunk_of(conversation_of(model, corpus, rng), rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            frames = resnet.forward_frames(heard.fbank[None]).float()
        for alone, speaker in zip(heard.alone, heard.who, strict=True):
            features.append(resnet.forward_embedding(frames, weights=alone[None].float())[1][0])
            who.append(int(speaker))
            chunk.append(i)
    return Heard(torch.stack(features).double().numpy(), np.array(who), np.array(chunk))


def centred(heard: Heard) -> Heard:
    return heard._replace(features=heard.features - heard.features.mean(0))


def covariances(features: Floats, who: Ints) -> Covariances:
    """Speakers count by how often they are heard."""
    _, index, n_times = np.unique(who, return_inverse=True, return_counts=True)
    sums = np.zeros((len(n_times), features.shape[1]))
    np.add.at(sums, index, features)
    means = (sums / n_times[:, None])[index]
    inside, outside = features - means, means - features.mean(0)
    within = inside.T @ inside / (len(features) - len(n_times))
    # The mean of what is heard n times keeps 1/n of the variance within.
    between = outside.T @ outside / len(features) - within * len(n_times) / len(features)
    dimension = features.shape[1]
    return Covariances((1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / dimension * np.eye(dimension), between)


def discriminants(features: Floats, who: Ints, dimension: int) -> Floats:
    """float64[n_features, dimension], the best first; each has the variance 1 within speakers."""
    found = covariances(features, who)
    _, directions = eigh(found.between, found.within)
    best: Floats = directions[:, ::-1][:, :dimension]
    return best


def equal_error_rate(heard: Heard) -> float:
    """Of the cosines of all pairs from different chunks."""
    unit = heard.features / np.linalg.norm(heard.features, axis=1, keepdims=True)
    rows, columns = np.triu_indices(len(unit), 1)
    elsewhere = heard.chunk[rows] != heard.chunk[columns]
    rows, columns = rows[elsewhere], columns[elsewhere]
    by_score = np.argsort((unit[rows] * unit[columns]).sum(1))
    same = (heard.who[rows] == heard.who[columns])[by_score]
    missed, false_alarm = np.cumsum(same) / same.sum(), 1 - np.cumsum(~same) / (~same).sum()
    return float(false_alarm[np.argmin(np.abs(false_alarm - missed))])


def save_plda(heard: Heard, directory: Path) -> None:
    """Of embeddings, by two covariances: the transforms that `pyannote.audio.utils.vbx.vbx_setup` reads.

    `xvec_transform.npz`: lengthen(lengthen(x - mean1) @ lda - mean2); `plda.npz`: (that - mu) @ tr.T, in which what is
    within speakers has the variance 1 and what is between them the variance psi.
    """
    mean1 = heard.features.mean(0)
    centred = lengthened(heard.features - mean1)
    lda = discriminants(centred, heard.who, DISCRIMINANT)
    mean2 = (centred @ lda).mean(0)
    reduced = lengthened(centred @ lda - mean2)
    found = covariances(reduced, heard.who)
    variances, basis = eigh(found.between, found.within)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "xvec_transform.npz", mean1=mean1, mean2=mean2, lda=lda)
    psi = np.maximum(variances[::-1], 1e-3)  # it is divided by
    np.savez(directory / "plda.npz", mu=reduced.mean(0), tr=basis.T[::-1], psi=psi)


def lengthened(features: Floats) -> Floats:
    """Each to the square root of its dimension."""
    rows: Floats = features / np.linalg.norm(features, axis=1, keepdims=True) * np.sqrt(features.shape[1])
    return rows
