"""Transcription and diarization for one client at a time, in the words of the ROCm service."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.responses import JSONResponse, Response

from gpu_daemon import clock
from gpu_daemon.api.access import Client
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.documents import form
from gpu_daemon.api.errors import MEANINGS, JobFailed, Refusal, refusal
from gpu_daemon.api.fields import flag
from gpu_daemon.api.health import health
from gpu_daemon.api.intake import Fields
from gpu_daemon.api.schemas import Body, Health, RunningJob
from gpu_daemon.api.services.waiting import answer_when_completed
from gpu_daemon.api.state import IDLE, running_job
from gpu_daemon.errors import GpuDaemonError, Unavailable
from gpu_daemon.jobs.model import Job, Task
from gpu_daemon.jobs.state import TERMINAL, JobState
from gpu_daemon.transcript.formats import UNKNOWN_SPEAKER, parse_result
from gpu_daemon.transcript.model import Segment

BUSY = "Service occupé"
NOT_BUSY = frozenset({"model_unavailable", "pipeline_unavailable"})
"""What is 503 and has nothing to do with other jobs."""
SPEAKER_FIELDS = ("hf_token", "num_speakers", "min_speakers", "max_speakers")
ONE_SPEAKER = "SPEAKER_00"
"""Of every segment where nobody asked who speaks, as there."""
END_SHOWN_FOR = timedelta(seconds=5)
"""In which a client that asks again and again sees `completed` or `error`; there it was 2 s."""
LOOKED_AT = 20
"""Jobs, the newest first; one that ends was seldom sent before so many others that have ended."""
LOOK_TIMEOUT_S = 1.0


class RocmError(Body):
    error: str
    message: str
    code: str | None
    current_job: RunningJob | None


class Piece(Body):
    start: float
    end: float
    text: str


class SpokenPiece(Piece):
    speaker: str


class Turn(Body):
    start: float
    end: float
    speaker: str


class Processed(Body):
    text: str
    segments: list[SpokenPiece]
    transcription_segments: list[Piece]
    diarization_segments: list[Turn]
    diarization_error: str | None = Field(description="why nobody knows who speaks; the transcript is whole")


class Transcribed(Body):
    text: str
    segments: list[Piece]


class Diarized(Body):
    segments: list[Turn]


class RocmHealth(Health):
    status: str  # type: ignore[assignment]


class _Route(APIRoute):
    """Its errors are this service's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except (GpuDaemonError, JobFailed, RequestValidationError) as error:
                return await _refused(request, refusal(error))

        return handled


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": RocmError, "description": MEANINGS[status]} for status in statuses}


SUBMISSION_ERRORS = errors(400, 401, 408, 409, 413, 415, 429, 500, 503, 507)
UNUSED: dict[str, dict[str, Any]] = {
    name: {"description": "Not looked at where nobody asks who speaks."} for name in SPEAKER_FIELDS
}

shared = APIRouter(tags=["ROCm service"], route_class=_Route)
"""Also at the root."""
own = APIRouter(tags=["ROCm service"], route_class=_Route)


@shared.post(
    "/process",
    summary="Transcribe, say who speaks, and answer with both",
    response_model=Processed,
    responses=SUBMISSION_ERRORS,
    openapi_extra=form("Process", {"skip_diarization": {"type": "boolean", "default": False}}),
)
async def process(request: Request, client: Client) -> Response:
    """A failure to tell who speaks costs nothing but that; with `skip_diarization=true` it is not tried."""

    async def answer(job: Job, result: str) -> Response:
        return JSONResponse(await asyncio.to_thread(_processed, result, diarized=job.options.diarize))

    return await answer_when_completed(request, client, answer, translate=_process_fields, refuse=_refused)


@shared.post(
    "/diarize",
    summary="Who speaks when, and not a word of what is said",
    response_model=Diarized,
    responses=SUBMISSION_ERRORS,
    openapi_extra=form("Diarize", {}),
)
async def diarize(request: Request, client: Client) -> Response:
    async def answer(_: Job, result: str) -> Response:
        return JSONResponse(await asyncio.to_thread(_diarized, result))

    return await answer_when_completed(request, client, answer, translate=_diarize_fields, refuse=_refused)


@own.post(
    "/transcribe",
    summary="Transcribe, and answer with the transcript",
    response_model=Transcribed,
    responses=SUBMISSION_ERRORS,
    openapi_extra=form("RocmTranscribe", UNUSED),
)
async def transcribe(request: Request, client: Client) -> Response:
    async def answer(_: Job, result: str) -> Response:
        return JSONResponse(await asyncio.to_thread(_transcribed, result))

    return await answer_when_completed(request, client, answer, translate=_without_speakers, refuse=_refused)


