"""kill -9, on real processes: the runner's, then the daemon's. Rows of the fault matrix in docs/architecture.md."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from gpu_daemon.database.pool import ConnectionParameters
from tests.receiver import Receiver
from tests.running import (
    FAKE_ENGINE,
    ONE_AT_A_TIME,
    RunningDaemon,
    descendants,
    only_demo,
    running_daemon,
)
from tests.speech import conversation, word_error_rate, write


async def runner_pid(daemon: RunningDaemon, index: int) -> int:
    workers = (await daemon.json("/workers"))["workers"]
    pid: int = workers[index]["pid"]
    return pid


async def gone(pids: set[int], timeout_s: float = 20) -> None:
    """Processes that are not ours give no signal when they end: they are looked at."""
    async with asyncio.timeout(timeout_s):
        while any(map(alive, pids)):
            await asyncio.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_a_killed_runner_costs_an_attempt_and_nobody_else_anything(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    """Fault 3, with the real engine."""
    spoken = conversation("en", 500_010, 12)
    write(spoken, tmp_path / "long.wav", "wav")
    async with running_daemon(tmp_path, database, DEVICES="cpu,cpu") as daemon:
        await daemon.line("runner.ready", nth=2)
        jobs = [(await daemon.submit(tmp_path / "long.wav", language="en"))["job_id"] for _ in range(2)]
        started = [await daemon.line("job.started", job_id=job_id) for job_id in jobs]
        victim, other = jobs
        await daemon.in_runner(victim)
        os.kill(await runner_pid(daemon, started[0]["worker"]), signal.SIGKILL)
        job = await daemon.finished(victim)
        assert (job["status"], job["attempt"]) == ("completed", 2)
        assert word_error_rate(spoken.text, job["result"]["text"]) < 0.1
        job = await daemon.finished(other)
        assert (job["status"], job["attempt"]) == ("completed", 1)


async def test_a_job_that_kills_its_runner_every_time_fails_and_the_queue_goes_on(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver
) -> None:
    """Fault 4."""
    write(conversation("en", 500_011, 1), tmp_path / "one.wav", "wav")
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        poison = await daemon.submit(tmp_path / "one.wav", initial_prompt="fake:segv", callback_url=receiver.url)
        good = await daemon.submit(tmp_path / "one.wav")
        job = await daemon.finished(poison["job_id"])
        assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 3, "runner_crashed")
        assert (await daemon.finished(good["job_id"]))["status"] == "completed"
        (request,) = await receiver.wait_for(1, timeout_s=20)
        assert request.json()["status"] == "failed"
        assert request.json()["error_code"] == "runner_crashed"
        assert not list((daemon.data_dir / "jobs").iterdir())


@pytest.mark.parametrize("embedded", [False, True], ids=["external", "embedded"])
async def test_a_killed_daemon_loses_nothing(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver, embedded: bool
) -> None:
    """Fault 2: one job runs and five wait when the daemon is killed; after a restart all six complete and call back."""
    write(conversation("en", 500_012, 1), tmp_path / "one.wav", "wav")
    if not embedded:
        await only_demo(database)
    daemon = RunningDaemon(tmp_path / "data", None if embedded else database, FAKE_ENGINE | ONE_AT_A_TIME)
    try:
        await daemon.start()
        submitted = [
            (await daemon.submit(tmp_path / "one.wav", model="demo", initial_prompt=prompt, callback_url=receiver.url))[
                "job_id"
            ]
            for prompt in ("fake:sleep=8", *5 * ("fake:sleep=0.2",))
        ]
        await daemon.line("job.started", job_id=submitted[0])
        children = descendants(daemon.pid)
        assert children
        await daemon.kill()
        await gone(children)
        (tmp_path / "data" / "jobs" / "7f9c24e8-3b1a-4f6d-9d3e-0123456789ab").mkdir()
        await daemon.start()
        for job_id in submitted:
            job = await daemon.finished(job_id, timeout_s=90)
            assert job["status"] == "completed", job
            assert job["attempt"] == (2 if job_id == submitted[0] else 1)
        requests = await receiver.wait_for(6, timeout_s=20)
        assert sorted(request.json()["job_id"] for request in requests) == sorted(submitted)
        assert not list((tmp_path / "data" / "jobs").iterdir())
        children = descendants(daemon.pid)
        assert await daemon.stop() == 0
        await gone(children)
    finally:
        await daemon.close()


async def test_a_graceful_stop_charges_no_attempt(tmp_path: Path, database: ConnectionParameters) -> None:
    """Fault 33."""
    write(conversation("en", 500_013, 1), tmp_path / "one.wav", "wav")
    await only_demo(database)
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE | {"DRAIN_TIMEOUT_S": "0"})
    try:
        await daemon.start()
        job_id = (await daemon.submit(tmp_path / "one.wav", initial_prompt="fake:sleep=2"))["job_id"]
        await daemon.line("job.started", job_id=job_id)
        assert await daemon.stop() == 0
        await daemon.start()
        job = await daemon.finished(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 1)
    finally:
        await daemon.close()


async def test_a_draining_daemon_finishes_what_runs_and_refuses_more(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    write(conversation("en", 500_014, 1), tmp_path / "one.wav", "wav")
    await only_demo(database)
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE)
    try:
        await daemon.start()
        job_id = (await daemon.submit(tmp_path / "one.wav", initial_prompt="fake:sleep=2"))["job_id"]
        await daemon.line("job.started", job_id=job_id)
        os.kill(daemon.pid, signal.SIGTERM)
        await daemon.line("daemon.draining")
        with (tmp_path / "one.wav").open("rb") as file:
            response = await daemon.client.post("/transcribe", files={"file": file})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "draining"
        assert "retry-after" in response.headers
        assert await daemon.ended() == 0
        await daemon.line("job.ended", job_id=job_id, state="completed")
    finally:
        await daemon.close()


async def test_a_hung_runner_is_replaced(tmp_path: Path, database: ConnectionParameters) -> None:
    """Fault 12: no progress within STALL_TIMEOUT_S."""
    write(conversation("en", 500_015, 1), tmp_path / "one.wav", "wav")
    settings = FAKE_ENGINE | {"STALL_TIMEOUT_S": "1", "MAX_ATTEMPTS": "2"}
    async with running_daemon(tmp_path, database, **settings) as daemon:
        stuck = await daemon.submit(tmp_path / "one.wav", initial_prompt="fake:hang")
        good = await daemon.submit(tmp_path / "one.wav")
        job = await daemon.finished(stuck["job_id"])
        assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 2, "stalled")
        assert (await daemon.finished(good["job_id"]))["status"] == "completed"


async def test_a_job_over_its_time_limit_fails(tmp_path: Path, database: ConnectionParameters) -> None:
    write(conversation("en", 500_016, 1), tmp_path / "one.wav", "wav")
    settings = FAKE_ENGINE | {"JOB_TIMEOUT_S": "3", "FAKE_DIARIZER": f"slow={tmp_path / 'never'}"}
    async with running_daemon(tmp_path, database, **settings) as daemon:
        await daemon.line("runner.ready")
        slow = await daemon.submit(tmp_path / "one.wav", initial_prompt="fake:sleep=30")
        voices = await daemon.submit(tmp_path / "one.wav", task="diarize")
        both = await daemon.submit(tmp_path / "one.wav", diarize="true")
        for late in (slow, voices):
            job = await daemon.finished(late["job_id"])
            assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 1, "job_timeout")
        job = await daemon.finished(both["job_id"])
        assert (job["status"], job["attempt"]) == ("completed", 1), "only its speakers were late"
        assert job["result"]["text"]
        assert job["result"]["diarization"]["error_code"] == "job_timeout"
        assert len(descendants(daemon.pid)) == 1, "the runner was asked, not killed"


@pytest.mark.parametrize("prompt", ["fake:sleep=30", "fake:hang"])
async def test_cancel_frees_the_device_and_calls_back(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver, prompt: str
) -> None:
    """Fault 32: a running job that listens, and one that does not."""
    write(conversation("en", 500_017, 1), tmp_path / "one.wav", "wav")
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        running = await daemon.submit(tmp_path / "one.wav", initial_prompt=prompt, callback_url=receiver.url)
        queued = await daemon.submit(tmp_path / "one.wav", callback_url=receiver.url)
        await daemon.line("job.started", job_id=running["job_id"])
        for job_id in (queued["job_id"], running["job_id"]):
            began = asyncio.get_running_loop().time()
            response = await daemon.client.post(f"/jobs/{job_id}/cancel")
            assert response.status_code == 200, response.text
            assert response.json()["status"] == "cancelled"
            took_s = asyncio.get_running_loop().time() - began
            if job_id == running["job_id"]:
                took_s = await daemon.cancel_took_s(job_id)  # on the daemon's clock: what it promises
            assert took_s < 5
            again = await daemon.client.post(f"/jobs/{job_id}/cancel")
            assert again.status_code == 409
        requests = await receiver.wait_for(2, timeout_s=20)
        assert {request.json()["status"] for request in requests} == {"cancelled"}
        after = await daemon.submit(tmp_path / "one.wav")
        assert (await daemon.finished(after["job_id"]))["status"] == "completed"
        response = await daemon.client.delete(f"/jobs/{after['job_id']}")
        assert response.status_code in (200, 204)
        assert (await daemon.client.get(f"/jobs/{after['job_id']}")).status_code == 404
