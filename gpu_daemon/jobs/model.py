"""What a job is. Nothing here touches the world."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

from pydantic import BaseModel, ConfigDict

from gpu_daemon.jobs.state import JobState, Stage

JobId = NewType("JobId", str)
"""A version-4 UUID in its usual 36 characters."""

SAMPLE_RATE_HZ = 16_000
"""Every file is decoded to this rate before anything listens to it."""

TEMPERATURE_LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Task(StrEnum):
    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"
    DIARIZE = "diarize"
    """Who speaks when, and not a word of what is said."""


class Mode(StrEnum):
    ACCURATE = "accurate"
    """What whisper.transcribe gives: each window from where the one before ended, and prompted with its text."""
    FAST = "fast"
    """Pieces between pauses, all at once, each on its own."""


class ChannelMode(StrEnum):
    MIX = "mix"
    SPLIT = "split"
    """Each channel is a speaker, as in recordings of calls."""


class KnownSpeaker(BaseModel):
    """Somebody whose voice the client has sent along; the file is beside the job's own, by its place in the list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    """Of the file, as it came."""


class JobOptions(BaseModel):
    """What the client wants done, checked; stored with the job and sent to the runner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    language: str | None = None
    """ISO 639-1 code as Whisper knows it; None: detect."""
    task: Task = Task.TRANSCRIBE
    word_timestamps: bool = False
    logprobs: bool = False
    """That of each token of the text is kept."""
    temperature: tuple[float, ...] = TEMPERATURE_LADDER
    initial_prompt: str | None = None
    hotwords: str | None = None
    beam_size: int | None = None
    """None: greedy."""
    best_of: int | None = None
    """So many samples at a temperature above 0; None: one."""
    condition_on_previous_text: bool = True
    compression_ratio_threshold: float = 2.4
    """A window that is more repetitive is decoded again, hotter."""
    logprob_threshold: float = -1.0
    """One that is less likely, too."""
    no_speech_threshold: float = 0.6
    """One that is likelier silent, and below `logprob_threshold`, is skipped."""
    hallucination_silence_threshold: float | None = None
    """Seconds: with word timestamps, unlikely words beside a longer silence are dropped."""
    trim_silence: bool = True
    mode: Mode = Mode.ACCURATE
    vad_filter: bool = False
    """Decode speech only; fast mode always does."""
    channel_mode: ChannelMode = ChannelMode.MIX
    diarize: bool = False
    """Who speaks when; true for the task of that name, too."""
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None
    known_speakers: tuple[KnownSpeaker, ...] = ()

    @property
    def speech_only(self) -> bool:
        return self.vad_filter or self.mode is Mode.FAST


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A request that a client may send again: the second one finds the job that the first one made."""

    key: str
    request_sha256: str
    """Of all that was asked for, in whatever encoding it came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job about to be stored: file synced under its id unless it is to be fetched, options checked."""

    id: JobId
    options: JobOptions
    requested_language: str
    """As the client said it; the callback repeats it."""
    priority: int
    client: str | None
    file_name: str
    """What the client called the file, cleaned; for display only."""
    source_url: str | None = field(repr=False)
    """Where the file is to be fetched; None: it was uploaded. Its query may be a secret, and goes when the job ends."""
    file_size_bytes: int | None
    """None, with the hash: not fetched yet."""
    file_sha256: str | None
    duration_s: float | None
    """As probed; None when the container does not say, or the file has not been fetched yet."""
    callback_url: str | None
    metadata: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(NewJob):
    seq: int
    """Order of arrival."""
    state: JobState
    stage: Stage | None
    progress: float
    """0–100; never goes back within an attempt."""
    attempt: int
    """Counted when a worker claims the job."""
    worker_index: int | None
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    """First claim."""
    finished_at: datetime | None
    error_code: str | None
    error_message: str | None
    reused: bool
    """The result is that of an earlier job with the same audio, model and options."""
    timings: dict[str, float]
    """Seconds by stage, of the attempt that ended the job."""

    @property
    def queue_time_s(self) -> float | None:
        return None if self.started_at is None else (self.started_at - self.created_at).total_seconds()

    @property
    def processing_time_s(self) -> float | None:
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """What is known of a file once it has been fetched."""

    name: str | None
    """As its server calls it; None: it does not say."""
    size_bytes: int
    sha256: str
    duration_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The right to write to a job: every write compares all three."""

    job_id: JobId
    attempt: int
    lease_token: str
    before_s: float = 0.0
    """Between the first claim of the job and this one, on the database's clock."""
