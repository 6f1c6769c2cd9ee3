"""The callback of one job: how its deliveries went, and sending it again."""

from fastapi import APIRouter, Request

from gpu_daemon.api.access import Client, own_job
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.jobs import JobIdPath
from gpu_daemon.api.schemas import Deliveries, deliveries
from gpu_daemon.errors import Conflict, NotFound
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import TERMINAL

router = APIRouter(tags=["jobs"])


@router.get(
    "/jobs/{job_id}/callbacks",
    summary="How the deliveries of the job's callback went; 404 `no_callback` for a job without a callback_url",
    responses=documented(401, 404, 503),
)
async def get_callbacks(request: Request, client: Client, job_id: JobIdPath) -> Deliveries:
    context = context_of(request)
    return await _deliveries(context, await _job_with_callback(context, client, job_id))


@router.post(
    "/jobs/{job_id}/callbacks/redeliver",
    status_code=202,
    summary="Send the callback again, now, whatever became of it: same `webhook-id`, a fresh schedule",
    responses=documented(401, 404, 409, 503),
)
async def redeliver(request: Request, client: Client, job_id: JobIdPath) -> Deliveries:
    """One that is being sent at this moment is not sent twice: only if that try fails it is tried again at once."""
    context = context_of(request)
    job = await _job_with_callback(context, client, job_id)
    if job.state not in TERMINAL:
        raise Conflict(f"the job is {job.state.value}: its callback is sent when it has ended", code="wrong_state")
    if not await context.callbacks.redeliver(job.id):
        raise NotFound(f"there is no job {job_id[:50]!r}", param="job_id")  # deleted at this moment
    reach(FaultPoint.REDELIVERED)
    context.outbox.wake()
    return await _deliveries(context, job)


async def _job_with_callback(context: Context, client: str | None, job_id: str) -> Job:
    job = await own_job(context, client, job_id)
    if job.callback_url is None:
        raise NotFound("the job was sent without a callback_url", code="no_callback")
    return job


async def _deliveries(context: Context, job: Job) -> Deliveries:
    return deliveries(job, await context.callbacks.of_job(job.id), await context.callbacks.tries(job.id))
