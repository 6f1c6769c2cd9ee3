"""From a decoded file to a transcript on the file's own timeline (no torch here)."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpu_daemon import clock
from gpu_daemon.engine.base import Audio, Engine, ModelSpec, Progress, Transcription
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from gpu_daemon.jobs.state import Stage
from gpu_daemon.transcript.model import Segment, Transcript, Word
from gpu_daemon.transcript.quality import assess

FRAMES_PER_S = 100
FULL_SCALE = 32768.0


class Request(Protocol):
    """What the runner is asked to do with a file."""

    @property
    def model(self) -> ModelSpec: ...
    @property
    def audio_path(self) -> Path: ...
    @property
    def skip_samples(self) -> int: ...
    @property
    def options(self) -> JobOptions: ...


class Hearing:
    """A file on its way: `load` its model, `begin`, and once the engine's steps have `ended` it there is a `result`."""

    def __init__(self, engine: Engine, request: Request) -> None:
        """Raises JobError when its audio is gone."""
        self._engine = engine
        self._request = request
        self._pcm = _open(request.audio_path)
        self._duration_s = len(self._pcm) / SAMPLE_RATE_HZ
        self._transcription: Transcription | None = None
        self._timings: dict[str, float] = {}
        self._began_s = 0.0
        self.is_empty = len(self._pcm) <= request.skip_samples
        """Nothing is left to hear: it needs no model, and has ended."""

    def load(self, progress: Progress) -> None:
        """Raises as the engine does; may be tried again after NoRoom."""
        began_s = clock.monotonic()
        self._engine.load(self._request.model, progress)
        self._timings[Stage.LOADING.value] = round(clock.monotonic() - began_s, 3)

    def begin(self) -> None:
        """Raises JobError."""
        self._began_s = clock.monotonic()
        audio: Audio = self._pcm[self._request.skip_samples :].astype(np.float32) / np.float32(FULL_SCALE)
        self._transcription = self._engine.begin(self._request.model, audio, self._request.options)

    def drop(self) -> None:
        if self._transcription is not None:
            self._engine.drop(self._transcription)

    @property
    def fraction(self) -> float:
        return 0.0 if self._transcription is None else self._transcription.fraction

    @property
    def ended(self) -> bool:
        return self.is_empty or (self._transcription is not None and self._transcription.ended)

    def heard(self, first: int) -> tuple[Segment, ...]:
        """What was heard so far, from the segment of this number on."""
        if self._transcription is None:
            return ()
        return tuple(self._placed(segment) for segment in self._transcription.heard()[first:])

    def result(self) -> tuple[Transcript, dict[str, float]]:
        """The transcript and the seconds each stage took. Raises JobError: of this file alone."""
        if self._transcription is None:
            return _nothing_said(self._request, self._duration_s), {}
        merging_s = clock.monotonic()
        self._timings[Stage.TRANSCRIBING.value] = round(merging_s - self._began_s, 3)
        heard = self._transcription.result()
        segments = tuple(self._placed(segment) for segment in heard.segments)
        transcript = heard.model_copy(
            update={"segments": segments, "duration": round(self._duration_s, 3), "quality": assess(segments)}
        )
        self._timings[Stage.MERGING.value] = round(clock.monotonic() - merging_s, 3)
        return transcript, self._timings

    def _placed(self, segment: Segment) -> Segment:
        return shifted(segment, self._request.skip_samples, self._duration_s)


def shifted(segment: Segment, skip_samples: int, duration_s: float) -> Segment:
    """From the timeline of what the engine heard to that of the file, whose first samples it was not given."""
    offset_s = skip_samples / SAMPLE_RATE_HZ

    def moved(time_s: float) -> float:
        # Whisper's last window is padded to 30 s, and it may place an end in the padding.
        return round(min(max(time_s + offset_s, 0.0), duration_s), 3)

    words = tuple(
        Word.model_copy(word, update={"start": moved(word.start), "end": moved(word.end)}) for word in segment.words
    )
    return segment.model_copy(
        update={
            "start": moved(segment.start),
            "end": moved(segment.end),
            "seek": segment.seek + round(offset_s * FRAMES_PER_S),
            "words": words,
        }
    )


def _open(path: Path) -> npt.NDArray[np.int16]:
    """int16[n_samples], read from the disk as it is used."""
    try:
        n_samples = path.stat().st_size // 2
        if n_samples == 0:  # nothing can be mapped then
            return np.empty(0, np.int16)
        return np.memmap(path, dtype="<i2", mode="r", shape=(n_samples,))
    except OSError as error:
        raise JobError("the decoded audio of the job is gone", code="audio_lost") from error


def _nothing_said(request: Request, duration_s: float) -> Transcript:
    return Transcript(
        text="",
        language=request.options.language or "en",
        language_probability=None,
        duration=round(duration_s, 3),
        model=request.model.name,
        token_count=0,
        segments=(),
    )
