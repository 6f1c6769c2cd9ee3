"""Past FastAPI to the one route that short jobs come by in numbers: its layers take as long as all our own work there.

The route is among FastAPI's all the same: so it is in the OpenAPI document, and so are its errors' answers the same.
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gpu_daemon.api.access import client_of
from gpu_daemon.api.errors import refusal
from gpu_daemon.api.submit import PATH, transcribe
from gpu_daemon.errors import GpuDaemonError

TEMPLATE = "gpu_daemon.route"
"""In the scope: the route, where FastAPI was passed by."""


class Shortcut:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope[TEMPLATE] = PATH
        request = Request(scope, receive, send)
        try:
            response = await transcribe(request, client_of(request))
        except GpuDaemonError as error:
            response = refusal(error).enveloped()
        await response(scope, receive, send)
