"""The microservice: the transcript at once or as a job, in its own words."""

import asyncio
import json
import math
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import JSONResponse

from gpu_daemon.api import health
from gpu_daemon.api.access import Client, RequireKey, own_job
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.documents import form
from gpu_daemon.api.errors import documented
from gpu_daemon.api.intake import Fields
from gpu_daemon.api.jobs import JobIdPath, cancel_job, delete_job
from gpu_daemon.api.results import CONTENT_TYPES
from gpu_daemon.api.schemas import Body, Language, LanguagePage
from gpu_daemon.api.services.waiting import answer_when_completed
from gpu_daemon.api.submit import take
from gpu_daemon.clock import rfc3339
from gpu_daemon.errors import InvalidRequest
from gpu_daemon.jobs.languages import LANGUAGES
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import TERMINAL, JobState
from gpu_daemon.transcript.formats import Format, parse_result, render

FORMATS = {"json": Format.VERBOSE_JSON, "text": Format.TEXT, "srt": Format.SRT, "vtt": Format.VTT}
MB = 1024 * 1024
Status = Literal["pending", "processing", "completed", "failed"]
STATUSES: dict[JobState, Status] = {
    JobState.QUEUED: "pending",
    JobState.PROCESSING: "processing",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
}
"""This service's document ends its clients' polling with `completed` and `failed`, and with nothing else."""


class MicroWord(Body):
    word: str
    start: float
    end: float
    confidence: float


class MicroSegment(Body):
    id: int
    start: float
    end: float
    text: str
    confidence: float
    words: list[MicroWord]


class MicroResult(Body):
    text: str
    language: str
    language_probability: float
    duration: float
    segments: list[MicroSegment]
    processing_time: float


class MicroAccepted(Body):
    job_id: str
    status: Status
    message: str
    status_url: str
    estimated_time: int


class MicroJob(Body):
    job_id: str
    status: Status
    progress: int
    created_at: str
    started_at: str | None
    completed_at: str | None
    failed_at: str | None
    error: str | None
    result: MicroResult | None


class MicroJobs(Body):
    jobs: list[MicroJob]
    total: int
    page: int
    page_size: int


class Done(Body):
    message: str
    job_id: str


class MicroModel(Body):
    name: str
    size: str | None
    loaded: bool
    state: str


class MicroModels(Body):
    models: list[MicroModel]
    current_model: str | None


class AsyncHealth(Body):
    status: Literal["healthy", "unhealthy"]
    checks: dict[str, bool]
    message: str | None


shared = APIRouter(tags=["microservice"])
"""Also at the root."""


@shared.post(
    "/api/v1/transcribe",
    summary="Transcribe, and answer with the transcript",
    response_model=MicroResult,
    responses={
        200: {
            "description": "the transcript, in the `response_format` that was asked for",
            "content": {CONTENT_TYPES[format].split(";")[0]: {} for format in FORMATS.values()},
        },
        **documented(400, 401, 408, 409, 413, 415, 429, 500, 503, 507),
    },
    openapi_extra=form(
        "MicroTranscribe", {"response_format": {"type": "string", "enum": [*FORMATS, ""], "default": "json"}}
    ),
)
async def transcribe(request: Request, client: Client) -> Response:
    format = Format.VERBOSE_JSON

    def translate(fields: Fields, _: bool) -> Fields:
        nonlocal format
        format = _format(fields)
        return _without_format(fields)

    async def answer(job: Job, result: str) -> Response:
        if format is Format.VERBOSE_JSON:
            said = await asyncio.to_thread(_result, job, result)
            return JSONResponse(said.model_dump())
        text = await asyncio.to_thread(lambda: render(format, parse_result(result)))
        return Response(text, headers={"Content-Type": CONTENT_TYPES[format]})

    return await answer_when_completed(request, client, answer, translate=translate)


@shared.post(
    "/api/v1/transcribe-async",
    status_code=202,
    summary="Submit a file",
    response_model=MicroAccepted,
    responses=documented(400, 401, 408, 409, 413, 415, 429, 503, 507),
    openapi_extra=form(
        "MicroTranscribeAsync",
        {
            "response_format": {
                "type": "string",
                "enum": [*FORMATS, ""],
                "default": "json",
                "description": "The status has the result as JSON; `message` says where the others are.",
            }
        },
    ),
)
async def transcribe_async(request: Request, client: Client) -> Response:
    format = Format.VERBOSE_JSON

    def translate(fields: Fields, _: bool) -> Fields:
        nonlocal format
        format = _format(fields)
        return _without_format(fields)

    job = (await take(request, client, translate)).job
    also = "" if format is Format.VERBOSE_JSON else f"; as {format}: GET /jobs/{job.id}/result?format={format}"
    said = MicroAccepted(
        job_id=job.id,
        status=STATUSES[job.state],
        message=f"the job was accepted and waits for its turn{also}",
        status_url=f"/api/v1/status/{job.id}",
        estimated_time=_estimated_time_s(context_of(request), job),
    )
    return JSONResponse(said.model_dump(), 202)


@shared.get(
    "/api/v1/status/{job_id}", summary="A job, with its result when it has one", responses=documented(401, 404, 503)
)
async def status(request: Request, client: Client, job_id: JobIdPath) -> MicroJob:
    context = context_of(request)
    job = await own_job(context, client, job_id)
    text = await context.jobs.result(job.id) if job.state is JobState.COMPLETED else None
    return _job(context, job, None if text is None else await asyncio.to_thread(_result, job, text))


