"""A pyannote pipeline, small and quick, whose weights are random but for the last layers: silence is silence, and it
more or less tells the two voices of `tests.diarizers` apart.

It is loaded and run by the code that loads and runs a real one. `write` takes a second or two of processor time.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.engine.speaker_models import imported
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.diarizers import voice

CHUNK_S = 5.0
STEP = 0.2
"""Of a chunk, until the next one begins; half the work of the 0.1 that real ones have."""
N_SPEAKERS = 3
MEL_BINS = 8
"""A tenth of the work of the 80 that real ones have."""
EMBEDDING_DIM = 256
PLDA_DIM = 128
SPEECH_MARGIN = 0.5
"""By how much the class "nobody" is preferred."""
SHARPNESS = 8.0
STARTS_S = ((0.5, None), (None, 1.0), (0.2, 2.5), (2.5, 0.0), (0.4, 1.2), (1.9, None), (None, 0.1), (None, None))
"""When each of the two voices begins, in chunks that the last layers are fitted to."""
ALONE = ((0, 2, 3, 5), (1, 2, 3, 6))
"""The chunks in which each is heard alone."""


def spec_of(directory: Path, name: str = "made") -> PipelineSpec:
    files = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    return PipelineSpec(name=name, directory=directory, files=files)


def write(
    directory: Path, *, clustering: str = "VBxClustering", with_plda: bool = True, exclude_overlap: bool = True
) -> PipelineSpec:
    """`AgglomerativeClustering` without PLDA is what 3.1 is."""
    imported()
    torch.manual_seed(7)
    generator = np.random.default_rng(7)
    segmentation, embedding = _segmentation(), _embedding()
    params: dict[str, Any] = {
        "clustering": clustering,
        "segmentation": "$model/segmentation",
        "segmentation_step": STEP,
        "segmentation_batch_size": 32,
        "embedding": "$model/embedding",
        "embedding_batch_size": 32,
        "embedding_exclude_overlap": exclude_overlap,
    }
    if with_plda:
        params["plda"] = "$model/plda"
        _write_plda(directory / "plda", generator)
    tuned: dict[str, Any] = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}
    if clustering == "AgglomerativeClustering":
        tuned = {"method": "centroid", "min_cluster_size": 3, "threshold": 0.7}
    config = {
        "dependencies": {"pyannote.audio": "4.0.0"},
        "pipeline": {"name": "pyannote.audio.pipelines.SpeakerDiarization", "params": params},
        "params": {"clustering": tuned, "segmentation": {"min_duration_off": 0.0}},
    }
    for name, model in (("segmentation", segmentation), ("embedding", embedding)):
        (directory / name).mkdir(parents=True)
        torch.save(checkpoint(model), directory / name / "pytorch_model.bin")
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return spec_of(directory)


def checkpoint(model: Any) -> dict[str, Any]:
    """As `Model.on_save_checkpoint` and Lightning write it."""
    saved: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.0",
        "epoch": 1,
        "global_step": 1,
    }
    model.on_save_checkpoint(saved)
    return saved


def _segmentation() -> Any:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    model = PyanNet(
        lstm={"hidden_size": 48, "num_layers": 2, "bidirectional": True, "dropout": 0.5},
        linear={"hidden_size": 48, "num_layers": 1},
    )
    model.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=CHUNK_S,
        classes=[f"speaker#{number}" for number in range(N_SPEAKERS)],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    model.build()
    model.eval()
    heard: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    mixtures, speaking = _mixtures()
    with torch.inference_mode():
        model(mixtures)
    features = heard[0]  # float32[n_chunks, n_frames, n_features]
    model.classifier._forward_pre_hooks.clear()
    nearest = (torch.arange(features.shape[1]) + 0.5) * speaking.shape[-1] / features.shape[1]
    active = speaking[:, :, nearest.long()]  # bool[n_chunks, 2, n_frames]
    one, two = active[:, 0], active[:, 1]
    classes = torch.where(one & two, N_SPEAKERS + 1, torch.where(one, 1, torch.where(two, 2, 0)))
    targets = torch.nn.functional.one_hot(classes, model.dimension).float()
    x = torch.cat([features, torch.ones(*features.shape[:2], 1)], dim=2).flatten(0, 1).double()
    solved = torch.linalg.lstsq(x.T @ x + 1e-3 * torch.eye(x.shape[1]), x.T @ targets.flatten(0, 1).double()).solution
    with torch.no_grad():
        model.classifier.weight.copy_(SHARPNESS * solved[:-1].T)
        model.classifier.bias.copy_(SHARPNESS * solved[-1])
        model.classifier.bias[0] += SPEECH_MARGIN
    return model


def _embedding() -> Any:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34

    model = WeSpeakerResNet34(num_mel_bins=MEL_BINS)
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=CHUNK_S, classes=["a", "b"]
    )
    model.eval()
    mixtures, speaking = _mixtures()
    masks = speaking[:, :, :: SAMPLE_RATE_HZ // 100].float()
    with torch.inference_mode():
        pooled = model.resnet.pool(model.forward_frames(mixtures), weights=masks)  # float32[n_chunks, 2, n_pooled]
    one, two = (pooled[list(chunks), speaker].mean(dim=0) for speaker, chunks in enumerate(ALONE))
    layer = model.resnet.seg_1
    with torch.no_grad():
        # All that random networks see looks alike to them: what is the same for everything is taken away, and what
        # differs between the two counts for more.
        apart = (one - two) / (one - two).square().sum()
        layer.weight.add_(torch.randn(len(layer.weight), 1) * apart)
        layer.bias.copy_(-(layer.weight @ (one + two) / 2))
    return model


def _mixtures() -> tuple[torch.Tensor, torch.Tensor]:
    """float32[n_chunks, 1, n_samples] of the two voices of `tests.diarizers`, one, the other, both or none of them, and
    bool[n_chunks, 2, n_samples]: who speaks when."""
    n_samples = round(CHUNK_S * SAMPLE_RATE_HZ)
    sources = torch.zeros(len(STARTS_S), 2, n_samples)
    for chunk, starts_s in enumerate(STARTS_S):
        for speaker, (said, start_s) in enumerate(zip((voice(), voice("fr", 90)), starts_s, strict=True)):
            first = round((start_s if start_s is not None else CHUNK_S) * SAMPLE_RATE_HZ)
            heard = torch.from_numpy(said.astype(np.float32) / 32768)[: n_samples - first]
            sources[chunk, speaker, first : first + len(heard)] = heard
    loud = torch.nn.functional.max_pool1d(sources.abs(), 2401, stride=1, padding=1200)
    return sources.sum(dim=1, keepdim=True), loud > 0.02


def _write_plda(directory: Path, generator: np.random.Generator) -> None:
    directory.mkdir(parents=True)
    rotation, _ = np.linalg.qr(generator.standard_normal((EMBEDDING_DIM, PLDA_DIM)))
    np.savez(directory / "xvec_transform.npz", mean1=np.zeros(EMBEDDING_DIM), mean2=np.zeros(PLDA_DIM), lda=rotation)
    np.savez(directory / "plda.npz", mu=np.zeros(PLDA_DIM), tr=np.eye(PLDA_DIM), psi=np.linspace(5.0, 0.1, PLDA_DIM))
