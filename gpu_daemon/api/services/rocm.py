"""Transcription and diarization for one client at a time, in the words of the ROCm service."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, Response

from gpu_daemon.api.access import Client, RequireKey
from gpu_daemon.api.context import context_of
from gpu_daemon.api.documents import form
from gpu_daemon.api.errors import MEANINGS, JobFailed, Refusal, refusal
from gpu_daemon.api.fields import flag
from gpu_daemon.api.health import health
from gpu_daemon.api.intake import Fields
from gpu_daemon.api.schemas import Body, Health, RunningJob
from gpu_daemon.api.services.waiting import answer_when_completed
from gpu_daemon.api.state import running_job
from gpu_daemon.errors import GpuDaemonError, InvalidRequest
from gpu_daemon.jobs.model import Job

BUSY = "Service occupé"
SPEAKER_FIELDS = ("hf_token", "num_speakers", "min_speakers", "max_speakers")
ONE_SPEAKER = "SPEAKER_00"
"""Of every segment where nobody asked who speaks."""


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
SPEAKERS: dict[str, dict[str, Any]] = {
    "hf_token": {"type": "string", "description": "Not needed where nobody asks who speaks."},
    "min_speakers": {"description": "Not looked at where nobody asks who speaks."},
    "max_speakers": {"description": "Not looked at where nobody asks who speaks."},
}

shared = APIRouter(tags=["ROCm service"], route_class=_Route)
"""Also at the root."""
own = APIRouter(tags=["ROCm service"], route_class=_Route)


@shared.post(
    "/process",
    summary="Transcribe, say who speaks, and answer with both",
    response_model=Processed,
    responses=SUBMISSION_ERRORS,
    openapi_extra=form(
        "Process", SPEAKERS | {"skip_diarization": {"type": "boolean", "enum": [True]}}, ["skip_diarization"]
    ),
)
async def process(request: Request, client: Client) -> Response:
    """Only with `skip_diarization=true` in this version: it cannot say yet who speaks."""

    async def answer(_: Job, result: str) -> Response:
        return JSONResponse(await asyncio.to_thread(_processed, result))

    return await answer_when_completed(request, client, answer, translate=_process_fields, refuse=_refused)


@shared.post(
    "/diarize",
    summary="Who speaks when; not in this version",
    response_model=Diarized,
    dependencies=[RequireKey],
    responses=errors(401, 501),
    openapi_extra=form("Diarize", SPEAKERS),
)
async def diarize(request: Request) -> Response:
    said = "diarization is not available in this version; POST /process with skip_diarization=true gives the transcript"
    return await _refused(request, Refusal(status=501, message=said, code="not_supported"))


@own.post(
    "/transcribe",
    summary="Transcribe, and answer with the transcript",
    response_model=Transcribed,
    responses=SUBMISSION_ERRORS,
    openapi_extra=form("RocmTranscribe", SPEAKERS),
)
async def transcribe(request: Request, client: Client) -> Response:
    async def answer(_: Job, result: str) -> Response:
        return JSONResponse(await asyncio.to_thread(_transcribed, result))

    return await answer_when_completed(request, client, answer, translate=_without_speakers, refuse=_refused)


@own.get("/status", summary="The job that runs", responses=errors(401))
async def status(request: Request, client: Client) -> RunningJob:
    return running_job(context_of(request), client)


@own.get("/health", summary="The GPU, the models, and the job that runs; always answered")
async def rocm_health(request: Request) -> RocmHealth:
    said = await health(request)
    words = {"ready": "ok"}
    return RocmHealth(**said.model_dump() | {"status": words.get(said.status, said.status)})


async def _refused(request: Request, refused: Refusal) -> Response:
    busy = refused.status == 503
    said = RocmError(
        error=BUSY if busy else refused.message,
        message=refused.message,
        code=refused.code,
        current_job=running_job(context_of(request), request.state.client) if busy else None,
    )
    return JSONResponse(said.model_dump(), refused.status, headers=refused.headers)


def _process_fields(fields: Fields, whole: bool) -> Fields:
    skips = flag(fields, "skip_diarization")
    if whole and not skips:
        raise InvalidRequest(
            "diarization is not available in this version; send skip_diarization=true for the transcript alone",
            code="not_supported",
            param="skip_diarization",
        )
    return {name: values for name, values in _without_speakers(fields, whole).items() if name != "skip_diarization"}


def _without_speakers(fields: Fields, _: bool) -> Fields:
    return {name: values for name, values in fields.items() if name not in SPEAKER_FIELDS}


def _processed(stored: str) -> dict[str, Any]:
    result = _transcribed(stored)
    segments = result["segments"]
    return {
        "text": result["text"],
        "segments": [
            {"start": each["start"], "end": each["end"], "speaker": ONE_SPEAKER, "text": each["text"]}
            for each in segments
        ],
        "transcription_segments": segments,
        "diarization_segments": [],
    }


def _transcribed(stored: str) -> dict[str, Any]:
    result = json.loads(stored)
    segments = [{name: each[name] for name in ("start", "end", "text")} for each in result["segments"]]
    return {"text": result["text"], "segments": segments}
