"""The app: every router, in the order of its documentation."""

from fastapi import FastAPI

from gpu_daemon import __version__
from gpu_daemon.api import (
    callbacks,
    documents,
    errors,
    events,
    health,
    jobs,
    operations,
    pages,
    results,
    services,
    submit,
)
from gpu_daemon.api.attendance import Attendance
from gpu_daemon.api.context import Context
from gpu_daemon.api.envelope import Envelope
from gpu_daemon.api.intake import Intake
from gpu_daemon.api.rate_limit import RateLimit
from gpu_daemon.errors import InvalidRequest, SettingsError
from gpu_daemon.jobs.languages import language_code

ROUTERS = (
    submit.router,
    jobs.router,
    results.router,
    events.router,
    callbacks.router,
    services.router,
    health.router,
    operations.router,
)


def create_app(context: Context) -> FastAPI:
    """Raises SettingsError."""
    _check_default_language(context)
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
    app.state.context = context
    app.state.intake = Intake(context)
    app.state.attendance = Attendance(context)
    app.state.rate_limit = RateLimit(context.settings.rate_limit_per_minute)
    for router in ROUTERS:
        app.include_router(router)
    document = documents.openapi(app)
    pages.install(app, document)
    errors.install(app, document)
    app.add_middleware(Envelope)
    return app


def _check_default_language(context: Context) -> None:
    try:
        language_code(context.settings.default_language)
    except InvalidRequest as error:
        raise SettingsError(f"DEFAULT_LANGUAGE: {error.message}") from error
