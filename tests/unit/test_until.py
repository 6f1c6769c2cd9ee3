import asyncio

import pytest

from gpu_daemon.until import until


class Told(Exception):
    pass


def told() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


async def test_what_is_done_is_cancelled_when_it_is_told() -> None:
    future, began, cancelled = told(), asyncio.Event(), False

    async def work() -> None:
        nonlocal cancelled
        async with until(future, Told):
            try:
                began.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise

    working = asyncio.create_task(work())
    await began.wait()
    future.set_result(None)
    with pytest.raises(Told):
        await working
    assert cancelled


async def test_nothing_is_begun_when_it_was_told_before() -> None:
    future = told()
    future.set_result(None)
    with pytest.raises(Told):
        async with until(future, Told):
            pytest.fail("it was begun")


async def test_work_that_has_ended_stands() -> None:
    future = told()
    async with until(future, Told):
        future.set_result(None)
    await asyncio.sleep(0)  # whoever was to be told is called now


async def test_errors_of_the_work_are_its_own() -> None:
    with pytest.raises(TimeoutError, match="its own"):
        async with until(told(), Told):
            raise TimeoutError("its own")


async def test_a_task_that_is_cancelled_itself_stays_cancelled() -> None:
    began = asyncio.Event()

    async def work() -> None:
        async with until(told(), Told):
            began.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await began.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
