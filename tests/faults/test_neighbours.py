"""Several jobs in one runner: what one of them does, or has done to it, costs the others as little as can be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.database.pool import ConnectionParameters
from tests.running import CANCELLED_WITHIN_S, FAKE_ENGINE, RunningDaemon, running_daemon
from tests.serving import tone

EIGHT = FAKE_ENGINE | {"JOBS_PER_GPU": "8"}


class Room:
    """A daemon with one runner, and jobs in it."""

    def __init__(self, daemon: RunningDaemon, directory: Path) -> None:
        self.daemon = daemon
        self._audio = directory / "one.wav"
        self._audio.write_bytes(tone())
        self.go = directory / "go"
        """Held jobs wait for it."""

    async def submit(self, prompt: str = "", **fields: str) -> str:
        job_id: str = (await self.daemon.submit(self._audio, initial_prompt=prompt, **fields))["job_id"]
        return job_id

    async def begun(self, prompt: str) -> str:
        """A job, once the engine is at work on it."""
        job_id = await self.submit(prompt)
        async with asyncio.timeout(20):
            while (await self.daemon.job(job_id))["stage"] != "transcribing":
                await asyncio.sleep(0.02)
        return job_id

    async def held(self, count: int) -> list[str]:
        return [await self.begun(f"fake:until={self.go}") for _ in range(count)]

    async def worker(self) -> dict[str, Any]:
        worker: dict[str, Any] = (await self.daemon.json("/workers"))["workers"][0]
        return worker

    async def end(self, job_id: str) -> tuple[str, int, str | None]:
        job = await self.daemon.finished(job_id)
        return job["status"], job["attempt"], job["error"] and job["error"]["code"]

    async def cancel(self, job_id: str) -> float:
        """Seconds until it had ended, on the daemon's own clock."""
        response = await self.daemon.client.post(f"/jobs/{job_id}/cancel")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        return await self.daemon.cancel_took_s(job_id)


@asynccontextmanager
async def room(directory: Path, database: ConnectionParameters, **settings: str) -> AsyncIterator[Room]:
    async with running_daemon(directory, database, **EIGHT | settings) as daemon:
        await daemon.line("runner.ready")
        yield Room(daemon, directory)


