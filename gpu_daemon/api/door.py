"""The door of the daemon, open from its first moment: whoever asks for its health is told that it starts."""

import asyncio
import contextlib

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gpu_daemon import __version__
from gpu_daemon.api.envelope import Envelope
from gpu_daemon.api.errors import refusal
from gpu_daemon.api.health import RETRY_AFTER_S
from gpu_daemon.api.schemas import Alive, Body, Health, Ready
from gpu_daemon.errors import Unavailable
from gpu_daemon.metrics import Metrics

PATIENCE_S = 20.0
"""Others than health wait for so long: most starts are over by then, and their clients need not come again."""
REASON = "the daemon is starting"
HEALTH: dict[str, tuple[int, Body]] = {
    "/health": (
        200,
        Health(
            status="starting",
            reason=REASON,
            version=__version__,
            gpu_available=None,
            device=None,
            gpu_name=None,
            models_loaded={"whisper": False, "pyannote": False},
            memory_total_gb=None,
            memory_available_gb=None,
            busy=False,
            current_job=None,
        ),
    ),
    "/health/live": (200, Alive()),
    "/health/ready": (503, Ready(status="not_ready", reason=REASON, database=False)),
}


class Door:
    """An ASGI app: the one that it leads to, and until there is one, word that there will be."""

    def __init__(self, metrics: Metrics) -> None:
        self._opened = asyncio.Event()
        self._behind: ASGIApp = Envelope(self._closed, metrics)

    def open(self, app: ASGIApp) -> None:
        self._behind = app
        self._opened.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._opened.is_set() and _health(scope) is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._opened.wait()
        await self._behind(scope, receive, send)

    async def _closed(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1013, "reason": REASON})
            return
        await _answer(scope)(scope, receive, send)


def _health(scope: Scope) -> tuple[int, Body] | None:
    """At the root, and below the base paths of services."""
    path = scope.get("path", "")
    return next((said for known, said in HEALTH.items() if path.endswith(known)), None)


def _answer(scope: Scope) -> Response:
    if (health := _health(scope)) is None or scope["method"] != "GET":
        starting = Unavailable(f"{REASON}; try again in a moment", retry_after_s=RETRY_AFTER_S, code="starting")
        return refusal(starting).enveloped()
    status, body = health
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return JSONResponse(body.model_dump(mode="json"), status, headers=headers)
