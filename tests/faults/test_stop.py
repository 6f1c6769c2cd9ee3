"""SIGTERM, at every moment: the daemon ends with status 0, nothing of it is left, and no job has lost an attempt."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.jobs.model import Claim, Job, JobId
from gpu_daemon.scheduling.scheduler import Scheduler
from gpu_daemon.store.jobs import JobStore
from tests.faults.test_cancel import reach, settled
from tests.invariants import watch
from tests.receiver import Receiver
from tests.running import FAKE_ENGINE, ONE_AT_A_TIME, RunningDaemon, only_demo, unused
from tests.serving import served_daemon
from tests.slow_ffmpeg import slow_ffmpeg
from tests.speech import conversation, write

PATIENT = {"DRAIN_TIMEOUT_S": "300"}
HURRIED = {"DRAIN_TIMEOUT_S": "1"}
STOPPED_WITHIN_S = 30.0


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "one.wav"
    write(conversation("en", 500_080, 1), path, "wav")
    return path


@pytest.fixture
async def daemon(tmp_path: Path, database: ConnectionParameters) -> AsyncIterator[RunningDaemon]:
    """Not started."""
    await only_demo(database)
    await watch(database)
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE | ONE_AT_A_TIME)
    yield daemon
    await daemon.close()


async def two_jobs(daemon: RunningDaemon, audio: Path, receiver: Receiver, go: Path, stage: str) -> list[str]:
    """The first one has come to this stage, the other waits behind it."""
    await daemon.line("runner.ready")
    prompts = (f"fake:until={go}", "")
    jobs = [
        (await daemon.submit(audio, initial_prompt=prompt, callback_url=receiver.url))["job_id"] for prompt in prompts
    ]
    await reach(daemon, jobs[0], stage)
    return jobs


async def both_complete_after_a_restart(
    daemon: RunningDaemon, database: ConnectionParameters, receiver: Receiver, jobs: list[str], go: Path
) -> None:
    await unused(daemon.data_dir)
    assert receiver.requests == []
    go.touch()
    await daemon.start()
    for job_id in jobs:
        job = await daemon.finished(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 1)
    await receiver.wait_for(len(jobs), timeout_s=20)
    await settled(daemon, database, receiver, set(jobs))


@pytest.mark.parametrize("stage", ["preparing", "loading", "transcribing"])
async def test_a_job_that_does_not_end_in_time_is_handed_back(
    tmp_path: Path, daemon: RunningDaemon, database: ConnectionParameters, receiver: Receiver, audio: Path, stage: str
) -> None:
    """Fault 33: within DRAIN_TIMEOUT_S, whatever the job is at."""
    go = tmp_path / "go"
    daemon.set(**HURRIED)
    if stage == "preparing":
        daemon.set(PATH=slow_ffmpeg(tmp_path / "bin", go))
    if stage == "loading":
        daemon.set(FAKE_LOAD_UNTIL=str(go))
    await daemon.start()
    jobs = await two_jobs(daemon, audio, receiver, go, stage)
    assert await daemon.stop(STOPPED_WITHIN_S) == 0
    await both_complete_after_a_restart(daemon, database, receiver, jobs, go)


async def test_a_second_signal_does_not_wait(
    tmp_path: Path, daemon: RunningDaemon, database: ConnectionParameters, receiver: Receiver, audio: Path
) -> None:
    """Fault 33."""
    go = tmp_path / "go"
    daemon.set(**PATIENT)
    await daemon.start()
    jobs = await two_jobs(daemon, audio, receiver, go, "transcribing")
    os.kill(daemon.pid, signal.SIGTERM)
    await daemon.line("daemon.draining")
    assert (await daemon.json("/health"))["status"] == "draining"
    os.kill(daemon.pid, signal.SIGTERM)
    assert await daemon.ended(STOPPED_WITHIN_S) == 0
    await both_complete_after_a_restart(daemon, database, receiver, jobs, go)


async def test_a_job_that_ends_in_time_is_completed_and_the_others_wait(
    tmp_path: Path, daemon: RunningDaemon, database: ConnectionParameters, receiver: Receiver, audio: Path
) -> None:
    go = tmp_path / "go"
    daemon.set(**PATIENT)
    await daemon.start()
    jobs = await two_jobs(daemon, audio, receiver, go, "transcribing")
    # A drain by an operator would finish the second one, too; a stop does not wait for what has not begun.
    assert (await daemon.client.post("/drain")).status_code == 200
    os.kill(daemon.pid, signal.SIGTERM)
    await daemon.line("daemon.draining")
    refused = await daemon.client.post("/resume")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "wrong_state")
    go.touch()
    assert await daemon.ended(STOPPED_WITHIN_S) == 0
    await daemon.line("job.ended", job_id=jobs[0], state="completed")
    assert [line["job_id"] for line in daemon.lines if line["event"] == "job.started"] == jobs[:1]
    await unused(daemon.data_dir)
    await daemon.start()
    for job_id in jobs:
        assert (await daemon.finished(job_id))["attempt"] == 1
    await receiver.wait_for(2, timeout_s=20)
    await settled(daemon, database, receiver, set(jobs))


async def test_while_it_starts(daemon: RunningDaemon, audio: Path) -> None:
    await daemon.spawn()
    await daemon.line("model.ready")
    assert await daemon.stop(STOPPED_WITHIN_S) == 0
    await unused(daemon.data_dir)
    await daemon.start()
    assert (await daemon.finished((await daemon.submit(audio))["job_id"]))["status"] == "completed"


async def test_while_a_job_is_claimed(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is committed, and its worker does not know it yet."""
    claim, stop = JobStore.claim, Scheduler.stop
    committed, go = asyncio.Event(), asyncio.Event()

    async def held(self: JobStore, job_id: JobId, worker_index: int) -> tuple[Claim, Job] | None:
        claimed = await claim(self, job_id, worker_index)
        committed.set()
        await go.wait()
        return claimed

    async def stop_then_go(self: Scheduler) -> None:
        stopping = asyncio.create_task(stop(self))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        go.set()
        await stopping

    monkeypatch.setattr(JobStore, "claim", held)
    monkeypatch.setattr(Scheduler, "stop", stop_then_go)
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        await served.submit()
        await committed.wait()
        assert await pool.fetch("SELECT state, attempt FROM jobs") == [("processing", 1)]
    assert await pool.fetch("SELECT state, attempt FROM jobs") == [("queued", 0)]
