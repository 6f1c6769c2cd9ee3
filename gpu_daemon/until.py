"""Work that ends when something else happens, without a task for either."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def until(told: "asyncio.Future[None]", error: Callable[[], Exception]) -> AsyncIterator[None]:
    """What is done in it is cancelled once `told` is done, and `error()` is raised in its place.

    Work that has ended by then has ended: its outcome stands.
    """
    if told.done():
        raise error()
    loop, over = asyncio.get_running_loop(), False

    def stop(_: object) -> None:
        if not over:
            scope.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as scope:
            told.add_done_callback(stop)
            try:
                yield
            finally:
                over = True
                told.remove_done_callback(stop)
    except TimeoutError:
        if scope.expired():
            raise error() from None
        raise
