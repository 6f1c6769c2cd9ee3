"""From a decoded file to a transcript on the file's own timeline (no torch here)."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpu_daemon import clock
from gpu_daemon.engine.base import Audio, Engine, ModelSpec
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from gpu_daemon.jobs.state import Stage
from gpu_daemon.transcript.model import Segment, Transcript, Word
from gpu_daemon.transcript.quality import assess

FRAMES_PER_S = 100
FULL_SCALE = 32768.0

Report = Callable[[Stage, float], None]
"""Where the job is, 0..1 of the stage; raises JobCancelled when it is to stop."""


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


def transcribe_file(engine: Engine, request: Request, report: Report) -> tuple[Transcript, dict[str, float]]:
    """The transcript and the seconds each stage took. Raises JobError, JobCancelled, DeviceLost."""
    pcm = _open(request.audio_path)
    duration_s = len(pcm) / SAMPLE_RATE_HZ
    if len(pcm) <= request.skip_samples:
        return _nothing_said(request, duration_s), {}
    began_s = clock.monotonic()
    report(Stage.LOADING, 0.0)
    engine.load(request.model, lambda fraction: report(Stage.LOADING, fraction))
    loaded_s = clock.monotonic()
    report(Stage.TRANSCRIBING, 0.0)
    audio: Audio = pcm[request.skip_samples :].astype(np.float32) / np.float32(FULL_SCALE)
    heard = engine.transcribe(
        request.model, audio, request.options, lambda fraction: report(Stage.TRANSCRIBING, fraction)
    )
    transcribed_s = clock.monotonic()
    report(Stage.MERGING, 0.0)
    segments = tuple(shifted(segment, request.skip_samples, duration_s) for segment in heard.segments)
    transcript = heard.model_copy(
        update={"segments": segments, "duration": round(duration_s, 3), "quality": assess(segments)}
    )
    return transcript, {
        Stage.LOADING.value: round(loaded_s - began_s, 3),
        Stage.TRANSCRIBING.value: round(transcribed_s - loaded_s, 3),
        Stage.MERGING.value: round(clock.monotonic() - transcribed_s, 3),
    }


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
