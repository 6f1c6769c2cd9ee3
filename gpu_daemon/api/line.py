"""The line to a client: is it still there while its job is being done?"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpu_daemon.api.context import Context
from gpu_daemon.jobs.model import Job

Value = TypeVar("Value")
UNBUFFERED = {"X-Accel-Buffering": "no"}
"""nginx would keep back what is sent until there is more of it."""


async def while_there(receive: Receive, work: Awaitable[Value]) -> Value:
    """What `work` comes to. Raises ClientDisconnect, and cancels it, when the client hangs up first.

    The request's body has been read.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def ended(context: Context, receive: Receive, job: Job, timeout_s: float | None) -> Job:
    """The job when it has ended or the time is over. Raises ClientDisconnect; the job goes on then. Raises NotFound."""
    return await while_there(receive, context.scheduler.wait(job.id, timeout_s))


class Streamed(Response):
    """What comes as it comes; when the client hangs up, `pieces` is closed, and ClientDisconnect is raised."""

    def __init__(
        self, pieces: AsyncGenerator[bytes], media_type: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(media_type=media_type, headers={**headers, **UNBUFFERED})
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await while_there(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                await more(send, piece)
        await more(send, b"", last=True)


async def more(send: Send, body: bytes, *, last: bool = False) -> None:
    """Of an answer that has begun."""
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
