"""WeSpeakerResNet34 that tells espeak-ng's speakers apart, and the PLDA of its embeddings.

Two cores would need days for the whole network. So its trunk is `filter_bank`, which nothing is learnt in, and its last
layer is computed: the linear discriminants of the trunk's statistics over many speakers.
"""

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it would send telemetry

import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pyannote.audio.models.embedding import WeSpeakerResNet34
from scipy.linalg import eigh

from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_speakers.conversations import Conversation
from tests.espeak_speakers.corpus import Corpus
from tests.espeak_speakers.filter_bank import start_from_filters

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHUNK_S = 10.0
MEL_BINS = 40
"""Half the work of the 80 that pyannote's own have."""
SHORTEST_FRAMES = 80
"""Who is alone for less is not taken."""
PRINCIPAL, DISCRIMINANT = 200, 64
SHRINKAGE = 0.05
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


def new_model() -> WeSpeakerResNet34:
    model = WeSpeakerResNet34(num_mel_bins=MEL_BINS)
    start_from_filters(model)
    model.eval()
    return model


@torch.no_grad()
def statistics(model: WeSpeakerResNet34, corpus: Corpus, n_chunks: int, seed: int) -> Heard:
    """What the model pools, as in the pipeline: ten seconds of conversation, each speaker where they are alone.

    Everybody is heard twice in a chunk, in the first and the second half of what they say.
    """
    rng = random.Random(seed)
    features: list[torch.Tensor] = []
    who: list[int] = []
    chunk: list[int] = []
    for i in range(n_chunks):
        speakers = rng.sample(range(corpus.n_speakers), rng.choice((1, 2, 2, 3)))
        heard = corpus.conversation(rng, speakers, CHUNK_S)
        fbank = model.compute_fbank(torch.tensor(heard.samples)[None, None])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            frames = model.resnet.forward_frames(fbank).float()
        halves = [(each, half) for each in range(len(speakers)) for half in in_halves(alone(heard, each))]
        halves = [(each, half) for each, half in halves if half.sum() > SHORTEST_FRAMES]
        for each, half in halves:
            features.append(model.resnet.pool(frames, weights=half[None])[0])
            who.append(speakers[each])
            chunk.append(i)
    return Heard(torch.stack(features).double().numpy(), np.array(who), np.array(chunk))


def alone(heard: Conversation, speaker: int) -> torch.Tensor:
    """float32[n_frames of 10 ms]: 1 where that one speaks and nobody else."""
    n_frames = len(heard.samples) * 100 // SAMPLE_RATE_HZ
    own, others = torch.zeros(n_frames), torch.zeros(n_frames)
    for turn in heard.turns:
        active = own if turn.speaker == speaker else others
        active[round(turn.start_s * 100) : round(turn.end_s * 100)] = 1
    return own * (1 - others)


def in_halves(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first = mask * (mask.cumsum(0) <= mask.sum() / 2)
    return first, mask - first


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


def fit_last_layer(model: WeSpeakerResNet34, heard: Heard) -> None:
    """The embedding's dimensions beyond DISCRIMINANT stay 0."""
    mean, deviation = heard.features.mean(0), heard.features.std(0)
    deviation += 1e-3 * heard.features.std()
    standard = (heard.features - mean) / deviation
    _, principal = np.linalg.eigh(standard.T @ standard)
    principal = principal[:, ::-1][:, :PRINCIPAL]
    directions = principal @ discriminants(standard @ principal, heard.who, DISCRIMINANT) / deviation[:, None]
    layer = model.resnet.seg_1
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[:DISCRIMINANT] = torch.tensor(directions.T)
        layer.bias[:DISCRIMINANT] = torch.tensor(-mean @ directions)


@torch.no_grad()
def embeddings(model: WeSpeakerResNet34, heard: Heard) -> Heard:
    embedded = model.resnet.seg_1(torch.tensor(heard.features).float())
    return heard._replace(features=embedded.double().numpy())


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
