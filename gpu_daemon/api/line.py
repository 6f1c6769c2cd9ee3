"""The line to a client: is it still there while its job is being done?"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpu_daemon.api.context import Context
from gpu_daemon.errors import NotFound
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import TERMINAL, JobState
from gpu_daemon.until import until

Value = TypeVar("Value")
UNBUFFERED = {"X-Accel-Buffering": "no"}
"""nginx would keep back what is sent until there is more of it."""
QUIET_S = 25.0
"""After so long without a byte, proxies begin to give up (30 to 100 seconds)."""
DRIP_S = 15.0

Answer = Callable[[Job], Awaitable[Response]]
"""To the client of a job that has ended."""


async def while_there(receive: Receive, work: Awaitable[Value]) -> Value:
    """What `work` comes to. Raises ClientDisconnect, and cancels it, when the client hangs up first.

    The request's body has been read.
    """
    gone = asyncio.create_task(_gone(receive))
    try:
        async with until(gone, ClientDisconnect):
            return await work
    finally:
        gone.cancel()


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


class Dripping(Response):
    """JSON for a client that has waited for long already: blanks come before it while the job goes on.

    The status is said before it is known: a job that does not complete then ends the line without an end of the answer.
    Clients take that for a broken connection, and those that try again hear what became of the job.
    """

    def __init__(self, context: Context, job: Job, make: Answer, headers: Mapping[str, str]) -> None:
        super().__init__(media_type="application/json", headers={**headers, **UNBUFFERED})
        del self.headers["content-length"]
        self._context = context
        self._job = job
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while True:
            await more(send, b" ")
            try:
                job = await ended(self._context, receive, self._job, DRIP_S)
            except NotFound:
                return
            if job.state is JobState.COMPLETED:
                await more(send, bytes((await self._make(job)).body), last=True)
            if job.state in TERMINAL:
                return


async def more(send: Send, body: bytes, *, last: bool = False) -> None:
    """Of an answer that has begun."""
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
