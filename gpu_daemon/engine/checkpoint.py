"""From a checkpoint on disk to a model on the device."""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from gpu_daemon.engine.base import ModelSpec, Progress
from gpu_daemon.errors import JobError

PARAMETER_BYTES = 4
"""openai-whisper keeps parameters as float32, whatever the checkpoint holds."""


class WatchedWhisper(Whisper):  # type: ignore[misc]  # whisper is not typed
    """Whisper that beats as it moves, and remembers how sure it was of the language."""

    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__(dims)
        self.beat: Callable[[], None] = _no_beat
        """Called before each block of the encoder and each step of the decoder; may raise."""
        self.language_probability: float | None = None
        for module in (*self.encoder.blocks, self.decoder):
            module.register_forward_pre_hook(lambda *_: self.beat())

    def detect_language(self, mel: torch.Tensor, tokenizer: Any = None) -> tuple[torch.Tensor, dict[str, float]]:
        """`mel`: float[n_mels, n_frames]"""
        tokens, probabilities = super().detect_language(mel, tokenizer)
        self.language_probability = max(probabilities.values())
        return tokens, probabilities

    def forget_hooks(self) -> None:
        """whisper leaves its hooks on the attention behind when an alignment is interrupted."""
        for block in self.decoder.blocks:
            block.cross_attn._forward_hooks.clear()

    @property
    def can_translate(self) -> bool:
        # Turbo (32 + 4 layers) is multilingual, but was trained on transcription only.
        is_turbo = (self.dims.n_audio_layer, self.dims.n_text_layer) == (32, 4)
        return bool(self.is_multilingual) and not is_turbo

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-1 codes."""
        return tuple(whisper.tokenizer.LANGUAGES)[: self.num_languages] if self.is_multilingual else ("en",)


def _no_beat() -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    spec: ModelSpec
    dimensions: ModelDimensions
    parameters: dict[str, torch.Tensor]
    """Mapped from the file: read as they are copied."""

    @classmethod
    def open(cls, spec: ModelSpec) -> Self:
        """Raises JobError when the file is gone or is not a Whisper checkpoint."""
        try:
            # weights_only: a checkpoint is data, and must not be able to run code.
            content = torch.load(
                spec.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(spec.path) or None
            )
            return cls(
                spec=spec,
                dimensions=ModelDimensions(**content["dims"]),
                parameters={name: tensor.detach() for name, tensor in content["model_state_dict"].items()},
            )
        except FileNotFoundError as error:
            raise JobError(f"the checkpoint of the model {spec.name} is gone", code="model_unavailable") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
            raise _bad(spec) from error

    @property
    def size_bytes(self) -> int:
        """In the memory of the device."""
        return PARAMETER_BYTES * sum(tensor.numel() for tensor in self.parameters.values())

    def build(self, device: torch.device, progress: Progress) -> WatchedWhisper:
        """Raises JobError, and whatever `progress` raises."""
        with torch.device(device):  # a GPU fills parameters with random numbers much faster than a CPU
            model = WatchedWhisper(self.dimensions)
        model.requires_grad_(False)
        targets = model.state_dict()
        if {name: tensor.shape for name, tensor in targets.items()} != {
            name: tensor.shape for name, tensor in self.parameters.items()
        }:
            raise _bad(self.spec)
        done_bytes = 0
        for name, target in targets.items():
            progress(done_bytes / self.size_bytes)
            target.copy_(self.parameters[name])
            done_bytes += PARAMETER_BYTES * target.numel()
        if self.spec.official is not None:
            # Which heads follow the audio is not in the checkpoint; half of all heads, the default, time words badly.
            model.set_alignment_heads(whisper._ALIGNMENT_HEADS[self.spec.official])
            model.to(device)
        progress(1.0)
        return model


def _bad(spec: ModelSpec) -> JobError:
    return JobError(f"the file of the model {spec.name} is not a Whisper checkpoint", code="bad_checkpoint")
