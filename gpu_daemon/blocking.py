"""Blocking work on files, off the event loop."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


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


class Gathered(Generic[Item]):
    """Blocking work on one thing after the other: those that come while a thread is at it go to the next together.

    The way to a thread and back costs more than short work does.
    """

    def __init__(self, work: Callable[[Item], None]) -> None:
        """`work` raises nothing."""
        self._work = work
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._working: asyncio.Task[None] | None = None

    async def do(self, item: Item) -> None:
        """Done when it returns; done all the same when its caller is cancelled."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._working is None:
            self._working = asyncio.create_task(self._do_all())
        await done

    async def _do_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                items = [item for item, _ in batch]
                await asyncio.get_running_loop().run_in_executor(None, self._do, items)
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)
        finally:
            self._working = None

    def _do(self, items: list[Item]) -> None:
        for item in items:
            self._work(item)
