"""The service that is the core: the rest of its routes are the root's own."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from gpu_daemon.api.access import Client, own_ids, own_job
from gpu_daemon.api.context import context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.jobs import whole_job
from gpu_daemon.api.schemas import JobOfService, Queue, RunningJob
from gpu_daemon.api.services.rocm import latest_job

router = APIRouter(tags=["queue"])


@router.get("/queue", summary="The ids of what waits, in order, and of what runs", responses=documented(401))
async def queue(request: Request, client: Client) -> Queue:
    context = context_of(request)
    queued = own_ids(context, client, context.scheduler.queued_ids())
    running = own_ids(context, client, context.scheduler.running_ids())
    return Queue(status="busy" if queued or running else "idle", queued=list(queued), running=list(running))


@router.get(
    "/status",
    response_model=JobOfService | RunningJob,
    summary="With `job_id`: that job. Without: the job that runs; for some seconds, how the last one ended",
    responses=documented(401, 404, 503),
)
async def status(request: Request, client: Client, job_id: Annotated[str | None, Query()] = None) -> Response:
    context = context_of(request)
    if job_id is None:
        return JSONResponse((await latest_job(context, client)).model_dump())
    job = await own_job(context, client, job_id)
    return await whole_job(context, job, error=job.error_message, error_code=job.error_code)
