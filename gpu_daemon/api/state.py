"""The daemon's state as data: what the page, the operators' routes and the old services' routes show."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gpu_daemon import __version__, clock
from gpu_daemon.api.access import own_ids
from gpu_daemon.api.context import Context
from gpu_daemon.api.journal import Entry
from gpu_daemon.api.schemas import (
    CallbackCounts,
    DashboardState,
    DatabaseView,
    DeviceView,
    GpuTelemetry,
    HealthReason,
    HostTelemetry,
    ModelView,
    QueueCounts,
    RunningJob,
    Telemetry,
    WorkerJobView,
    WorkerView,
)
from gpu_daemon.catalogue.catalogue import ModelStatus
from gpu_daemon.errors import Unavailable
from gpu_daemon.gpu.reading import GpuReading, HostReading
from gpu_daemon.jobs.state import JobState, Stage
from gpu_daemon.scheduling.queue import Waiting
from gpu_daemon.scheduling.status import Live, WorkerJob, WorkerStatus
from gpu_daemon.store.callbacks import Counts
from gpu_daemon.store.failures import AWAY

MAX_IDS = 200
MB = 1024 * 1024
STAGES = {Stage.FETCHING: "uploading", Stage.PREPARING: "loading"}
"""What a running job's stage is called where RunningJob is said; the others have the same name there."""
IDLE = RunningJob(
    busy=False,
    job_id=None,
    filename=None,
    stage="idle",
    progress=0.0,
    elapsed_seconds=0.0,
    stage_elapsed_seconds=0.0,
    transcription_segments=0,
    diarization_segments=0,
    error_message=None,
    details={},
)


def health_reason(context: Context) -> HealthReason:
    """From memory: what the daemon knows of itself, its database and its disk."""
    said = health_but_disk(context)
    host = context.telemetry.host()
    free_mb = None if host is None else host.disk_free_mb
    if said.status == "ready" and free_mb is not None and free_mb < context.settings.disk_reserve_mb:
        return HealthReason(status="error", reason="uploads are refused: less disk is free than DISK_RESERVE_MB")
    return said


