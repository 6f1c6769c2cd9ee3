"""Reading, cancelling and deleting jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response

from gpu_daemon.api.access import Client, own_job
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.documents import PREFER
from gpu_daemon.api.errors import documented
from gpu_daemon.api.line import ended
from gpu_daemon.api.prefer import applied, preferred_wait_s
from gpu_daemon.api.schemas import JobPage, JobView, callback_view, job_summary, spliced
from gpu_daemon.errors import Conflict
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import TERMINAL, JobState

router = APIRouter(tags=["jobs"])
MOST_JOBS = 500
MAX_SEQ = 2**63 - 1
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL has no text with NUL in it."""
JobIdPath = Annotated[str, Path(description="as POST /transcribe answered it")]


@router.get(
    "/jobs",
    response_model=JobPage,
    summary="Jobs, newest first, without their texts",
    responses=documented(400, 401, 503),
)
async def list_jobs(
    request: Request,
    client: Client,
    status: Annotated[JobState | None, Query()] = None,
    model: Annotated[str | None, Query(max_length=200, pattern=NO_NUL)] = None,
    search: Annotated[
        str | None,
        Query(
            max_length=200,
            pattern=NO_NUL,
            description="text in the file's name or in the metadata, or how the id begins; in any case",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_JOBS)] = 50,
    cursor: Annotated[int | None, Query(ge=1, le=MAX_SEQ, description="`next_cursor` of the page before")] = None,
) -> Response:
    context = context_of(request)
    jobs = await context.jobs.newest(
        states=() if status is None else (status,),
        model=model,
        client=client,
        limit=limit + 1,
        before_seq=cursor,
        search=search,
    )
    page = jobs[:limit]
    more = len(jobs) > limit
    return JSONResponse(
        {"jobs": [summary(context, job) for job in page], "next_cursor": str(page[-1].seq) if more else None}
    )


@router.get(
    "/jobs/{job_id}",
    response_model=JobView,
    summary="One job, with its result when it has one; `Prefer: wait=N` has it answered when the job has ended",
    responses=documented(401, 404, 503),
    openapi_extra={"parameters": [PREFER]},
)
async def get_job(request: Request, client: Client, job_id: JobIdPath) -> Response:
    context = context_of(request)
    job = await own_job(context, client, job_id)
    wait_s = preferred_wait_s(request)
    if wait_s is None:
        return await whole_job(context, job)
    answer = await whole_job(context, await ended(context, request.receive, job, wait_s))
    answer.headers.update(applied(wait_s))
    return answer


@router.post(
    "/jobs/{job_id}/cancel",
    response_model=JobView,
    summary="Stop a job, waiting or running",
    responses={202: {"model": JobView, "description": "it is still being stopped"}, **documented(401, 404, 409, 503)},
)
async def cancel_job(request: Request, client: Client, job_id: JobIdPath) -> Response:
    context = context_of(request)
    job = await own_job(context, client, job_id)
    job = await context.scheduler.cancel(job.id)
    if job.state in TERMINAL and job.state is not JobState.CANCELLED:
        raise Conflict(f"the job was {job.state.value} before it could be stopped", code="wrong_state")
    answer = await whole_job(context, job)
    answer.status_code = 200 if job.state is JobState.CANCELLED else 202
    return answer


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Remove a job, its audio and its result; stopped first if it runs",
    responses=documented(401, 404, 503),
)
async def delete_job(request: Request, client: Client, job_id: JobIdPath) -> Response:
    context = context_of(request)
    await context.scheduler.delete((await own_job(context, client, job_id)).id)
    return Response(status_code=204)


async def whole_job(context: Context, job: Job, **instead: Any) -> Response:
    """`instead`: members of another shape, for other services' clients."""
    callback = await context.callbacks.of_job(job.id) if job.callback_url is not None else None
    head = summary(context, job) | {"callback": callback_view(job, callback)} | instead
    text = await context.jobs.result(job.id) if job.state is JobState.COMPLETED else None
    return Response(spliced(head, "result", text), media_type="application/json")


def summary(context: Context, job: Job) -> dict[str, Any]:
    scheduler = context.scheduler
    return job_summary(
        job,
        live=scheduler.live(job.id),
        fetching=scheduler.is_fetching(job.id),
        fetched_percent=scheduler.fetched_percent(job.id),
        position=scheduler.position(job.id),
        wait_s=scheduler.estimated_wait_s(job.id),
    )
