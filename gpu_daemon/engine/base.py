"""The seam between the daemon and whatever transcribes (no torch here)."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Segment, SpeakerTurn, Transcript

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


class PipelineSpec(BaseModel):
    """A pyannote pipeline on disk: a directory with `config.yaml` and what that names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    directory: Path
    files: dict[str, str]
    """sha256 by path below the directory, of every file; compared before anything is loaded, as a checkpoint of
    pyannote is a pickle."""

    @property
    def digest(self) -> str:
        """Of all it consists of."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()


class KnownVoice(BaseModel):
    """A speaker whose name is known, and some seconds of that speaker alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    audio_path: Path
    """s16le, mono, 16 kHz"""


class SpeakerRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: PipelineSpec
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None
    known_voices: tuple[KnownVoice, ...] = ()


class NoPipeline(BaseModel):
    """Why there is none to ask; a transcript is made all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """Who speaks when, in seconds from the start of the audio, ordered by time.

    Speakers are `SPEAKER_00`, `SPEAKER_01` … by order of appearance, and known ones by their name.
    """

    turns: tuple[SpeakerTurn, ...]
    """Several at the same time where they overlap."""
    exclusive: tuple[SpeakerTurn, ...]
    """One at most at any time: what words are matched with."""
    device: str
    """`cpu`, `cuda` or `rocm`: where it was found out."""
    fallback: str | None = None
    """Why on the CPU, after a GPU had failed."""


class Diarization(Protocol):
    """A file on its way to its speaker turns, in a thread of its own."""

    @property
    def fraction(self) -> float:
        """0..1, never less than before."""

    @property
    def beats(self) -> int:
        """Grows as long as it moves, within a long step too: the sign of life."""

    @property
    def ended(self) -> bool: ...

    def result(self) -> Spoken:
        """Once ended. Raises JobError: of this file alone. DeviceLost when this process can go on no more."""


class Diarizer(Protocol):
    """In the child process; its methods may be called from any one thread, and return at once."""

    def begin(self, request: SpeakerRequest, audio: Pcm, done: Callable[[], None]) -> Diarization:
        """One file after the other; `done` is called, in the diarizer's thread, when it has ended."""

    def drop(self, diarization: Diarization) -> None:
        """It gets no more work; nothing if it has ended. `done` is not called any more."""

    def unload(self) -> None:
        """The pipeline leaves memory, once nothing uses it."""

    def loaded(self) -> tuple[LoadedModel, ...]: ...
