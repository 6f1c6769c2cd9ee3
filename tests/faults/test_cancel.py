"""A cancel, at every moment of a job's life: one end, one callback, nothing left, and the device free for the next."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.gpu.sampler import UsageSampler
from gpu_daemon.jobs.model import Claim
from gpu_daemon.scheduling import attempt
from gpu_daemon.store.jobs import JobStore
from tests.invariants import violations, watch
from tests.receiver import Receiver
from tests.relay import Relay
from tests.running import CANCELLED_WITHIN_S, FAKE_ENGINE, ONE_AT_A_TIME, RunningDaemon, descendants, running_daemon
from tests.serving import ServedDaemon, served_daemon
from tests.slow_ffmpeg import slow_ffmpeg
from tests.speech import conversation, write

FREE_WITHIN_S = 15.0
"""For the test's own waits; how long the daemon takes is measured on its clock."""
SPREAD_S = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "one.wav"
    write(conversation("en", 500_070, 1), path, "wav")
    return path


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


async def reach(daemon: RunningDaemon, job_id: str, stage: str | None) -> None:
    async with asyncio.timeout(20):
        while (await daemon.job(job_id))["stage"] != stage:
            await asyncio.sleep(0.02)


async def cancel(daemon: RunningDaemon, job_id: str) -> tuple[int, str]:
    response = await daemon.client.post(f"/jobs/{job_id}/cancel")
    body = response.json()
    return response.status_code, body["status"] if response.is_success else body["error"]["code"]


@pytest.mark.parametrize("stage", ["queued", "preparing", "loading", "transcribing", "diarizing"])
async def test_at_each_state_and_twice(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver, audio: Path, stage: str
) -> None:
    """Fault 32."""
    go = tmp_path / "go"
    settings = FAKE_ENGINE | ONE_AT_A_TIME
    if stage == "preparing":
        settings["PATH"] = slow_ffmpeg(tmp_path / "bin", go)
    if stage == "loading":
        settings["FAKE_LOAD_UNTIL"] = str(go)
    asked = {"initial_prompt": f"fake:until={go}"}
    if stage == "diarizing":
        settings["FAKE_DIARIZER"] = f"slow={go}"
        asked = {"diarize": "true"}
    async with running_daemon(tmp_path, database, **settings) as daemon:
        await watch(database)
        await daemon.line("runner.ready")
        held = await daemon.submit(audio, callback_url=receiver.url, **asked)
        await reach(daemon, held["job_id"], "transcribing" if stage == "queued" else stage)
        queued = await daemon.submit(audio, callback_url=receiver.url)
        victim = (queued if stage == "queued" else held)["job_id"]
        async with asyncio.timeout(FREE_WITHIN_S):
            answers = await asyncio.gather(cancel(daemon, victim), cancel(daemon, victim))
        assert (200, "cancelled") in answers
        assert set(answers) <= {(200, "cancelled"), (409, "wrong_state")}
        assert await cancel(daemon, victim) == (409, "wrong_state")
        assert not (daemon.data_dir / "jobs" / victim).exists()
        if stage != "queued":
            assert await daemon.cancel_took_s(victim) < CANCELLED_WITHIN_S
            next_started = await daemon.line("job.started", FREE_WITHIN_S, job_id=queued["job_id"])
            assert next_started["attempt"] == 1
        go.touch()
        other = (held if stage == "queued" else queued)["job_id"]
        job = await daemon.finished(other)
        assert (job["status"], job["attempt"]) == ("completed", 1)
        assert (await daemon.job(victim))["status"] == "cancelled"
        requests = await receiver.wait_for(2, timeout_s=20)
        assert sorted(request.json()["status"] for request in requests) == ["cancelled", "completed"]
        await settled(daemon, database, receiver, {victim, other})
        assert len(descendants(daemon.pid)) == 1  # the runner


