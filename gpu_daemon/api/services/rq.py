"""The queue guide: transcripts at once, or jobs in the words of RQ."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gpu_daemon import __version__
from gpu_daemon.api.access import Client, RequireKey, own_job
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.documents import form
from gpu_daemon.api.errors import documented
from gpu_daemon.api.jobs import JobIdPath
from gpu_daemon.api.schemas import Body, QueueStats
from gpu_daemon.api.services.waiting import answer_when_completed
from gpu_daemon.api.state import health_reason, job_counts
from gpu_daemon.api.submit import take
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import JobState

QUEUE_NAME = "transcription"
SERVICE = "gpu_daemon"
Status = Literal["queued", "started", "finished", "failed"]
STATUSES: dict[JobState, tuple[Status, str]] = {
    JobState.QUEUED: ("queued", "Waiting in queue"),
    JobState.PROCESSING: ("started", "Transcription in progress"),
    JobState.COMPLETED: ("finished", "Transcription completed"),
    JobState.FAILED: ("failed", "Transcription failed"),
    JobState.CANCELLED: ("failed", "Transcription cancelled"),
}
"""With the message. RQ's own word for a cancelled job is one that the guide's clients do not know."""
SUBMISSION_ERRORS = (400, 401, 408, 409, 413, 415, 429, 503, 507)


class RqSegment(Body):
    id: int
    start: float
    end: float
    text: str


class RqMetadata(Body):
    filename: str
    processing_time: float
    language: str
    task: str
    service: str


class RqResult(Body):
    text: str
    segments: list[RqSegment]
    metadata: RqMetadata


class RqAccepted(Body):
    job_id: str
    status: Status
    message: str
    queue_position: int
    estimated_wait: str


class RqJob(Body):
    """What does not apply to its status is absent."""

    job_id: str
    status: Status
    message: str
    created_at: str
    queue_position: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    result: RqResult | None = None
    error: str | None = None


class Service(Body):
    service: str
    version: str
    status: str
    endpoints: dict[str, str]


shared = APIRouter(tags=["queue guide"])
"""Also at the root."""
own = APIRouter(tags=["queue guide"])


@own.post(
    "/transcribe",
    summary="Transcribe, and answer with the transcript",
    response_model=RqResult,
    responses=documented(*SUBMISSION_ERRORS, 500),
    openapi_extra=form("RqTranscribe", {}),
)
async def transcribe(request: Request, client: Client) -> Response:
    async def answer(job: Job, result: str) -> Response:
        return JSONResponse((await asyncio.to_thread(_result, job, result)).model_dump())

    return await answer_when_completed(request, client, answer)


@shared.post(
    "/transcribe/async",
    status_code=202,
    summary="Submit a file",
    response_model=RqAccepted,
    responses=documented(*SUBMISSION_ERRORS),
    openapi_extra=form("RqTranscribeAsync", {}),
)
async def transcribe_async(request: Request, client: Client) -> Response:
    job = (await take(request, client)).job
    scheduler = context_of(request).scheduler
    said = RqAccepted(
        job_id=job.id,
        status=STATUSES[job.state][0],
        message=f"Transcription job {STATUSES[job.state][0]}: {job.file_name}",
        queue_position=scheduler.position(job.id) or 0,
        estimated_wait=_minutes(scheduler.estimated_wait_s(job.id) if job.state is JobState.QUEUED else 0.0),
    )
    return JSONResponse(said.model_dump(), 202)


@shared.get(
    "/transcribe/status/{job_id}",
    summary="A job, with its result when it has one",
    response_model_exclude_none=True,
    responses=documented(401, 404, 503),
)
async def status(request: Request, client: Client, job_id: JobIdPath) -> RqJob:
    context = context_of(request)
    job = await own_job(context, client, job_id)
    text = await context.jobs.result(job.id) if job.state is JobState.COMPLETED else None
    return _job(context, job, None if text is None else await asyncio.to_thread(_result, job, text))


@shared.get(
    "/queue/stats",
    tags=["queue"],
    dependencies=[RequireKey],
    summary="How many jobs are in which state",
    responses=documented(401, 503),
)
async def queue_stats(request: Request) -> QueueStats:
    context = context_of(request)
    counts = job_counts(context, await request.app.state.live.stored())
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


@own.get("/", summary="What this service is", responses=documented(401), dependencies=[RequireKey])
async def service(request: Request) -> Service:
    return Service(
        service=SERVICE,
        version=__version__,
        status=health_reason(context_of(request)).status,
        endpoints={
            "/health": "GET: is it ready, and why not",
            "/transcribe": "POST: transcribe and wait",
            "/transcribe/async": "POST: submit a job",
            "/transcribe/status/{job_id}": "GET: a job",
            "/queue/stats": "GET: jobs by state",
        },
    )


def _job(context: Context, job: Job, result: RqResult | None) -> RqJob:
    said, message = STATUSES[job.state]
    started_at = job.started_at or job.finished_at  # of what ended in the queue: the guide's clients read both
    return RqJob(
        job_id=job.id,
        status=said,
        message=message,
        created_at=_naive(job.created_at),
        queue_position=context.scheduler.position(job.id) or 0 if job.state is JobState.QUEUED else None,
        started_at=None if started_at is None or job.state is JobState.QUEUED else _naive(started_at),
        ended_at=None if job.finished_at is None else _naive(job.finished_at),
        result=result,
        error=job.error_message,
    )


def _result(job: Job, stored: str) -> RqResult:
    result = json.loads(stored)
    return RqResult(
        text=result["text"],
        segments=[
            RqSegment(**{name: each[name] for name in ("id", "start", "end", "text")}) for each in result["segments"]
        ],
        metadata=RqMetadata(
            filename=job.file_name,
            processing_time=job.processing_time_s or 0.0,
            language=result["language"],
            task=job.options.task.value,
            service=SERVICE,
        ),
    )


def _naive(moment: datetime) -> str:
    """UTC without saying so, as RQ has it: clients compare it with a clock of their own that has no zone either."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def _minutes(wait_s: float | None) -> str:
    if wait_s is None:
        return "unknown"
    minutes = round(wait_s / 60)
    return f"{minutes} minute{'' if minutes == 1 else 's'}"
