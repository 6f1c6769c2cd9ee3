"""The line to a client: is it still there while its job is being done?"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gpu_daemon.api.context import Context
from gpu_daemon.jobs.model import Job

Value = TypeVar("Value")


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


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
