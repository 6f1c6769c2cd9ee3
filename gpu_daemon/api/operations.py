"""For those who run the daemon: models and workers."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from gpu_daemon.api.access import Client, RequireKey
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.schemas import (
    Draining,
    Language,
    LanguagePage,
    ModelPage,
    ModelView,
    WorkerPage,
    WorkerView,
)
from gpu_daemon.api.state import health_reason, model_view, worker_views
from gpu_daemon.errors import InvalidRequest, NotFound, TooLarge
from gpu_daemon.jobs.languages import LANGUAGES

router = APIRouter(tags=["operations"])
MAX_JSON_BYTES = 64 * 1024
WorkerIndex = Annotated[int, Path()]


@router.get(
    "/models",
    dependencies=[RequireKey],
    summary="The catalogue: what is enabled, usable, downloading",
    responses=documented(401),
)
async def models(request: Request) -> ModelPage:
    return ModelPage(models=[model_view(model) for model in context_of(request).catalogue.statuses()])


class ModelChange(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    enabled: bool


@router.patch(
    "/models/{name}",
    dependencies=[RequireKey],
    summary="Enable or disable a model",
    responses=documented(400, 401, 404, 409, 413, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": ModelChange.model_json_schema()}}}
    },
)
async def change_model(request: Request, name: Annotated[str, Path()]) -> ModelView:
    """Enabling one that failed to download tries it again at once."""
    catalogue = context_of(request).catalogue
    change = await _model_change(request)
    if catalogue.status(name) is None or not await catalogue.enable(name, change.enabled):
        raise NotFound(f"there is no model {name[:50]!r} in the catalogue", code="model_not_found", param="name")
    if change.enabled:
        catalogue.retry(name)
    changed = catalogue.status(name)
    if changed is None:
        raise NotFound(f"the model {name[:50]!r} is gone", code="model_not_found", param="name")
    return model_view(changed)


async def _model_change(request: Request) -> ModelChange:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise TooLarge("the body is too large")
    try:
        return ModelChange.model_validate_json(bytes(body))
    except ValidationError:
        raise InvalidRequest('send {"enabled": true} or {"enabled": false} as JSON', param="enabled") from None


@router.get(
    "/languages",
    dependencies=[RequireKey],
    summary="The languages that multilingual models know",
    responses=documented(401),
)
async def languages() -> LanguagePage:
    return LanguagePage(languages=[Language(code=code, name=name) for code, name in LANGUAGES.items()])


@router.get("/workers", summary="One per device: what each does", responses=documented(401))
async def workers(request: Request, client: Client) -> WorkerPage:
    return WorkerPage(workers=worker_views(context_of(request), client))


@router.post(
    "/workers/{index}/drain", summary="Let it finish its job and take no other", responses=documented(400, 401, 404)
)
async def drain_worker(request: Request, client: Client, index: WorkerIndex) -> WorkerView:
    """Its runner stays, with the models it holds. Until it is resumed, or the daemon starts again."""
    context = context_of(request)
    context.scheduler.worker(index).drain()
    return worker_views(context, client)[index]


@router.post(
    "/workers/{index}/resume",
    summary="Let it take jobs again, also after a quarantine",
    responses=documented(400, 401, 404, 409),
)
async def resume_worker(request: Request, client: Client, index: WorkerIndex) -> WorkerView:
    context = context_of(request)
    context.scheduler.worker(index).resume()
    return worker_views(context, client)[index]


@router.post(
    "/workers/{index}/unload",
    summary="Drop its models from memory",
    responses=documented(400, 401, 404, 409, 503),
)
async def unload_worker(request: Request, client: Client, index: WorkerIndex) -> WorkerView:
    """The next job loads what it needs. 409 while a job runs."""
    context = context_of(request)
    await context.scheduler.worker(index).unload()
    return worker_views(context, client)[index]


@router.post(
    "/drain",
    dependencies=[RequireKey],
    summary="Refuse new jobs and finish those that wait or run",
    responses=documented(401),
)
async def drain(request: Request) -> Draining:
    """Until it is resumed, or the daemon starts again."""
    context = context_of(request)
    context.scheduler.drain_all()
    return _draining(context)


@router.post("/resume", dependencies=[RequireKey], summary="Take new jobs again", responses=documented(401, 409))
async def resume(request: Request) -> Draining:
    context = context_of(request)
    context.scheduler.resume_all()
    return _draining(context)


def _draining(context: Context) -> Draining:
    scheduler = context.scheduler
    return Draining(
        health=health_reason(context), queued=len(scheduler.queued_ids()), running=len(scheduler.running_ids())
    )
