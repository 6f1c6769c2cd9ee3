"""Calls into a GPU driver, which may hang for ever."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class DriverHangs(Exception):
    """The driver did not answer in time. Its thread is left behind: nothing can end a thread that sits in a driver."""


async def driver_call(function: Callable[[], T], *, timeout_s: float) -> T:
    """`function`'s result, from a thread of its own that the process does not wait for when it ends.

    Raises DriverHangs, and what `function` raises. `asyncio.to_thread` would not do: a hung thread would keep its
    pool, and with it the daemon, from ending.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]  # T may itself be optional

    def run() -> None:
        value: T | None = None
        error: Exception | None = None
        try:
            value = function()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="gpu-driver", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError:
        raise DriverHangs(f"the GPU driver did not answer within {timeout_s:g} s") from None
