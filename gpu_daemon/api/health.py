"""Is it alive, is it ready: answered from memory, within milliseconds, whatever the GPUs do. Open to all."""

from fastapi import APIRouter, Request, Response

from gpu_daemon import __version__
from gpu_daemon.api.context import context_of
from gpu_daemon.api.schemas import Alive, Health, Ready
from gpu_daemon.api.state import health_but_disk, health_reason, running_job
from gpu_daemon.errors import DiskFull
from gpu_daemon.gpu.reading import GpuReading
from gpu_daemon.runner.protocol import PIPELINE
from gpu_daemon.scheduling.admission import check_disk

router = APIRouter(tags=["health"])
RETRY_AFTER_S = 5


@router.get("/health", summary="starting, ready, draining or error, and why")
async def health(request: Request) -> Health:
    """Always 200, and never asks the database: it says what the daemon knows of itself."""
    context = context_of(request)
    readiness = health_reason(context)
    workers = context.scheduler.workers()
    gpus = [worker.device for worker in workers if worker.device.kind != "cpu"]
    loaded = {name for worker in workers for name in worker.loaded}
    reading = next(iter(context.telemetry.latest().values()), GpuReading())
    running = running_job(context, None)
    shown = running.busy and not context.settings.api_keys
    return Health(
        status=readiness.status,
        reason=readiness.reason,
        version=__version__,
        gpu_available=bool(gpus),
        device="cuda" if gpus else "cpu",
        gpu_name=gpus[0].name if gpus else None,
        models_loaded={
            "whisper": any(not name.startswith(PIPELINE) for name in loaded),
            "pyannote": any(name.startswith(PIPELINE) for name in loaded),
        },
        memory_total_gb=_gib(reading.vram_total_mb),
        memory_available_gb=_gib(reading.vram_free_mb),
        busy=running.busy,
        current_job=running if shown else None,
    )


@router.get("/health/live", summary="200 while the event loop runs")
async def live() -> Alive:
    return Alive()


@router.get(
    "/health/ready",
    summary="200 when a job sent now would run",
    responses={503: {"model": Ready, "description": "not now, and why"}},
)
async def ready(request: Request, response: Response) -> Ready:
    context = context_of(request)
    database = await context.database_answers()
    reason = health_but_disk(context).reason if database else "the database does not answer"
    try:
        check_disk(context.settings, None)
    except DiskFull as error:
        reason = reason or error.message
    is_ready = reason is None
    if not is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return Ready(
        status="ready" if is_ready else "not_ready",
        reason=reason,
        database=database,
    )


def _gib(size_mb: float | None) -> float | None:
    return None if size_mb is None else round(size_mb / 1024, 2)
