"""A pyannote pipeline of random weights, small and quick, that behaves: silence is silence, voices differ somewhat.

What it says means nothing, but it is loaded and run by the code that loads and runs a real one, and the same audio
gives the same turns. `write` takes a second of processor time.
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

CHUNK_S = 5.0
MEL_BINS = 8
"""A tenth of the work of the 80 that real ones have."""
EMBEDDING_DIM = 256
PLDA_DIM = 128
SPEECH_MARGIN = 0.5
"""How much more certain the class "nobody" is of silence than any other."""


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
        lstm={"hidden_size": 16, "num_layers": 2, "bidirectional": True, "dropout": 0.5},
        linear={"hidden_size": 16, "num_layers": 1},
    )
    model.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=CHUNK_S,
        classes=["speaker#1", "speaker#2", "speaker#3"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    model.build()
    model.eval()
    heard: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    with torch.inference_mode():
        model(torch.zeros(1, 1, round(CHUNK_S * SAMPLE_RATE_HZ)))
        model(_noise(4))
    silence, noise = heard[0].flatten(0, 1), heard[1]
    mean = silence.mean(dim=0)
    with torch.no_grad():
        weight = torch.randn_like(model.classifier.weight)
        scores = (noise - mean) @ weight.T  # float32[n_chunks, n_frames, n_classes]
        weight *= 4.0 / scores.std(dim=(0, 1))[:, None]
        weight[0] = 0.0
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(-(weight @ mean))
        model.classifier.bias[0] = ((silence - mean) @ weight.T).max() + SPEECH_MARGIN
    model.classifier._forward_pre_hooks.clear()
    return model


def _embedding() -> Any:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34

    model = WeSpeakerResNet34(num_mel_bins=MEL_BINS)
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=CHUNK_S, classes=["a", "b"]
    )
    model.eval()
    with torch.inference_mode():
        pooled = model.resnet.pool(model.forward_frames(_noise(4)))  # float32[n_chunks, 2 × n_features]
    with torch.no_grad():
        # All that random networks see looks alike to them: what is the same for everything is taken away.
        model.resnet.seg_1.bias.copy_(-(model.resnet.seg_1.weight @ pooled.mean(dim=0)))
    return model


def _noise(n_chunks: int) -> torch.Tensor:
    """float32[n_chunks, 1, n_samples]: sounds of different pitch, coming and going."""
    n_samples = round(CHUNK_S * SAMPLE_RATE_HZ)
    t = torch.arange(n_samples) / SAMPLE_RATE_HZ
    pitches = torch.linspace(90.0, 300.0, n_chunks)[:, None]
    voiced = sum(torch.sin(2 * torch.pi * k * pitches * t) / k for k in range(1, 12))
    assert isinstance(voiced, torch.Tensor)
    coming = (torch.sin(2 * torch.pi * 0.7 * t) > 0).float()
    return (0.1 * voiced * coming + 0.01 * torch.randn(n_chunks, n_samples))[:, None]


def _write_plda(directory: Path, generator: np.random.Generator) -> None:
    directory.mkdir(parents=True)
    rotation, _ = np.linalg.qr(generator.standard_normal((EMBEDDING_DIM, PLDA_DIM)))
    np.savez(directory / "xvec_transform.npz", mean1=np.zeros(EMBEDDING_DIM), mean2=np.zeros(PLDA_DIM), lda=rotation)
    np.savez(directory / "plda.npz", mu=np.zeros(PLDA_DIM), tr=np.eye(PLDA_DIM), psi=np.linspace(5.0, 0.1, PLDA_DIM))
