"""OpenAI's audio API: their official clients work against this daemon after a change of their base URL."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from gpu_daemon.api.access import Client, RequireKey
from gpu_daemon.api.attendance import Attendance
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.errors import JobFailed, documented, refusal
from gpu_daemon.api.following import follow
from gpu_daemon.api.intake import JSON_TYPE
from gpu_daemon.api.openai_answer import Teller, json_body, verbose_body
from gpu_daemon.api.openai_documents import TRANSCRIPTION, TRANSLATION, OpenAIModel, OpenAIModels
from gpu_daemon.api.openai_request import ALIAS, ALIASES, Reader, Wanted
from gpu_daemon.api.results import CONTENT_TYPES, rendered
from gpu_daemon.api.sse import DONE, KEEP_ALIVE, KEEP_ALIVE_S, MEDIA_TYPE, message
from gpu_daemon.errors import GpuDaemonError, InvalidRequest, NotFound
from gpu_daemon.jobs.model import Job, JobId, Task
from gpu_daemon.jobs.state import JobState
from gpu_daemon.transcript.formats import Format, parse_result
from gpu_daemon.transcript.model import Transcript

router = APIRouter(prefix="/v1", tags=["openai"])
OWNER = "gpu_daemon"
NOT_AGAIN = {"x-should-retry": "false"}
"""OpenAI's clients obey it: what failed here has been tried as often as it may be."""
REFUSALS = documented(400, 401, 404, 408, 409, 413, 415, 429, 500, 503, 507)


@router.post(
    "/audio/transcriptions",
    summary="Speech to text, as OpenAI's API has it",
    response_class=Response,
    responses=REFUSALS,
    openapi_extra=TRANSCRIPTION,
)
async def transcriptions(request: Request, client: Client) -> Response:
    """Answered when the job is done; a client that hangs up cancels it."""
    return await _answered(request, client, Task.TRANSCRIBE)


@router.post(
    "/audio/translations",
    summary="Speech to English text, as OpenAI's API has it",
    response_class=Response,
    responses=REFUSALS,
    openapi_extra=TRANSLATION,
)
async def translations(request: Request, client: Client) -> Response:
    """Answered when the job is done; a client that hangs up cancels it."""
    return await _answered(request, client, Task.TRANSLATE)


@router.get(
    "/models",
    dependencies=[RequireKey],
    summary="The enabled models, and OpenAI's names for the default one",
    responses=documented(401),
)
async def models(request: Request) -> OpenAIModels:
    return OpenAIModels(data=_models(context_of(request)))


@router.get(
    "/models/{model:path}",
    dependencies=[RequireKey],
    summary="One model",
    responses=documented(401, 404),
)
async def model(request: Request, model: Annotated[str, Path()]) -> OpenAIModel:
    known = {each.id: each for each in _models(context_of(request))}
    if model not in known and ALIAS.fullmatch(model) and ALIASES[0] in known:
        return known[ALIASES[0]].model_copy(update={"id": model})
    if model not in known:
        raise NotFound(f"there is no model {model[:50]!r} here", code="model_not_found", param="model")
    return known[model]


def _models(context: Context) -> list[OpenAIModel]:
    created = int(context.started_at.timestamp())
    enabled = [model.name for model in context.catalogue.statuses() if model.enabled]
    try:
        default = context.catalogue.default(context.settings.default_model)
    except InvalidRequest:  # there are several, and none is the default
        default = None
    found = [OpenAIModel(id=name, created=created, owned_by=OWNER) for name in enabled]
    if default in enabled:
        found += [
            OpenAIModel(id=alias, created=created, owned_by=OWNER, alias_of=default)
            for alias in ALIASES
            if alias not in enabled
        ]
    return found


async def _answered(request: Request, client: str | None, task: Task) -> Response:
    context = context_of(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON_TYPE:
        raise InvalidRequest("send the audio as multipart/form-data, in the field `file`", code="not_multipart")

    def enabled(name: str) -> bool:
        model = context.catalogue.status(name)
        return model is not None and model.enabled

    reader = Reader(task, enabled=enabled)
    attendance: Attendance = request.app.state.attendance
    attended = await attendance.take(request, client, reader)
    wanted = reader.wanted
    if wanted.stream:
        return attended.stream(_events(context, attended.taken.job, wanted), MEDIA_TYPE)
    return attended.answer(
        lambda job: _transcript(context, job, wanted), drips=CONTENT_TYPES[wanted.format] == JSON_TYPE
    )


async def _transcript(context: Context, job: Job, wanted: Wanted) -> Response:
    if job.state is not JobState.COMPLETED:
        answer = refusal(JobFailed(job)).enveloped()
        answer.headers.update(NOT_AGAIN)
        return answer
    text = await asyncio.to_thread(_written, await _stored(context, job.id), wanted)
    return Response(text, headers={"Content-Type": CONTENT_TYPES[wanted.format]})


def _written(stored: str, wanted: Wanted) -> str:
    """A long result takes a while to read and to write: in a thread."""
    transcript = parse_result(stored)
    match wanted.format:
        case Format.JSON:
            return _json(json_body(transcript, wanted))
        case Format.VERBOSE_JSON:
            return _json(verbose_body(transcript, wanted))
        case _:
            return rendered(wanted.format, transcript, wanted.cues)


async def _events(context: Context, job: Job, wanted: Wanted) -> AsyncGenerator[bytes]:
    teller = Teller(wanted.format, diarizes=job.options.diarize, logprobs=wanted.logprobs)
    yield KEEP_ALIVE
    try:
        async with aclosing(follow(context, job, every_s=KEEP_ALIVE_S)) as looks:
            async for look in looks:
                if look is None:
                    yield KEEP_ALIVE
                    continue
                job = look.job
                for event in teller.heard(look.segments):
                    yield message(event)
        if job.state is not JobState.COMPLETED:
            raise JobFailed(job)
        transcript: Transcript = await asyncio.to_thread(parse_result, await _stored(context, job.id))
    except (JobFailed, GpuDaemonError) as error:
        yield message(json.loads(bytes(refusal(error).enveloped().body)))
        return
    for event in teller.rest(transcript):
        yield message(event)
    yield DONE


async def _stored(context: Context, job_id: JobId) -> str:
    text = await context.jobs.result(job_id)
    if text is None:
        raise NotFound("the job was deleted")
    return text


def _json(said: dict[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False)
