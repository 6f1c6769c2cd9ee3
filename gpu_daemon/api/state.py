"""The daemon's state as data: what the page, the operators' routes and the old services' routes show."""

from collections.abc import Set

from gpu_daemon import __version__, clock
from gpu_daemon.api.access import own_ids
from gpu_daemon.api.context import Context
from gpu_daemon.api.schemas import (
    DashboardState,
    DeviceView,
    HealthReason,
    ModelView,
    QueueCounts,
    RunningJob,
    WorkerJobView,
    WorkerView,
)
from gpu_daemon.catalogue.catalogue import ModelStatus
from gpu_daemon.errors import Unavailable
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import JobState, Stage
from gpu_daemon.scheduling.status import WorkerStatus

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
    readiness = context.scheduler.readiness()
    return HealthReason(status=readiness.status, reason=readiness.reason)


async def dashboard_state(context: Context, client: str | None) -> DashboardState:
    """No transcripts, callback addresses, file names or errors of jobs, and the ids only of the client's own."""
    queued, running = context.scheduler.queued_ids(), context.scheduler.running_ids()
    try:
        ended = await context.jobs.counts()
    except Unavailable:
        ended = {}
    return DashboardState(
        health=health_reason(context),
        version=__version__,
        uptime_s=round((clock.now() - context.started_at).total_seconds(), 1),
        workers=worker_views(context, client),
        queue=QueueCounts(
            queued=len(queued),
            running=len(running),
            completed=ended.get(JobState.COMPLETED),
            failed=ended.get(JobState.FAILED),
            cancelled=ended.get(JobState.CANCELLED),
            queued_ids=list(own_ids(context, client, queued)[:MAX_IDS]),
            running_ids=list(own_ids(context, client, running)),
        ),
        models=[model_view(model) for model in context.catalogue.statuses() if model.enabled],
    )


def worker_views(context: Context, client: str | None) -> list[WorkerView]:
    """By their index."""
    own = set(own_ids(context, client, context.scheduler.running_ids()))
    return [_worker_view(worker, own) for worker in context.scheduler.workers()]


def _worker_view(worker: WorkerStatus, own: Set[JobId]) -> WorkerView:
    device = worker.device
    return WorkerView(
        index=worker.index,
        device=DeviceView(kind=device.kind, index=device.index, name=device.name),
        state=worker.state.value,
        jobs=[
            WorkerJobView(
                id=job.id if job.id in own else None, model=job.model, stage=job.stage.value, progress=job.progress
            )
            for job in worker.jobs
        ],
        loaded={name: round(size_bytes / MB, 1) for name, size_bytes in worker.loaded.items()},
        pid=worker.pid,
        answered_s_ago=None if worker.answered_s_ago is None else round(worker.answered_s_ago, 1),
        restarts=worker.restarts,
        error=worker.error,
    )


def model_view(model: ModelStatus) -> ModelView:
    return ModelView(
        name=model.name,
        source=model.source,
        enabled=model.enabled,
        state=model.state.value,
        size_bytes=model.size_bytes,
        done_bytes=model.done_bytes,
        rate_bytes_per_s=model.rate_bytes_per_s,
        error=model.error,
        retry_at=clock.rfc3339(model.retry_at),
    )


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