def health_but_disk(context: Context) -> HealthReason:
    readiness, trouble = context.scheduler.readiness(), context.database_trouble()
    if trouble is not None and readiness.status != "draining":
        return HealthReason(status="error", reason=trouble)
    return HealthReason(status=readiness.status, reason=readiness.reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What only the database knows, as it was when last asked."""

    latency_ms: float | None = None
    """None: it did not answer."""
    jobs: Mapping[JobState, int] = field(default_factory=dict)
    callbacks: Counts | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Queued:
    """What is to be seen of the queue."""

    first: Mapping[str | None, list[str]]
    """The ids of the first MAX_IDS jobs of each client; under None of all."""
    oldest_at: datetime | None


def job_counts(context: Context, stored: Stored) -> Mapping[JobState, int]:
    """As the page has them. Raises Unavailable when the database did not answer."""
    if not stored.jobs:
        raise Unavailable(AWAY, retry_after_s=5, code="database_unavailable")
    running = len(context.scheduler.running_ids())
    return {**stored.jobs, JobState.QUEUED: context.scheduler.queued_count, JobState.PROCESSING: running}


def queued(queue: Iterable[Waiting]) -> Queued:
    """Goes through the whole queue once."""
    first: dict[str | None, list[str]] = {None: []}
    oldest: Waiting | None = None
    for job in queue:
        for ids in {None: first[None], job.client: first.setdefault(job.client, [])}.values():
            if len(ids) < MAX_IDS:
                ids.append(job.id)
        if oldest is None or job.seq < oldest.seq:
            oldest = job
    return Queued(first=first, oldest_at=None if oldest is None else oldest.created_at)


def dashboard_state(
    context: Context, client: str | None, stored: Stored, waiting: Queued, journal: Iterable[Entry]
) -> DashboardState:
    """No transcripts, callback addresses, file names or errors of jobs, and the ids only of the client's own.

    From memory, without waiting.
    """
    scheduler = context.scheduler
    workers = scheduler.workers()
    running = [job for worker in workers for job in worker.jobs]
    return DashboardState(
        health=health_reason(context),
        version=__version__,
        uptime_s=round((clock.now() - context.started_at).total_seconds(), 1),
        paused_by_drain=scheduler.drained,
        database=DatabaseView(answers=stored.latency_ms is not None, latency_ms=stored.latency_ms),
        workers=[_worker_view(worker, client) for worker in workers],
        telemetry=telemetry_view(context),
        queue=QueueCounts(
            queued=scheduler.queued_count,
            running=len(running),
            completed=stored.jobs.get(JobState.COMPLETED),
            failed=stored.jobs.get(JobState.FAILED),
            cancelled=stored.jobs.get(JobState.CANCELLED),
            oldest_queued_s=_seconds_since(waiting.oldest_at),
            estimated_wait_s=scheduler.newcomer_waits_s(),
            queued_ids=list(waiting.first.get(client, ())),
            running_ids=[job.id for job in running if _may_see(client, job)],
        ),
        models=[*map(model_view, context.catalogue.statuses()), _pipeline_view(context.pipelines.status())],
        callbacks=_callback_counts(stored.callbacks),
        events=[entry.seen_by(client) for entry in journal],
    )


def worker_views(context: Context, client: str | None) -> list[WorkerView]:
    """By their index."""
    return [_worker_view(worker, client) for worker in context.scheduler.workers()]


def _worker_view(worker: WorkerStatus, client: str | None) -> WorkerView:
    device = worker.device
    return WorkerView(
        index=worker.index,
        device=DeviceView(kind=device.kind, index=device.index, name=device.name, uuid=device.uuid),
        state=worker.state.value,
        jobs=[_job_view(job, client) for job in worker.jobs],
        loaded={name: round(size_bytes / MB, 1) for name, size_bytes in worker.loaded.items()},
        pid=worker.pid,
        answered_s_ago=None if worker.answered_s_ago is None else round(worker.answered_s_ago, 1),
        restarts=worker.restarts,
        error=worker.error,
    )


def _may_see(client: str | None, job: WorkerJob) -> bool:
    return client is None or job.client == client


def _job_view(job: WorkerJob, client: str | None) -> WorkerJobView:
    speed, left_s = pace(job.live, job.duration_s, clock.monotonic())
    return WorkerJobView(
        id=job.id if _may_see(client, job) else None,
        model=job.model,
        stage=job.live.stage.value,
        progress=job.live.progress,
        started_at=clock.rfc3339(job.started_at),
        duration_s=job.duration_s,
        speed=speed,
        left_s=left_s,
    )


def pace(live: Live, duration_s: float | None, now_s: float) -> tuple[float | None, float | None]:
    """Seconds of audio in a second while it is transcribed, and how long the stage will take yet (pure).

    Measured up to the moment at which the progress last moved: in between it says nothing new.
    """
    first, last = live.span
    took_s = live.moved_s - live.stage_since_s
    if took_s <= 0 or live.progress <= first or last <= first:
        return None, None
    done = min(1.0, (live.progress - first) / (last - first))
    left_s = max(0.0, took_s * (1 - done) / done - (now_s - live.moved_s))
    heard = live.stage is Stage.TRANSCRIBING and duration_s is not None
    return round(done * duration_s / took_s, 2) if heard and duration_s is not None else None, round(left_s, 1)


def telemetry_view(context: Context) -> Telemetry:
    host = context.telemetry.host() or HostReading()
    return Telemetry(
        gpus={str(index): _gpu_view(reading) for index, reading in context.telemetry.latest().items()},
        host=HostTelemetry(**{name: rounded(getattr(host, name)) for name in HostTelemetry.model_fields}),
    )


def _gpu_view(reading: GpuReading) -> GpuTelemetry:
    said = GpuTelemetry.model_fields.keys() - {"throttle", "reason"}
    known = {name: rounded(getattr(reading, name)) for name in said}
    throttle = None if reading.throttle is None else list(reading.throttle)
    return GpuTelemetry(throttle=throttle, reason=reading.reason, **known)


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def model_view(model: ModelStatus) -> ModelView:
    rate = model.rate_bytes_per_s
    left_bytes = None if model.size_bytes is None else max(0, model.size_bytes - model.done_bytes)
    return ModelView(
        name=model.name,
        source=model.source,
        enabled=model.enabled,
        state=model.state.value,
        size_bytes=model.size_bytes,
        done_bytes=model.done_bytes,
        rate_bytes_per_s=rate,
        left_s=None if not rate or left_bytes is None else round(left_bytes / rate, 1),
        error=model.error,
        retry_at=clock.rfc3339(model.retry_at),
    )


def _pipeline_view(pipeline: ModelStatus) -> ModelView:
    """A directory of somebody's own by its last name: where it is is nobody's business."""
    view = model_view(pipeline)
    return view.model_copy(update={"name": Path(view.name).name}) if view.name[0] in "/~." else view


def _callback_counts(counts: Counts | None) -> CallbackCounts:
    if counts is None:
        return CallbackCounts(pending=None, retrying=None, delivered=None, dead=None)
    return CallbackCounts(
        pending=counts.pending, retrying=counts.retrying, delivered=counts.delivered, dead=counts.dead
    )


def _seconds_since(moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, round((clock.now() - moment).total_seconds()))


def running_job(context: Context, client: str | None) -> RunningJob:
    """The first of the client's own; of another client's only that there is one. From memory alone."""
    scheduler = context.scheduler
    running = scheduler.running_ids()
    own = next(iter(own_ids(context, client, running)), None)
    job, live = (None, None) if own is None else (scheduler.running_job(own), scheduler.live(own))
    if job is None or live is None:
        return IDLE.model_copy(update={"busy": bool(running)})
    started_at = job.started_at or clock.now()
    return RunningJob(
        busy=True,
        job_id=job.id,
        filename=job.file_name,
        stage=STAGES.get(live.stage, live.stage.value),
        progress=round(live.progress, 1),
        elapsed_seconds=round((clock.now() - started_at).total_seconds(), 1),
        stage_elapsed_seconds=round(clock.monotonic() - live.stage_since_s, 1),
        transcription_segments=len(live.segments),
        diarization_segments=0,
        error_message=None,
        details={} if job.duration_s is None else {"audio_duration_seconds": job.duration_s},
    )