@shared.get("/api/v1/jobs", summary="Jobs, newest first, without their texts", responses=documented(400, 401, 503))
async def jobs(
    request: Request,
    client: Client,
    status: Annotated[
        Status | Literal["cancelled"] | None, Query(description="`failed` has the cancelled, too")
    ] = None,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
) -> MicroJobs:
    context = context_of(request)
    states = tuple(state for state in JobState if status in (STATUSES[state], state.value))
    found = await context.jobs.newest(states=states, client=client, limit=page_size, skip=(page - 1) * page_size)
    return MicroJobs(
        jobs=[_job(context, job, None) for job in found],
        total=await context.jobs.count(states=states, client=client),
        page=page,
        page_size=page_size,
    )


@shared.post(
    "/api/v1/jobs/{job_id}/cancel",
    summary="Stop a job, waiting or running",
    response_model=Done,
    responses={202: {"model": Done, "description": "it is still being stopped"}, **documented(401, 404, 409, 503)},
)
async def cancel(request: Request, client: Client, job_id: JobIdPath) -> Response:
    stopped = (await cancel_job(request, client, job_id)).status_code == 200
    said = Done(message="the job was cancelled" if stopped else "the job is being stopped", job_id=job_id)
    return JSONResponse(said.model_dump(), 200 if stopped else 202)


@shared.delete(
    "/api/v1/jobs/{job_id}",
    summary="Remove a job, its audio and its result; stopped first if it runs",
    responses=documented(401, 404, 503),
)
async def delete(request: Request, client: Client, job_id: JobIdPath) -> Done:
    await delete_job(request, client, job_id)
    return Done(message="the job was deleted", job_id=job_id)


@shared.get("/api/v1/models", dependencies=[RequireKey], summary="The enabled models", responses=documented(401))
async def models(request: Request) -> MicroModels:
    context = context_of(request)
    held = {name for worker in context.scheduler.workers() for name in worker.loaded}
    try:
        current = context.catalogue.default(context.settings.default_model)
    except InvalidRequest:
        current = None
    return MicroModels(
        models=[
            MicroModel(
                name=model.name,
                size=None if model.size_bytes is None else f"{model.size_bytes // MB} MB",
                loaded=model.name in held,
                state=model.state.value,
            )
            for model in context.catalogue.statuses()
            if model.enabled
        ],
        current_model=current,
    )


@shared.get(
    "/api/v1/languages",
    dependencies=[RequireKey],
    summary="The languages that multilingual models know",
    responses=documented(401),
)
async def languages() -> LanguagePage:
    return LanguagePage(languages=[Language(code=code, name=name) for code, name in LANGUAGES.items()])


@shared.get(
    "/health/async",
    tags=["health"],
    summary="200 when jobs that are sent now would be kept and would run",
    responses={503: {"model": AsyncHealth, "description": "not now, and why"}},
)
async def async_health(request: Request, response: Response) -> AsyncHealth:
    said = await health.ready(request, response)
    return AsyncHealth(
        status="healthy" if said.reason is None else "unhealthy",
        checks={"database": said.database, "workers": context_of(request).scheduler.readiness().status == "ready"},
        message=said.reason,
    )


def _format(fields: Fields) -> Format:
    """Raises InvalidRequest."""
    said = next((value for value in fields.get("response_format", ()) if value), "json")
    if said not in FORMATS:
        known = ", ".join(FORMATS)
        raise InvalidRequest(f"response_format is one of {known}, not {said[:50]!r}", param="response_format")
    return FORMATS[said]


def _without_format(fields: Fields) -> Fields:
    return {name: values for name, values in fields.items() if name != "response_format"}


def _job(context: Context, job: Job, result: MicroResult | None) -> MicroJob:
    live = context.scheduler.live(job.id) if job.state is JobState.PROCESSING else None
    finished_at = rfc3339(job.finished_at)
    return MicroJob(
        job_id=job.id,
        status=STATUSES[job.state],
        progress=int(job.progress if live is None else live.progress),
        created_at=str(rfc3339(job.created_at)),
        started_at=rfc3339(job.started_at),
        completed_at=finished_at if job.state is JobState.COMPLETED else None,
        failed_at=finished_at if STATUSES[job.state] == "failed" else None,
        error=job.error_message,
        result=result,
    )


def _result(job: Job, stored: str) -> MicroResult:
    """A client that names the language gets 1 for its probability."""
    result = json.loads(stored)
    probability = result["language_probability"]
    return MicroResult(
        text=result["text"],
        language=result["language"],
        language_probability=1.0 if probability is None else probability,
        duration=result["duration"],
        segments=[
            MicroSegment(
                **{name: segment[name] for name in ("id", "start", "end", "text", "confidence")},
                words=[
                    MicroWord(**{name: word[name] for name in ("word", "start", "end", "confidence")})
                    for word in segment["words"]
                ],
            )
            for segment in result["segments"]
        ],
        processing_time=job.processing_time_s or 0.0,
    )


def _estimated_time_s(context: Context, job: Job) -> int:
    """Until the job has ended. As long as no speed was measured: what the audio itself takes."""
    estimate_s = 0.0 if job.state in TERMINAL else context.scheduler.estimated_end_s(job)
    return math.ceil((job.duration_s or 0.0) if estimate_s is None else estimate_s)