async def test_that_meets_the_end_of_the_job(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver, audio: Path
) -> None:
    """Fault 32: whoever comes first, the client is told what the row says."""
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        await watch(database)
        told: dict[str, str] = {}
        for after_s in SPREAD_S:
            submitted = await daemon.submit(audio, initial_prompt="fake:sleep=0.3", callback_url=receiver.url)
            job_id = submitted["job_id"]
            await daemon.line("job.started", job_id=job_id)
            await asyncio.sleep(after_s)
            _, told[job_id] = await cancel(daemon, job_id)
        for job_id, answer in told.items():
            status = (await daemon.finished(job_id))["status"]
            assert status == ("cancelled" if answer == "cancelled" else "completed"), answer
        await receiver.wait_for(len(told), timeout_s=20)
        await settled(daemon, database, receiver, set(told))


async def test_of_a_job_that_goes_back_to_the_queue_at_that_moment(
    served: ServedDaemon, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runner died; the cancel is noted when the worker has looked for one already, and takes no jobs any more."""
    requeue, reached, go = JobStore.requeue, asyncio.Event(), asyncio.Event()

    async def held(self: JobStore, claim: Claim, *, charge: bool) -> bool:
        reached.set()
        await go.wait()
        return await requeue(self, claim, charge=charge)

    monkeypatch.setattr(JobStore, "requeue", held)
    job_id = await served.submit(prompt="fake:segv")
    await reached.wait()
    await served.client.post("/workers/0/drain")
    await cancelled_at_once(served, pool, job_id, go)
    await served.client.post("/workers/0/resume")
    assert (await served.finished(await served.submit()))["status"] == "completed"


async def test_between_the_decoding_and_the_runner(
    served: ServedDaemon, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    class Slow(UsageSampler):
        async def __aenter__(self) -> UsageSampler:
            reached.set()
            await go.wait()
            return await super().__aenter__()

    monkeypatch.setattr(attempt, "UsageSampler", Slow)
    job_id = await served.submit(prompt="fake:until=never")
    await reached.wait()
    await cancelled_at_once(served, pool, job_id, go)
    assert (await served.finished(await served.submit()))["status"] == "completed"


async def test_whose_answer_is_lost_and_that_nobody_asks_for_again(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults 8 and 32: the row says `cancelled`, and the daemon comes to know when it is to do the job."""
    relay = Relay(database)
    try:
        async with served_daemon(tmp_path, await relay.start(), monkeypatch) as served:
            await watch(database)
            await served.client.post("/workers/0/drain")
            job_id = await served.submit(callback_url=receiver.url)
            waiting = asyncio.create_task(served.client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=20"}))
            relay.lose_answer_to(b"the job was cancelled")
            response = await served.client.post(f"/jobs/{job_id}/cancel")
            assert (response.status_code, relay.lost) == (503, 1)
            assert served.directories() == [job_id]
            await served.client.post("/workers/0/resume")
            assert (await waiting).json()["status"] == "cancelled"
            (request,) = await receiver.wait_for(1)
            assert request.json()["status"] == "cancelled"
            await served.until(job_id, lambda job: job["callback"]["delivered"])
            assert (await served.finished(await served.submit()))["status"] == "completed"
            assert await violations(database, served.settings.jobs_dir, receiver.requests, told={job_id}) == []
    finally:
        await relay.stop()


async def cancelled_at_once(served: ServedDaemon, pool: Pool, job_id: str, go: asyncio.Event) -> None:
    """`go` lets the worker go on once the cancel has been noted."""
    cancelling = asyncio.create_task(served.client.post(f"/jobs/{job_id}/cancel"))
    async with asyncio.timeout(FREE_WITHIN_S):
        while not await pool.fetchval("SELECT cancel_requested_at IS NOT NULL FROM jobs"):
            await asyncio.sleep(0.02)
        go.set()
        response = await cancelling
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    assert served.directories() == []


async def settled(daemon: RunningDaemon, database: ConnectionParameters, receiver: Receiver, told: set[str]) -> None:
    """Once every delivery is recorded: rows, moves, files and callbacks agree."""
    async with asyncio.timeout(20):
        for job_id in told:
            while not (await daemon.job(job_id))["callback"]["delivered"]:
                await asyncio.sleep(0.02)
    assert await violations(database, daemon.data_dir / "jobs", receiver.requests, told=told) == []
