"""The seam between the daemon and whatever transcribes (no torch here)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Transcript

Audio = npt.NDArray[np.float32]
"""float32[n_samples], mono, 16 kHz, -1..1"""


class ModelSpec(BaseModel):
    """A checkpoint on disk whose hash was checked when it came."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: Path
    sha256: str
    official: str | None
    """openai's name, from which the alignment heads follow; None for a local checkpoint."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    name: str
    size_bytes: int


class Progress(Protocol):
    """Called as often as the engine can, with the same fraction too: it is the sign of life and the way to stop."""

    def __call__(self, fraction: float, /) -> None:
        """0..1 of the stage, never less than before; raises JobCancelled when the job is to stop."""


class Engine(Protocol):
    """Runs in the child process, called from one thread."""

    device_name: str
    torch_version: str

    def load(self, spec: ModelSpec, progress: Progress) -> None:
        """Make the model ready, evicting others if memory asks for it; nothing if it is.

        Raises JobError, JobCancelled; DeviceLost when this process can go on no more.
        """

    def transcribe(self, spec: ModelSpec, audio: Audio, options: JobOptions, progress: Progress) -> Transcript:
        """Of a model that is loaded; times are relative to `audio`. Raises as `load` does."""

    def unload(self, name: str) -> None: ...

    def loaded(self) -> tuple[LoadedModel, ...]: ...
