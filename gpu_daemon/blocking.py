"""Blocking work on files, off the event loop."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def blocking(work: Callable[[], T], *, on_cancel: Callable[[], None] | None = None) -> T:
    """As asyncio.to_thread, but a caller that is cancelled goes on only when the thread has ended.

    The thread may be writing to a file that the caller is about to close. `on_cancel` tells long work to stop.
    """
    context = contextvars.copy_context()
    thread = asyncio.get_running_loop().run_in_executor(None, lambda: context.run(work))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        await asyncio.wait({thread})
        if not thread.cancelled():
            thread.exception()  # nobody's business any more
        raise
