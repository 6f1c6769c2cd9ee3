"""Checkpoints of openai's shapes that nobody trained: what is computed has the real sizes, what is said means nothing.

Kept in .cache/parity by the hash of this recipe.
"""

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path

import torch
from whisper.model import ModelDimensions, Whisper

from gpu_daemon.engine.base import ModelSpec
from tests.parity.corpus import CACHE

SEED = 4
TOKEN_STD = 0.15
"""So that the best token is well ahead of the next: scores are about this times the root of the width."""
POSITION_STD = 1.0
"""Or each window would say one token over and over."""
SHARPNESS = 3.0
"""Of attention: a mean over all that is heard would be much the same everywhere."""

_AUDIO = {"n_audio_ctx": 1500, "n_text_ctx": 448}
DIMENSIONS = {
    "random-tiny": ModelDimensions(
        **_AUDIO, n_mels=80, n_vocab=51865,
        n_audio_state=384, n_audio_head=6, n_audio_layer=4, n_text_state=384, n_text_head=6, n_text_layer=4,
    ),
    "random-base": ModelDimensions(
        **_AUDIO, n_mels=80, n_vocab=51865,
        n_audio_state=512, n_audio_head=8, n_audio_layer=6, n_text_state=512, n_text_head=8, n_text_layer=6,
    ),
    "random-turbo": ModelDimensions(
        **_AUDIO, n_mels=128, n_vocab=51866,
        n_audio_state=1280, n_audio_head=20, n_audio_layer=32, n_text_state=1280, n_text_head=20, n_text_layer=4,
    ),
}  # fmt: skip


@cache
def random_weights(name: str) -> ModelSpec:
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    path = CACHE / f"{name}-{recipe[:16]}.pt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as part:
            torch.save({"dims": vars(DIMENSIONS[name]), "model_state_dict": parameters(DIMENSIONS[name])}, part)
        os.replace(part.name, path)
    return ModelSpec(name=name, path=path, sha256=recipe, official=None)


def parameters(dimensions: ModelDimensions) -> dict[str, torch.Tensor]:
    """As openai's are: in half precision."""
    generator = torch.Generator().manual_seed(SEED)
    made: dict[str, torch.Tensor] = Whisper(dimensions).state_dict()
    for name, values in made.items():
        if name == "encoder.positional_embedding":  # sinusoids
            continue
        if name == "decoder.positional_embedding":
            values.normal_(0, POSITION_STD, generator=generator)
        elif name == "decoder.token_embedding.weight":
            values.normal_(0, TOKEN_STD, generator=generator)
        elif values.ndim == 1:  # norms and biases
            is_gain = "ln" in name and name.endswith("weight")
            values.normal_(1.0 if is_gain else 0.0, 0.05, generator=generator)
        else:
            sharpness = SHARPNESS if ".query." in name else 1.0
            values.normal_(0, sharpness * values[0].numel() ** -0.5, generator=generator)
    return {name: values.half() for name, values in made.items()}
