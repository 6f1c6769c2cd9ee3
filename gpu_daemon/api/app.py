"""The app: every router, in the order of its documentation."""

from typing import Any

from fastapi import FastAPI

from gpu_daemon import __version__
from gpu_daemon.api import (
    callbacks,
    dashboard,
    documents,
    errors,
    events,
    health,
    history,
    jobs,
    metrics,
    openai,
    operations,
    pages,
    results,
    submit,
)
from gpu_daemon.api.attendance import Attendance
from gpu_daemon.api.context import Context
from gpu_daemon.api.envelope import Envelope
from gpu_daemon.api.intake import Intake
from gpu_daemon.api.live import Live
from gpu_daemon.api.rate_limit import RateLimit
from gpu_daemon.api.services import cuda, micro, rocm, rq, scale
from gpu_daemon.api.shortcut import Shortcut
from gpu_daemon.api.tickets import Tickets
from gpu_daemon.errors import InvalidRequest, SettingsError
from gpu_daemon.jobs.languages import language_code

ROUTERS = {
    "": (
        submit.router,
        jobs.router,
        results.router,
        events.router,
        openai.router,
        callbacks.router,
        cuda.router,
        rq.shared,
        health.router,
        metrics.router,
        operations.router,
        dashboard.router,
        history.router,
        rocm.shared,
        micro.shared,
        scale.shared,
    ),
    "/services/rocm": (rocm.shared, rocm.own),
    "/services/micro": (micro.shared, health.router),
    "/services/rq": (rq.shared, rq.own, health.router),
    "/services/scale": (
        submit.router,
        jobs.router,
        results.router,
        events.router,
        scale.shared,
        health.router,
        metrics.router,
    ),
}
"""By base path. A service has one of its own: there it may call things by names that mean others at the root."""


def create_app(context: Context) -> FastAPI:
    """Raises SettingsError."""
    _check_default_language(context)
    app = _routed()
    app.state.context = context
    app.state.intake = Intake(context)
    app.state.attendance = Attendance(context)
    app.state.live = Live(context)
    app.state.tickets = Tickets()
    app.state.rate_limit = RateLimit(context.settings.rate_limit_per_minute)
    described = documents.openapi(app, ROUTERS)
    pages.install(app, described)
    errors.install(app, described)
    app.add_middleware(Shortcut)
    app.add_middleware(Envelope, metrics=context.metrics)  # around the one before
    return app


def document() -> dict[str, Any]:
    """OpenAPI's, which is the same whatever the daemon runs with."""
    return documents.openapi(_routed(), ROUTERS)


def _routed() -> FastAPI:
    app = FastAPI(
        title="gpu_daemon",
        version=__version__,
        summary="Speech to text on your own GPU: a queue, Whisper, callbacks.",
        description=documents.DESCRIPTION,
        openapi_tags=documents.TAGS,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    for base_path, routers in ROUTERS.items():
        for router in routers:
            app.include_router(router, prefix=base_path)
    return app


def _check_default_language(context: Context) -> None:
    try:
        language_code(context.settings.default_language)
    except InvalidRequest as error:
        raise SettingsError(f"DEFAULT_LANGUAGE: {error.message}") from error
