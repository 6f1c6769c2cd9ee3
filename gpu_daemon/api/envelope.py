"""Around every request: its id, the headers that protect a browser, and an answer when our own code breaks."""

import asyncio
import contextlib
import re

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_daemon import clock
from gpu_daemon.api.errors import internal_error
from gpu_daemon.api.shortcut import TEMPLATE
from gpu_daemon.logs import log
from gpu_daemon.metrics import Metrics
from gpu_daemon.unique import uuid4

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
UNREAD_BYTES = 1 << 20
"""So much of a body that was refused is worth reading to keep the connection."""
LINGER_S = 5.0
"""A connection that is closed while its client still sends is reset, and many a client loses the answer with it: so
what comes is read on for so long, and dropped."""
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Unless the route says otherwise."""


METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Envelope:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = clock.monotonic()
        said = Headers(scope=scope).get("x-request-id", "")
        request_id = said if REQUEST_ID.fullmatch(said) else f"req_{uuid4().hex}"
        body = _Body(scope, receive)
        begun = False
        heads_only = scope["method"] == "HEAD"
        if heads_only:  # every GET has its HEAD
            scope = {**scope, "method": "GET"}

        async def send_more(message: Message) -> None:
            nonlocal begun
            if heads_only and begun:
                return
            if message["type"] == "http.response.start":
                begun = True
                self._count(scope, message["status"], clock.monotonic() - began_s)
                headers = message.get("headers", [])
                said_already = {name for name, _ in headers}
                added = [(b"x-request-id", request_id.encode())]
                if body.worth_dropping:
                    added.append((b"connection", b"close"))
                added += [header for header in HEADERS if header[0] not in said_already]
                message = {**message, "headers": [*headers, *added]}
            elif message["type"] == "http.response.body" and not message.get("more_body") and body.worth_dropping:
                await send({**message, "more_body": True})
                await body.linger()
                message = {"type": "http.response.body", "body": b""}
            await send(message)
            if heads_only:
                await send({"type": "http.response.body", "body": b""})

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, body.receive, send_more)
            except ClientDisconnect:
                log.info("request.abandoned", method=scope["method"], path=scope["path"])
            except Exception:
                log.exception("request.broke", method=scope["method"], path=scope["path"])
                if begun:
                    raise
                await internal_error()(scope, receive, send_more)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """By the route as it is declared; what comes to none is one of its own, whatever was asked for."""
        # FastAPI keeps a route of an included router with its prefix here; scope["route"] has it without.
        declared = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
        route = scope.get(TEMPLATE) or getattr(declared, "path", None) or "other"
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.answered(method, route, status, seconds)


class _Body:
    """How much of it was not read: a client that is refused early must not go on sending gigabytes."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        self._receive = receive
        self._left_bytes = int(length) if length.isdecimal() else None
        self._ended = not length and "transfer-encoding" not in headers
        self._asks_first = "expect" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._asks_first = False
            self._ended = not message.get("more_body", False)
            if self._left_bytes is not None:
                self._left_bytes -= len(message.get("body", b""))
        return message

    async def linger(self) -> None:
        if self._asks_first:  # and was never told to go on
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._ended and (await self.receive())["type"] == "http.request":
                    pass

    @property
    def worth_dropping(self) -> bool:
        """The connection, rather than read what is left."""
        if self._ended:
            return False
        return self._asks_first or self._left_bytes is None or self._left_bytes > UNREAD_BYTES