@own.get("/status", summary="The job that runs; for some seconds, how the last one ended", responses=errors(401))
async def status(request: Request, client: Client) -> RunningJob:
    return await latest_job(context_of(request), client)


@own.get("/health", summary="The GPU, the models, and the job that runs; always answered")
async def rocm_health(request: Request) -> RocmHealth:
    said = await health(request)
    words = {"ready": "ok"}
    return RocmHealth(**said.model_dump() | {"status": words.get(said.status, said.status)})


async def latest_job(context: Context, client: str | None) -> RunningJob:
    """The client's own that runs or has just ended, while another client's may run; idle as well where the database
    does not say in time."""
    running = running_job(context, client)
    if running.job_id is not None:
        return running
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            jobs = await context.jobs.newest(states=TERMINAL, client=client, limit=LOOKED_AT)
            last = max(jobs, key=lambda job: job.finished_at or job.created_at, default=None)
            if last is None or last.finished_at is None or clock.now() - last.finished_at > END_SHOWN_FOR:
                return running
            text = await context.jobs.result(last.id) if last.state is JobState.COMPLETED else None
    except (Unavailable, OSError, TimeoutError):
        return running
    return await asyncio.to_thread(_ended, last, text, busy=running.busy)


def _ended(job: Job, stored: str | None, *, busy: bool) -> RunningJob:
    """`stored`: the result of a job that is completed."""
    since_s = 0.0 if job.finished_at is None else (clock.now() - job.finished_at).total_seconds()
    details: dict[str, float] = {} if job.duration_s is None else {"audio_duration_seconds": job.duration_s}
    said = IDLE.model_copy(
        update={
            "busy": busy,
            "job_id": job.id,
            "filename": job.file_name,
            "stage": "error" if stored is None else "completed",
            "progress": round(job.progress, 1),
            "elapsed_seconds": round(job.processing_time_s or 0.0, 1),
            "stage_elapsed_seconds": round(max(0.0, since_s), 1),
            "error_message": job.error_message,
            "details": details,
        }
    )
    if stored is None:
        return said
    transcript = parse_result(stored)
    if job.options.diarize:
        details["speakers_detected"] = len({turn.speaker for turn in transcript.diarization_segments})
    heard = transcript.transcription_segments or transcript.segments
    counts = {"transcription_segments": len(heard), "diarization_segments": len(transcript.diarization_segments)}
    return said.model_copy(update=counts)


async def _refused(request: Request, refused: Refusal) -> Response:
    busy = refused.status == 503 and refused.code not in NOT_BUSY
    said = RocmError(
        error=BUSY if busy else refused.message,
        message=refused.message,
        code=refused.code,
        current_job=running_job(context_of(request), request.state.client) if busy else None,
    )
    return JSONResponse(said.model_dump(), refused.status, headers=refused.headers)


def _process_fields(fields: Fields, whole: bool) -> Fields:
    skips = flag(fields, "skip_diarization")
    ours = {name: values for name, values in fields.items() if name not in ("skip_diarization", "diarize")}
    return _without_speakers(ours, whole) if skips else ours | {"diarize": ["true"]}


def _diarize_fields(fields: Fields, _: bool) -> Fields:
    return {**fields, "task": [Task.DIARIZE.value], "diarize": ["true"]}


def _without_speakers(fields: Fields, _: bool) -> Fields:
    return {name: values for name, values in fields.items() if name not in SPEAKER_FIELDS}


def _processed(stored: str, *, diarized: bool) -> dict[str, Any]:
    transcript = parse_result(stored)
    nobody = UNKNOWN_SPEAKER if diarized else ONE_SPEAKER
    heard = transcript.transcription_segments or transcript.segments
    return {
        "text": transcript.text,
        "segments": [_piece(segment) | {"speaker": segment.speaker or nobody} for segment in transcript.segments],
        "transcription_segments": [_piece(segment) for segment in heard],
        "diarization_segments": [turn.model_dump() for turn in transcript.diarization_segments],
        "diarization_error": None if transcript.diarization is None else transcript.diarization.error,
    }


def _diarized(stored: str) -> dict[str, Any]:
    return {"segments": [turn.model_dump() for turn in parse_result(stored).diarization_segments]}


def _transcribed(stored: str) -> dict[str, Any]:
    transcript = parse_result(stored)
    return {"text": transcript.text, "segments": [_piece(segment) for segment in transcript.segments]}


def _piece(segment: Segment) -> dict[str, Any]:
    return {"start": segment.start, "end": segment.end, "text": segment.text}