async def test_a_job_that_kills_its_runners_takes_innocents_with_it_once(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with room(tmp_path, database) as here:
        innocents = await here.held(7)
        assert len((await here.worker())["jobs"]) == 7
        poison = await here.submit("fake:segv")
        await here.daemon.line("runner.died", job_id=poison)
        here.go.touch()
        assert await here.end(poison) == ("failed", 3, "runner_crashed")
        assert [await here.end(job_id) for job_id in innocents] == [("completed", 2, None)] * 7
        assert (await here.worker())["restarts"] == 3
        assert await here.end(await here.submit()) == ("completed", 1, None)


async def test_a_cancelled_job_ends_and_its_neighbours_do_not_notice(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with room(tmp_path, database) as here:
        first, victim, last = await here.held(3)
        assert await here.cancel(victim) < CANCELLED_WITHIN_S
        here.go.touch()
        assert [await here.end(job_id) for job_id in (first, last)] == [("completed", 1, None)] * 2
        assert (await here.worker())["restarts"] == 0


async def test_a_cancel_does_not_wait_for_a_slow_step_and_neighbours_are_not_killed_for_it(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with room(tmp_path, database) as here:
        victim, neighbour = await here.held(2)
        slow = await here.begun(f"fake:slow={here.go}")
        assert await here.cancel(victim) < CANCELLED_WITHIN_S
        assert {job["id"] for job in (await here.worker())["jobs"]} == {neighbour, slow}
        here.go.touch()
        assert [await here.end(job_id) for job_id in (neighbour, slow)] == [("completed", 1, None)] * 2
        assert (await here.daemon.job(victim))["status"] == "cancelled"
        assert (await here.worker())["restarts"] == 0


async def test_a_runner_that_hangs_with_nothing_but_cancelled_jobs_is_killed(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with room(tmp_path, database) as here:
        jobs = [*await here.held(1), await here.begun("fake:deaf")]
        for took_s in await asyncio.gather(*map(here.cancel, jobs)):
            assert took_s < CANCELLED_WITHIN_S
        assert await here.end(await here.submit()) == ("completed", 1, None)
        assert (await here.worker())["restarts"] == 1


async def test_a_job_that_hangs_costs_its_neighbours_one_attempt(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with room(tmp_path, database, STALL_TIMEOUT_S="4", MAX_ATTEMPTS="2") as here:
        neighbours = await here.held(2)
        hung = await here.submit("fake:hang")
        await here.daemon.line("job.retried", job_id=hung)
        here.go.touch()
        assert await here.end(hung) == ("failed", 2, "stalled")
        assert [await here.end(job_id) for job_id in neighbours] == [("completed", 2, None)] * 2


async def test_a_job_over_its_time_ends_and_its_neighbours_go_on(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with room(tmp_path, database, JOB_TIMEOUT_S="5") as here:
        (endless,) = await here.held(1)
        while (await here.daemon.job(endless))["status"] == "processing":
            assert await here.end(await here.submit()) == ("completed", 1, None)
        assert await here.end(endless) == ("failed", 1, "job_timeout")
        assert (await here.worker())["restarts"] == 0


async def test_out_of_memory_hurts_nobody_else_and_is_tried_again_alone_in_a_fresh_runner(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with room(tmp_path, database) as here:
        neighbours = await here.held(2)
        hungry = await here.submit(f"fake:once={tmp_path / 'once'},oom")
        await here.daemon.line("job.retried", job_id=hungry, code="gpu_oom")
        later = await here.submit()
        assert (await here.daemon.job(later))["status"] == "queued"
        here.go.touch()
        assert [await here.end(job_id) for job_id in neighbours] == [("completed", 1, None)] * 2
        assert await here.end(hungry) == ("completed", 2, None)
        assert await here.end(later) == ("completed", 1, None)
        assert (await here.worker())["restarts"] == 1


@pytest.mark.parametrize("fault", ["lost", "bug", "full"])
async def test_what_is_the_fault_of_none_in_particular_is_found_out_alone(
    tmp_path: Path, database: ConnectionParameters, fault: str
) -> None:
    codes = {"lost": "gpu_error", "bug": "engine_error", "full": "gpu_oom"}
    async with room(tmp_path, database, MAX_ATTEMPTS="2") as here:
        neighbours = await here.held(2)
        guilty = await here.submit(f"fake:{fault}")
        await here.daemon.line("job.retried", job_id=guilty)
        here.go.touch()
        assert await here.end(guilty) == ("failed", 2, codes[fault])
        assert [await here.end(job_id) for job_id in neighbours] == [("completed", 2, None)] * 2


async def test_a_stop_hands_all_back_uncharged(tmp_path: Path, database: ConnectionParameters) -> None:
    async with room(tmp_path, database, DRAIN_TIMEOUT_S="0") as here:
        jobs = await here.held(3)
        assert await here.daemon.stop() == 0
        here.go.touch()
        await here.daemon.start()
        assert [await here.end(job_id) for job_id in jobs] == [("completed", 1, None)] * 3


async def test_a_drained_worker_finishes_all_it_has(tmp_path: Path, database: ConnectionParameters) -> None:
    async with room(tmp_path, database) as here:
        jobs = await here.held(2)
        response = await here.daemon.client.post("/workers/0/drain")
        assert response.json()["state"] == "draining"
        assert [(job["id"], job["model"], job["stage"]) for job in response.json()["jobs"]] == [
            (job_id, "demo", "transcribing") for job_id in jobs
        ]
        waiting = await here.submit()
        refused = await here.daemon.client.post("/workers/0/unload")
        assert refused.status_code == 409
        queue = await here.daemon.json("/queue")
        assert (queue["running"], queue["queued"]) == (jobs, [waiting])
        assert (await here.daemon.client.post("/workers/0/resume")).json()["state"] == "busy"
        assert await here.end(waiting) == ("completed", 1, None)
        await here.daemon.client.post("/workers/0/drain")
        here.go.touch()
        assert [await here.end(job_id) for job_id in jobs] == [("completed", 1, None)] * 2
        assert (await here.worker())["state"] == "drained"
