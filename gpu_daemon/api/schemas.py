"""The shapes of our answers, for the OpenAPI document and for building them."""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpu_daemon.clock import rfc3339
from gpu_daemon.jobs.callback import webhook_id
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import JobState, Stage
from gpu_daemon.scheduling.status import Live
from gpu_daemon.store.callbacks import CallbackState, LoggedTry
from gpu_daemon.transcript.model import Diarization, Quality, Segment, SpeakerTurn

SECRET_PART = re.compile(r"[?#].*")
"""Of a URL: a signed one is as good as a password."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Body):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Body):
    error: ErrorDetail


class Accepted(Body):
    job_id: str
    status: str
    message: str
    queue_position: int | None = Field(description="0: next; null: no longer waiting")
    estimated_wait_s: float | None = Field(description="null until a speed has been measured")
    status_url: str
    result_url: str


class Gpu(Body):
    index: int
    util_avg_percent: float | None
    util_max_percent: float | None
    vram_total_mb: float | None
    vram_used_avg_mb: float | None
    vram_used_max_mb: float | None
    vram_used_percent: float | None
    vram_used_percent_max: float | None


class Result(Body):
    text: str
    language: str
    language_probability: float | None
    duration: float
    model: str
    mode: Literal["accurate", "fast"] = Field(description="fast: the pieces between pauses were decoded each by itself")
    token_count: int
    segments: list[Segment]
    transcription_segments: list[Segment]
    diarization_segments: list[SpeakerTurn]
    diarization: Diarization | None = Field(description="null: nobody asked who speaks")
    quality: Quality
    queue_time_s: float | None
    processing_time_s: float | None
    timings: dict[str, float] = Field(description="seconds by stage")
    gpu: Gpu | None = Field(description="null on a CPU")
    reused: bool = Field(description="the transcript was made for an earlier job with the same audio and options")


class JobErrorView(Body):
    code: str
    message: str


class CallbackView(Body):
    delivered: bool
    delivered_at_ms: int | None
    error: str | None
    state: str | None = Field(description="pending, delivered or dead; null before the job has ended")
    attempts: int
    next_attempt_at: str | None


class DeliveryView(Body):
    number: int = Field(description="from 1, over redeliveries too")
    at: str
    duration_s: float
    status: int | None = Field(description="the receiver's HTTP status; null: it gave none")
    error: str | None
    delivered: bool


class Deliveries(Body):
    job_id: str
    url: str = Field(description="the job's callback_url without its query, which may hold a secret")
    state: str | None = Field(description="pending, delivered or dead; null before the job has ended")
    attempts: int = Field(description="tries so far")
    next_attempt_at: str | None = Field(description="of a pending one; in the past: it is being sent, or about to be")
    webhook_id: str = Field(description="the `webhook-id` header, the same at every try")
    deliveries: list[DeliveryView] = Field(description="every try in its order; the newest 50")


class JobSummary(Body):
    job_id: str
    status: JobState
    stage: str | None
    progress: float
    attempt: int
    queue_position: int | None
    estimated_wait_s: float | None
    model: str
    language: str = Field(description="as the client asked; result.language is what was heard")
    task: str
    priority: int
    file_name: str
    source_url: str | None = Field(description="where the file is or was fetched, without the query; null: uploaded")
    file_size_bytes: int | None = Field(description="null until the file has been fetched")
    duration: float | None = Field(description="seconds, as the container says")
    created_at: str
    started_at: str | None
    finished_at: str | None
    queue_time_s: float | None
    processing_time_s: float | None
    timings: dict[str, float]
    reused: bool = Field(description="the result is that of an earlier job with the same audio, model and options")
    metadata: dict[str, Any] | None
    error: JobErrorView | None


class JobView(JobSummary):
    callback: CallbackView | None
    result: Result | None


class EventsTicket(Body):
    url: str = Field(description="the path of the job's events, with the ticket that takes the place of a key")
    expires_at: str


class JobOfService(JobSummary):
    """The job as the CUDA service says it: `error` is a sentence."""

    error: str | None  # type: ignore[assignment]
    error_code: str | None
    callback: CallbackView | None
    result: Result | None


class JobPage(Body):
    jobs: list[JobSummary]
    next_cursor: str | None = Field(description="for ?cursor=; null: there are no more")


class RunningJob(Body):
    """As the ROCm service says it."""

    busy: bool
    job_id: str | None
    filename: str | None
    stage: str = Field(description="`idle` when nothing runs; `completed` or `error` for 5 s after the last has ended")
    progress: float
    elapsed_seconds: float
    stage_elapsed_seconds: float
    transcription_segments: int
    diarization_segments: int
    error_message: str | None
    details: dict[str, int | float] = Field(
        description="`audio_duration_seconds`, where the file says it; at the end `speakers_detected`, if asked for"
    )


class Health(Body):
    status: Literal["starting", "ready", "draining", "error"]
    reason: str | None
    version: str
    gpu_available: bool | None = Field(description="null while the daemon looks for GPUs, at its start; so is `device`")
    device: str | None
    gpu_name: str | None
    memory_total_gb: float | None
    memory_available_gb: float | None
    models_loaded: dict[str, bool]
    busy: bool
    current_job: RunningJob | None = Field(description="null where API keys are configured: anybody may ask for health")


class Ready(Body):
    status: Literal["ready", "not_ready"]
    reason: str | None
    database: bool


class Alive(Body):
    status: Literal["alive"] = "alive"


class Queue(Body):
    status: Literal["idle", "busy"]
    queued: list[str]
    running: list[str]


class QueueStats(Body):
    queue_name: str
    queued: int
    started: int
    finished: int
    reused: int = Field(description="of the finished, those answered with the result of an earlier job")
    failed: int
    cancelled: int
    workers: int


class ModelView(Body):
    name: str
    source: str = Field(
        description="whisper: downloaded; file: a local checkpoint; pipeline: what says who speaks (on the page only)"
    )
    enabled: bool
    state: str = Field(description="disabled, waiting, downloading, verifying, ready or failed")
    size_bytes: int | None
    done_bytes: int
    rate_bytes_per_s: float | None
    left_s: float | None = Field(description="until a download is complete, at this rate")
    error: str | None
    retry_at: str | None


class ModelPage(Body):
    models: list[ModelView]


class DeviceView(Body):
    kind: Literal["cpu", "cuda", "rocm"]
    index: int
    name: str
    uuid: str | None


class WorkerJobView(Body):
    id: str | None = Field(description="null for a job of another client")
    model: str
    stage: str
    progress: float
    started_at: str | None
    duration_s: float | None = Field(description="of its audio, as the container says")
    speed: float | None = Field(description="seconds of audio in a second, while it is transcribed")
    left_s: float | None = Field(description="of its present stage, at the speed so far")


class WorkerView(Body):
    index: int
    device: DeviceView
    state: str = Field(
        description="starting, idle, busy, restarting, draining (its last jobs run), drained, quarantined or stopped"
    )
    jobs: list[WorkerJobView] = Field(description="that run, in the order in which they were taken")
    loaded: dict[str, float] = Field(description="MB by model")
    pid: int | None
    answered_s_ago: float | None
    restarts: int
    error: str | None = Field(description="why the runner last died or did not start, or why it is quarantined")


class WorkerPage(Body):
    workers: list[WorkerView]


class Language(Body):
    code: str
    name: str


class LanguagePage(Body):
    languages: list[Language]


class HealthReason(Body):
    status: Literal["starting", "ready", "draining", "error"]
    reason: str | None


class Draining(Body):
    """What a drain still waits for."""

    health: HealthReason
    queued: int
    running: int


class QueueCounts(Body):
    queued: int
    running: int
    completed: int | None = Field(description="null when the database does not answer")
    failed: int | None
    cancelled: int | None
    oldest_queued_s: float | None = Field(description="null when nothing waits")
    estimated_wait_s: float | None = Field(description="of a job that came now; null until a speed has been measured")
    queued_ids: list[str] = Field(description="the first ones; the client's own")
    running_ids: list[str]


class DatabaseView(Body):
    answers: bool
    latency_ms: float | None


class GpuTelemetry(Body):
    """null: the card or its driver does not say."""

    util_percent: float | None
    vram_used_mb: float | None
    vram_ours_mb: float | None = Field(description="what the worker's runner holds")
    vram_others_mb: float | None
    vram_free_mb: float | None
    vram_total_mb: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    clock_sm_mhz: float | None
    clock_mem_mhz: float | None
    throttle: list[str] | None = Field(description="why it is slower than it could be; empty: it is not")
    ecc_errors: int | None = Field(description="that were not corrected")
    processes: int | None
    fan_percent: float | None = None
    read_s_ago: float | None
    reason: str | None = Field(default=None, description="why nothing is known: its driver hangs, or it is gone")


class HostTelemetry(Body):
    cpu_percent: float | None
    memory_used_mb: float | None
    memory_total_mb: float | None
    disk_free_mb: float | None = Field(description="where DATA_DIR is")
    disk_total_mb: float | None


class Telemetry(Body):
    gpus: dict[str, GpuTelemetry] = Field(description="by the worker's index; none of a worker on the CPU")
    host: HostTelemetry


class CallbackCounts(Body):
    """null when the database does not answer."""

    pending: int | None = Field(description="not tried yet")
    retrying: int | None = Field(description="tried in vain, and to be tried again")
    delivered: int | None
    dead: int | None


class JournalEvent(Body):
    seq: int
    at: str
    level: Literal["info", "warning", "error"]
    kind: str = Field(
        description="job_failed, worker_restarted, worker_quarantined, worker_drained, worker_resumed, model_ready, "
        "model_failed, pipeline_ready, pipeline_failed, callback_dead, database_lost, database_back, drained, resumed, "
        "out_of_memory or disk_low"
    )
    text: str


class DashboardState(Body):
    health: HealthReason
    version: str
    uptime_s: float
    paused_by_drain: bool = Field(description="POST /drain was called, and POST /resume was not")
    database: DatabaseView
    workers: list[WorkerView]
    telemetry: Telemetry
    queue: QueueCounts
    models: list[ModelView]
    callbacks: CallbackCounts
    events: list[JournalEvent] = Field(description="newest first, 50 at most")


class PendingCallback(Body):
    job_id: str
    state: Literal["pending", "dead"]
    attempts: int
    next_attempt_at: str | None = Field(description="of a pending one; in the past: it is being sent, or about to be")
    last_error: str | None
    host: str


class PendingCallbacks(Body):
    callbacks: list[PendingCallback]


def job_summary(
    job: Job, *, live: Live | None, fetching: bool, fetched_percent: float, position: int | None, wait_s: float | None
) -> dict[str, Any]:
    stage, progress = job.stage, job.progress
    if live is not None and job.state is JobState.PROCESSING:
        stage, progress = live.stage, live.progress
    elif job.state is JobState.QUEUED:
        stage, progress = Stage.FETCHING if fetching else stage, fetched_percent
    return {
        "job_id": job.id,
        "status": job.state.value,
        "stage": stage.value if stage is not None else None,
        "progress": round(progress, 1),
        "attempt": job.attempt,
        "queue_position": position,
        "estimated_wait_s": wait_s,
        "model": job.options.model,
        "language": job.requested_language,
        "task": job.options.task.value,
        "priority": job.priority,
        "file_name": job.file_name,
        "source_url": None if job.source_url is None else SECRET_PART.sub("", job.source_url),
        "file_size_bytes": job.file_size_bytes,
        "duration": job.duration_s,
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339(job.started_at),
        "finished_at": rfc3339(job.finished_at),
        "queue_time_s": _rounded(job.queue_time_s),
        "processing_time_s": _rounded(job.processing_time_s),
        "timings": job.timings,
        "reused": job.reused,
        "metadata": job.metadata,
        "error": None if job.error_code is None else {"code": job.error_code, "message": job.error_message},
    }


def callback_view(job: Job, state: CallbackState | None) -> dict[str, Any] | None:
    if job.callback_url is None:
        return None
    delivered_at = None if state is None else state.delivered_at
    return {
        "delivered": delivered_at is not None,
        "delivered_at_ms": None if delivered_at is None else round(delivered_at.timestamp() * 1000),
        "error": None if state is None else state.last_error,
        "state": None if state is None else state.state,
        "attempts": 0 if state is None else state.attempts,
        "next_attempt_at": _next_attempt_at(state),
    }


def deliveries(job: Job, state: CallbackState | None, tries: Sequence[LoggedTry]) -> Deliveries:
    """Of a job with a callback_url."""
    return Deliveries(
        job_id=job.id,
        url=re.split("[?#]", job.callback_url or "", maxsplit=1)[0],
        state=None if state is None else state.state,
        attempts=0 if state is None else state.attempts,
        next_attempt_at=_next_attempt_at(state),
        webhook_id=webhook_id(job.id),
        deliveries=[
            DeliveryView(
                number=tried.number,
                at=str(rfc3339(tried.at)),
                duration_s=round(tried.duration_s, 3),
                status=tried.status,
                error=tried.error,
                delivered=tried.error is None,
            )
            for tried in tries
        ],
    )


def _next_attempt_at(state: CallbackState | None) -> str | None:
    return rfc3339(state.next_attempt_at) if state is not None and state.state == "pending" else None


def spliced(head: dict[str, Any], name: str, text: str | None) -> bytes:
    """`head` with one more member that is JSON text already: a long result is not parsed to be sent."""
    start = json.dumps(head, ensure_ascii=False)[:-1]
    return f"{start}, {json.dumps(name)}: {text or 'null'}}}".encode()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
