"""Checkpoints of openai's dimensions, made where they are used: no disk, and no minutes on a CPU."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from whisper.model import ModelDimensions, Whisper

from bench.fixed_length import give_length
from gpu_daemon.engine.base import ModelSpec, Pcm
from gpu_daemon.engine.checkpoint import Checkpoint
from gpu_daemon.engine.transcribe import WhisperEngine
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from tests.parity.random_weights import DIMENSIONS, POSITION_STD, SEED, SHARPNESS, TOKEN_STD

TURBO = DIMENSIONS["random-turbo"]
BY_NAME = {
    # For dry runs on a CPU.
    "nano": ModelDimensions(
        **{
            name: 64 if name.endswith("state") else 1 if name.endswith(("layer", "head")) else n
            for name, n in vars(DIMENSIONS["random-tiny"]).items()
        }
    ),
    "tiny": DIMENSIONS["random-tiny"],
    "base": DIMENSIONS["random-base"],
    "turbo": TURBO,
    "large-v3": ModelDimensions(**{**vars(TURBO), "n_text_layer": TURBO.n_audio_layer}),
}
Weights = dict[str, Tensor]


@torch.no_grad()
def weights_of(dimensions: ModelDimensions, n_tokens: int, device: torch.device) -> Weights:
    """As tests/parity/random_weights.py makes them, but for the numbers drawn; float16, and of a fixed length."""
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.device(device):
        made: Weights = Whisper(dimensions).half().state_dict()
    for name, values in made.items():
        if name == "encoder.positional_embedding":
            continue
        mean, std = 0.0, values[0].numel() ** -0.5 * (SHARPNESS if ".query." in name else 1.0)
        if name == "decoder.positional_embedding":
            std = POSITION_STD
        elif name == "decoder.token_embedding.weight":
            std = TOKEN_STD
        elif values.ndim == 1:
            mean, std = float("ln" in name and name.endswith("weight")), 0.05
        values.copy_(torch.empty_like(values, dtype=torch.float32).normal_(mean, std, generator=generator))
    give_length(made, dimensions, n_tokens)
    return made


def loaded(engine: WhisperEngine, name: str, dimensions: ModelDimensions, weights: Weights) -> ModelSpec:
    """Into the engine, past the disk."""
    spec = ModelSpec.model_construct(name=name, path=Path(), sha256=name, official=None)
    made = Checkpoint(spec=spec, dimensions=dimensions, parameters=weights)
    with patch.object(Checkpoint, "open", return_value=made):
        engine.load(spec, lambda _: None)
    return spec


def reference(dimensions: ModelDimensions, weights: Weights, device: torch.device) -> Whisper:
    """openai-whisper's own, which keeps its parameters in float32 and computes in float16."""
    with torch.device(device):
        model = Whisper(dimensions)
    model.load_state_dict(weights)
    return model.eval()


def noise(n_files: int, duration_s: int) -> list[Pcm]:
    """To be listened to: what is said does not depend on it. The files are views of one array."""
    n_samples = duration_s * SAMPLE_RATE_HZ
    samples = np.random.default_rng(1).integers(-9000, 9000, n_samples + n_files, dtype=np.int16)
    return [samples[first : first + n_samples] for first in range(n_files)]


def listen(engine: WhisperEngine, spec: ModelSpec, files: list[Pcm]) -> int:
    """All at once; the tokens that were said."""
    options = JobOptions(model=spec.name, language="en", temperature=(0.0,), condition_on_previous_text=False)
    begun = [engine.begin(spec, file, options) for file in files]
    while not all(one.ended for one in begun):
        engine.step()
    return sum(one.result().token_count for one in begun)
