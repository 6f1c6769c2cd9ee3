import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gpu_daemon.blocking import Gathered


class Threads(ThreadPoolExecutor):
    """Counts what they are given."""

    given = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.given += 1
        return super().submit(*arguments, **named)


async def test_what_comes_while_a_thread_works_is_done_by_the_next_together() -> None:
    loop, threads = asyncio.get_running_loop(), Threads()
    loop.set_default_executor(threads)
    began, go_on = asyncio.Event(), threading.Event()
    done: list[int] = []

    def work(item: int) -> None:
        loop.call_soon_threadsafe(began.set)
        assert go_on.wait(10)
        done.append(item)

    gathered = Gathered(work)
    first = asyncio.create_task(gathered.do(0))
    await began.wait()
    others = [asyncio.create_task(gathered.do(item)) for item in range(1, 5)]
    await asyncio.sleep(0)
    others[1].cancel()
    go_on.set()
    await asyncio.wait([first, *others])
    assert [other.cancelled() for other in others] == [False, True, False, False]
    assert (done, threads.given) == ([0, 1, 2, 3, 4], 2), "whether he who asked still waits for it or not"
    await gathered.do(5)
    assert (done[-1], threads.given) == (5, 3)
