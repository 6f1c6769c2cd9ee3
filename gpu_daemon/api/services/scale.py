"""The production-scale service: jobs in the words of Celery. It submits them as the root does."""

import json
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from gpu_daemon.api.access import Client, RequireKey, own_job
from gpu_daemon.api.context import context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.jobs import JobIdPath, delete_job
from gpu_daemon.api.results import NOT_MODIFIED, get_result
from gpu_daemon.api.schemas import Body, Result, spliced
from gpu_daemon.api.state import job_counts
from gpu_daemon.jobs.state import JobState
from gpu_daemon.transcript.cues import PLAIN

Status = Literal["pending", "processing", "success", "failure"]
STATUSES: dict[JobState, tuple[Status, str]] = {
    JobState.QUEUED: ("pending", "Job is queued"),
    JobState.PROCESSING: ("processing", "Transcription in progress"),
    JobState.COMPLETED: ("success", "Transcription completed"),
    JobState.FAILED: ("failure", "Transcription failed"),
    JobState.CANCELLED: ("failure", "Transcription cancelled"),
}
"""With the message. Celery's own word for a cancelled job is one that this service's clients wait on for ever."""


class ScaleJob(Body):
    """What does not apply to its status is absent."""

    job_id: str
    status: Status
    filename: str
    message: str
    progress: float
    result: Result | None = None
    error: str | None = None


class Cancelled(Body):
    message: str
    job_id: str


class Workers(Body):
    count: int
    active_tasks: int


class Jobs(Body):
    queued: int
    processing: int
    completed: int
    failed: int
    cancelled: int


class Cache(Body):
    hits: int


class Stats(Body):
    workers: Workers
    jobs: Jobs
    cache: Cache


shared = APIRouter(tags=["production-scale service"])
"""Also at the root."""


@shared.get(
    "/status/{job_id}",
    summary="A job, with its result when it has one",
    response_model=ScaleJob,
    response_model_exclude_none=True,
    responses=documented(401, 404, 503),
)
async def status(request: Request, client: Client, job_id: JobIdPath) -> Response:
    context = context_of(request)
    job = await own_job(context, client, job_id)
    said, message = STATUSES[job.state]
    live = context.scheduler.live(job.id) if job.state is JobState.PROCESSING else None
    text = await context.jobs.result(job.id) if job.state is JobState.COMPLETED else None
    head = {
        "job_id": job.id,
        "status": said,
        "filename": job.file_name,
        "message": message,
        "progress": round(job.progress if live is None else live.progress, 1),
    }
    if job.error_message is not None:
        head["error"] = job.error_message
    body = spliced(head, "result", text) if text is not None else json.dumps(head, ensure_ascii=False).encode()
    return Response(body, media_type="application/json")


@shared.get(
    "/result/{job_id}",
    summary="The transcript of a job that is completed",
    response_model=Result,
    responses={**NOT_MODIFIED, **documented(401, 404, 409, 503)},
)
async def result(request: Request, client: Client, job_id: JobIdPath) -> Response:
    return await get_result(request, client, job_id, PLAIN)


@shared.delete(
    "/job/{job_id}",
    summary="Stop a job, waiting or running, and remove it",
    responses=documented(401, 404, 503),
)
async def cancel(request: Request, client: Client, job_id: JobIdPath) -> Cancelled:
    await delete_job(request, client, job_id)
    return Cancelled(message="the job was cancelled", job_id=job_id)


@shared.get("/stats", dependencies=[RequireKey], summary="Workers, and jobs by state", responses=documented(401, 503))
async def stats(request: Request) -> Stats:
    context = context_of(request)
    counts = job_counts(context, await request.app.state.live.stored())
    return Stats(
        workers=Workers(count=len(context.scheduler.workers()), active_tasks=len(context.scheduler.running_ids())),
        jobs=Jobs(**{state.value: count for state, count in counts.items()}),
        cache=Cache(hits=await context.jobs.count_reused()),
    )
