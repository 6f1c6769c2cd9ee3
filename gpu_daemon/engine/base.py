"""The seam between the daemon and whatever transcribes (no torch here)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Segment, Transcript

Audio = npt.NDArray[np.float32]
"""float32[n_samples], mono, 16 kHz, -1..1"""
Pcm = npt.NDArray[np.int16]
Samples = Audio | Pcm
"""The same, or as it was decoded: a file of hours can stay on the disk until a piece of it is heard."""


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


class Transcription(Protocol):
    """A file on its way through the engine."""

    @property
    def fraction(self) -> float:
        """0..1 of its audio, never less than before."""

    @property
    def ended(self) -> bool:
        """There is a result, or an error in place of it."""

    def heard(self) -> tuple[Segment, ...]:
        """So far, in order of time; what was once in it does not change, and the result begins with it."""

    def result(self) -> Transcript:
        """Once ended; times are relative to its audio. Raises JobError: of this file alone, its neighbours go on."""


class Engine(Protocol):
    """Many files at once, in the child process, called from one thread."""

    device_name: str
    torch_version: str

    def load(self, spec: ModelSpec, progress: Progress) -> None:
        """Make the model ready, evicting others that nothing in flight uses if memory asks for it; nothing if it is.

        Raises JobError, and what `progress` raises; NoRoom when those in use leave too little, so that it may be tried
        again after one of them has ended; DeviceLost when this process can go on no more.
        """

    def begin(self, spec: ModelSpec, audio: Samples, options: JobOptions) -> Transcription:
        """It is in flight until it has ended or is dropped, and uses its model as long.

        Raises JobError when the model is not loaded, or cannot do that.
        """

    def step(self) -> None:
        """Some of the work of everything in flight: at most about a second. Nothing if nothing is.

        Raises DeviceLost, and whatever else is the fault of no file in particular: all in flight are lost then.
        """

    def drop(self, transcription: Transcription) -> None:
        """It gets no more work; nothing if it has ended."""

    def unload(self, name: str) -> None:
        """Of a model that nothing in flight uses; nothing if it is not loaded."""

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The least recently used first."""
