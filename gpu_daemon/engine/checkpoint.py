"""From a checkpoint on disk to a model on the device."""

import base64
import gzip
import pickle
import zipfile
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
import whisper
from torch import Tensor
from whisper.model import ModelDimensions
from whisper.tokenizer import LANGUAGES, Tokenizer, get_tokenizer

from gpu_daemon.engine.base import ModelSpec, Progress
from gpu_daemon.engine.model import SpeechModel, sources
from gpu_daemon.errors import JobError

MULTILINGUAL_VOCABULARY = 51865
FIRST_LANGUAGES = 99


@dataclass(frozen=True, kw_only=True)
class WhisperModel:
    """A network with what is known about it beside its parameters."""

    name: str
    net: SpeechModel
    alignment_heads: tuple[tuple[int, int], ...]
    """(layer, head) of those whose attention follows the audio."""

    @property
    def dims(self) -> ModelDimensions:
        return self.net.dims

    @property
    def is_multilingual(self) -> bool:
        return bool(self.dims.n_vocab >= MULTILINGUAL_VOCABULARY)

    @property
    def can_translate(self) -> bool:
        # Turbo (32 + 4 layers) is multilingual, but was trained on transcription only.
        is_turbo = (self.dims.n_audio_layer, self.dims.n_text_layer) == (32, 4)
        return self.is_multilingual and not is_turbo

    @property
    def n_languages(self) -> int:
        """In the vocabulary; that of the English models has the tokens too."""
        return int(self.dims.n_vocab - (MULTILINGUAL_VOCABULARY - FIRST_LANGUAGES) + (not self.is_multilingual))

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-1 codes."""
        return tuple(LANGUAGES)[: self.n_languages] if self.is_multilingual else ("en",)

    def tokenizer(self, language: str = "en", task: str = "transcribe") -> Tokenizer:
        return get_tokenizer(self.is_multilingual, num_languages=self.n_languages, language=language, task=task)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    spec: ModelSpec
    dimensions: ModelDimensions
    parameters: dict[str, Tensor]
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

    def size_bytes(self, dtype: torch.dtype) -> int:
        """In the memory of the device."""
        return dtype.itemsize * sum(tensor.numel() for tensor in self.parameters.values())

    def build(self, device: torch.device, dtype: torch.dtype, progress: Progress) -> WhisperModel:
        """With parameters converted to `dtype` once. Raises JobError, and whatever `progress` raises."""
        try:
            with torch.device("meta"):
                net = SpeechModel(self.dimensions)
            net.compute_in(dtype)
            net.requires_grad_(False)
            targets = net.state_dict()
            made_of = {name: self._parts(name) for name in targets}
        except (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise _bad(self.spec) from error
        if {name: tensor.shape for name, tensor in targets.items()} != {
            name: (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) for name, parts in made_of.items()
        }:
            raise _bad(self.spec)
        net = net.to_empty(device=device)
        for number, (name, target) in enumerate(net.state_dict().items()):
            progress(number / len(made_of))
            at = 0
            for part in made_of[name]:
                target[at : at + len(part)].copy_(part)
                at += len(part)
        progress(1.0)
        net.norm_in(dtype)
        return WhisperModel(name=self.spec.name, net=net, alignment_heads=self._alignment_heads())

    def _parts(self, name: str) -> list[Tensor]:
        """Raises KeyError."""
        parts = []
        for source in sources(name):
            if source.endswith(".key.bias"):  # the one part that whisper does without
                parts.append(torch.zeros(len(self.parameters[source.replace(".bias", ".weight")])))
            else:
                parts.append(self.parameters[source])
        return parts

    def _alignment_heads(self) -> tuple[tuple[int, int], ...]:
        # Which heads follow the audio is not in the checkpoint; half of all heads, the default, time words badly.
        n_layer, n_head = self.dimensions.n_text_layer, self.dimensions.n_text_head
        if self.spec.official is None:
            return tuple((layer, head) for layer in range(n_layer // 2, n_layer) for head in range(n_head))
        mask: Any = np.frombuffer(gzip.decompress(base64.b85decode(whisper._ALIGNMENT_HEADS[self.spec.official])), bool)
        layers, heads = mask.reshape(n_layer, n_head).nonzero()
        return tuple(zip(layers.tolist(), heads.tolist(), strict=True))


def _bad(spec: ModelSpec) -> JobError:
    return JobError(f"the file of the model {spec.name} is not a Whisper checkpoint", code="bad_checkpoint")
