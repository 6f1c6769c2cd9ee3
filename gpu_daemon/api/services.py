"""Routes of older services, whose clients come with a changed base URL and nothing else."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from gpu_daemon.api.access import Client, RequireKey, own_ids, own_job
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.jobs import whole_job
from gpu_daemon.api.schemas import JobOfService, Queue, QueueStats, RunningJob
from gpu_daemon.api.state import IDLE, running_job, running_worker
from gpu_daemon.jobs.state import JobState

router = APIRouter(tags=["queue"])
QUEUE_NAME = "transcription"


@router.get("/queue", summary="The ids of what waits, in order, and of what runs", responses=documented(401))
async def queue(request: Request, client: Client) -> Queue:
    context = context_of(request)
    queued = own_ids(context, client, context.scheduler.queued_ids())
    running = own_ids(context, client, context.scheduler.running_ids())
    return Queue(status="busy" if queued or running else "idle", queued=list(queued), running=list(running))


@router.get("/queue/stats", dependencies=[RequireKey], summary="Jobs by state", responses=documented(401, 503))
async def queue_stats(request: Request) -> QueueStats:
    context = context_of(request)
    counts = await context.jobs.counts()
    return QueueStats(
        queue_name=QUEUE_NAME,
        queued=counts[JobState.QUEUED],
        started=counts[JobState.PROCESSING],
        finished=counts[JobState.COMPLETED],
        reused=await context.jobs.count_reused(),
        failed=counts[JobState.FAILED],
        cancelled=counts[JobState.CANCELLED],
        workers=len(context.scheduler.workers()),
    )


@router.get(
    "/status",
    response_model=JobOfService | RunningJob,
    summary="With `job_id`: that job. Without: the job that runs",
    responses=documented(401, 404),
)
async def status(request: Request, client: Client, job_id: Annotated[str | None, Query()] = None) -> Response:
    context = context_of(request)
    if job_id is None:
        return JSONResponse((await _running(context, client)).model_dump())
    job = await own_job(context, client, job_id)
    return await whole_job(context, job, error=job.error_message, error_code=job.error_code)


async def _running(context: Context, client: str | None) -> RunningJob:
    """As the ROCm service says it; of another client's job only that there is one."""
    worker = running_worker(context)
    if worker is None or worker.job_id is None:
        return IDLE
    job = await context.jobs.get(worker.job_id)
    if job is None or (client is not None and job.client != client):
        return IDLE.model_copy(update={"busy": True})
    return running_job(context, worker, job)
