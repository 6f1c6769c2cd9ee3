"""The page's state by WebSocket and by polling, and the callbacks that have not arrived."""

import asyncio
import contextlib
import json
from typing import Any, cast

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from starlette.responses import Response

from gpu_daemon.api.access import Client, client_of, client_of_keys, has_key
from gpu_daemon.api.context import context_of
from gpu_daemon.api.errors import documented, refusal
from gpu_daemon.api.live import TICK_S, Live, Viewer
from gpu_daemon.api.schemas import DashboardState, PendingCallback, PendingCallbacks
from gpu_daemon.clock import rfc3339
from gpu_daemon.errors import Forbidden, GpuDaemonError, Unauthorized, Unavailable

router = APIRouter(tags=["operations"])
KEY_TIMEOUT_S = 5.0
MOST_CALLBACKS = 100
MOST_VIEWERS = 2000
NOT_UNDERSTOOD, NO_KEY = 4400, 4401
"""Codes that a WebSocket is closed with."""
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@router.get(
    "/dashboard/state",
    response_model=DashboardState,
    summary="What the page shows; `WS /ws/dashboard` sends the same as it changes",
    responses=documented(401),
)
async def state(request: Request, client: Client) -> Response:
    return Response(await live_of(request).document(client), media_type="application/json")


@router.get(
    "/dashboard/callbacks",
    summary="Callbacks that wait or were given up, newest first; the client's own",
    responses=documented(401, 503),
)
async def callbacks(request: Request, client: Client) -> PendingCallbacks:
    """`POST /jobs/{id}/callbacks/redeliver` sends one again."""
    undelivered = await context_of(request).callbacks.undelivered(client=client, limit=MOST_CALLBACKS)
    return PendingCallbacks(
        callbacks=[
            PendingCallback(
                job_id=one.job_id,
                state="pending" if one.state == "pending" else "dead",
                attempts=one.attempts,
                next_attempt_at=rfc3339(one.next_attempt_at) if one.state == "pending" else None,
                last_error=one.last_error,
                host=one.host,
            )
            for one in undelivered
        ]
    )


def live_of(connection: Request | WebSocket) -> Live:
    return cast(Live, connection.app.state.live)


@router.websocket("/ws/dashboard")
async def watch(socket: WebSocket) -> None:
    """Closed with 4401 for want of a key, 4400 for what is no message of ours, 1012 when the daemon stops."""
    live = live_of(socket)
    try:
        _check_origin(socket)
        if live.viewers >= MOST_VIEWERS:
            raise Unavailable("too many watch already", retry_after_s=60, code="too_many_viewers")
        asks_for_key = bool(context_of(socket).settings.api_keys) and not has_key(socket)
        client = None if asks_for_key else client_of(socket)
    except GpuDaemonError as error:
        await socket.send_denial_response(refusal(error).enveloped())
        return
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        try:
            if asks_for_key:
                client = await _introduced(socket)
            async with live.viewer(client) as viewer:
                await _serve(socket, viewer)
        except _Misspoken as error:
            await socket.close(error.code, error.reason)


class _Misspoken(Exception):
    """What the client sends, or does not send, ends the conversation."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def _check_origin(socket: WebSocket) -> None:
    """A page of another site may open a WebSocket from its reader's browser, which says where the page is from.

    What is not a browser sends no Origin. Raises Forbidden.
    """
    origin = socket.headers.get("origin")
    if origin is None:
        return
    scheme, _, host = origin.lower().partition("://")
    port = DEFAULT_PORTS.get(scheme, "")
    if not host or host.removesuffix(port) != socket.headers.get("host", "").lower().removesuffix(port):
        raise Forbidden("a page of another site may not watch this daemon", code="foreign_origin")


async def _introduced(socket: WebSocket) -> str:
    """The client that the key in its first message names. Raises _Misspoken."""
    try:
        async with asyncio.timeout(KEY_TIMEOUT_S):
            message = await _message(socket)
    except TimeoutError:
        raise _Misspoken(NO_KEY, f"no key came within {KEY_TIMEOUT_S:.0f} s") from None
    key = message.get("key")
    if message.get("type") != "key" or not isinstance(key, str):
        raise _Misspoken(NO_KEY, 'the first message must be {"type": "key", "key": "..."}')
    try:
        return client_of_keys(context_of(socket).settings, [key.encode(errors="surrogatepass")])
    except Unauthorized as error:
        raise _Misspoken(NO_KEY, error.message) from None


async def _message(socket: WebSocket) -> dict[str, Any]:
    """The next one. Raises _Misspoken, WebSocketDisconnect."""
    received = await socket.receive()
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(received.get("code", 1005))
    try:
        message = json.loads(received.get("text") or "")
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _Misspoken(NOT_UNDERSTOOD, "a message is a JSON object in a text frame")
    return message


async def _serve(socket: WebSocket, viewer: Viewer) -> None:
    """Until the client is gone. Raises WebSocketDisconnect, _Misspoken."""
    tasks = asyncio.create_task(_tell(socket, viewer)), asyncio.create_task(_hear(socket, viewer))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _tell(socket: WebSocket, viewer: Viewer) -> None:
    async for frame in viewer.frames():
        await socket.send_text(frame)


async def _hear(socket: WebSocket, viewer: Viewer) -> None:
    while True:
        message = await _message(socket)
        if message.get("type") == "snapshot":
            viewer.resync()
            await asyncio.sleep(TICK_S)  # nothing is read meanwhile: nobody has snapshots made by the thousand
        elif message.get("type") != "key":  # one that is not asked for: where no keys are configured any is let in
            raise _Misspoken(NOT_UNDERSTOOD, "a message is of type snapshot")
