"""Drain, resume and unload: of one worker, and of the whole daemon. And who gets which job."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.api.schemas import Draining, Health, Ready, WorkerPage, WorkerView
from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.jobs.model import Claim
from gpu_daemon.runner import link
from gpu_daemon.store.jobs import JobStore
from tests.serving import POLL_S, ServedDaemon, served_daemon, tone

SECOND = "second"
"""Another name for the demo checkpoint."""


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


@pytest.fixture
async def single(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    """One job at a time: others wait."""
    async with served_daemon(tmp_path, database, monkeypatch, jobs_per_gpu=1) as served:
        yield served


@pytest.fixture
async def pair(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch, devices=("cpu", "cpu")) as served:
        await until(served, lambda workers: all(worker.state == "idle" for worker in workers))
        yield served


async def workers(served: ServedDaemon) -> list[WorkerView]:
    return WorkerPage.model_validate(await served.json("/workers")).workers


async def until(served: ServedDaemon, fits: Callable[[list[WorkerView]], bool]) -> list[WorkerView]:
    async with asyncio.timeout(30):
        while not fits(found := await workers(served)):
            await asyncio.sleep(POLL_S)
    return found


def jobs_of(worker: WorkerView) -> list[str | None]:
    return [job.id for job in worker.jobs]


async def order(served: ServedDaemon, index: int, what: str) -> WorkerView:
    response = await served.client.post(f"/workers/{index}/{what}")
    assert response.status_code == 200, response.text
    return WorkerView.model_validate(response.json())


async def running(served: ServedDaemon, prompt: str, **fields: Any) -> str:
    """A job, once the engine is at work on it."""
    job_id = await served.submit(prompt=prompt, **fields)
    await served.until(job_id, lambda job: job["stage"] == "transcribing")
    return job_id


async def test_a_drained_worker_finishes_its_job_and_takes_no_other(single: ServedDaemon, tmp_path: Path) -> None:
    first = await running(single, f"fake:until={tmp_path / 'go'}")
    second = await single.submit()
    assert (await order(single, 0, "drain")).state == "draining"
    (tmp_path / "go").touch()
    assert (await single.finished(first))["status"] == "completed"
    (worker,) = await until(single, lambda workers: workers[0].state == "drained")
    assert worker.loaded
    assert (await single.json(f"/jobs/{second}"))["status"] == "queued"
    ready = await single.client.get("/health/ready")
    assert ready.status_code == 503
    assert "drained" in str(Ready.model_validate(ready.json()).reason)
    assert (await single.json("/dashboard/state"))["workers"][0]["state"] == "drained"
    assert (await order(single, 0, "resume")).state == "idle"
    assert (await single.finished(second))["status"] == "completed"
    assert (await single.client.get("/health/ready")).status_code == 200


async def test_an_idle_worker_is_drained_at_once_and_the_other_goes_on(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_daemon(tmp_path, database, monkeypatch, devices=("cpu", "cpu"), jobs_per_gpu=1) as served:
        await until(served, lambda workers: all(worker.state == "idle" for worker in workers))
        assert (await order(served, 1, "drain")).state == "drained"
        held = await running(served, "fake:until=never")
        waiting = await served.submit()
        assert [jobs_of(worker) for worker in await workers(served)] == [[held], []]
        assert (await served.client.get("/health/ready")).status_code == 200
        assert (await order(served, 1, "resume")).state in ("idle", "busy")
        assert (await served.finished(waiting))["status"] == "completed"
        assert jobs_of((await workers(served))[0]) == [held]
        await served.client.post(f"/jobs/{held}/cancel")


async def test_a_runner_that_dies_while_drained_is_started_by_the_resume(served: ServedDaemon) -> None:
    (worker,) = await until(served, lambda workers: workers[0].state == "idle")
    await order(served, 0, "drain")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    (worker,) = await until(served, lambda workers: workers[0].pid is None)
    assert worker.state == "drained"
    assert (await order(served, 0, "resume")).state in ("restarting", "idle")
    assert (await served.finished(await served.submit()))["status"] == "completed"


async def test_models_leave_memory_on_demand_but_not_under_a_job(served: ServedDaemon) -> None:
    await served.finished(await served.submit())
    assert (await workers(served))[0].loaded
    assert (await order(served, 0, "unload")).loaded == {}
    assert (await order(served, 0, "unload")).loaded == {}
    job_id = await running(served, "fake:until=never")
    response = await served.client.post("/workers/0/unload")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "wrong_state")
    assert "runs a job" in response.json()["error"]["message"]
    await served.client.post(f"/jobs/{job_id}/cancel")
    await until(served, lambda workers: workers[0].state == "idle")
    await order(served, 0, "drain")
    unloaded = await order(served, 0, "unload")
    assert (unloaded.state, unloaded.loaded) == ("drained", {})


@pytest.mark.parametrize("what", ["drain", "resume", "unload"])
async def test_a_worker_that_is_not_there(served: ServedDaemon, what: str) -> None:
    for index, status, code in (("1", 404, "not_found"), ("-1", 404, "not_found"), ("x", 400, "invalid_value")):
        response = await served.client.post(f"/workers/{index}/{what}")
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert response.json()["error"]["param"] == "index"


async def test_these_routes_need_a_key(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_daemon(tmp_path, database, monkeypatch, api_keys=("secret",)) as served:
        for path in ("/drain", "/resume", "/workers/0/drain", "/workers/0/resume", "/workers/0/unload"):
            assert (await served.client.post(path)).status_code == 401, path
            key = {"X-API-Key": "secret"}
            assert (await served.client.post(path, headers=key)).status_code == 200, path


async def test_a_drained_daemon_refuses_new_jobs_and_finishes_all_the_others(
    single: ServedDaemon, tmp_path: Path
) -> None:
    jobs = [await running(single, f"fake:until={tmp_path / 'go'}"), *[await single.submit() for _ in range(3)]]
    response = await single.client.post("/drain")
    drain = Draining.model_validate(response.json())
    assert (response.status_code, drain.health.status, drain.queued, drain.running) == (200, "draining", 3, 1)
    refused = await single.post()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) > 0
    assert len(single.directories()) == 4
    assert (await single.client.get("/health/ready")).status_code == 503
    health = Health.model_validate(await single.json("/health"))
    assert (health.status, health.reason) == ("draining", "new jobs are refused; waiting: 3, running: 1")
    (tmp_path / "go").touch()
    for job_id in jobs:
        assert (await single.finished(job_id))["status"] == "completed"
    health = Health.model_validate(await single.json("/health"))
    assert health.reason == "new jobs are refused; nothing waits or runs any more"
    resumed = await single.client.post("/resume")
    assert Draining.model_validate(resumed.json()).health.status == "ready"
    assert (await single.finished(await single.submit()))["status"] == "completed"


async def test_an_upload_that_was_under_way_when_the_drain_began_is_refused(served: ServedDaemon) -> None:
    begun, drained = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        begun.set()
        await drained.wait()
        yield tone() + b"\r\n--x--\r\n"

    upload = asyncio.create_task(
        served.client.post("/transcribe", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    )
    await begun.wait()
    await served.client.post("/drain")
    drained.set()
    refused = await upload
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert served.directories() == []


async def test_the_idle_worker_that_holds_the_model_gets_the_job(pair: ServedDaemon, pool: Pool) -> None:
    held = await running(pair, "fake:until=never")
    (holder,) = [worker.index for worker in await workers(pair) if jobs_of(worker) == [held]]
    await pair.client.post(f"/jobs/{held}/cancel")
    for _ in range(6):
        await until(pair, lambda workers: all(worker.state == "idle" for worker in workers))
        job = await pair.finished(await pair.submit())
        assert job["status"] == "completed"
    assert await pool.fetch("SELECT DISTINCT worker_index FROM jobs") == [(holder,)]
    assert not (await workers(pair))[1 - holder].loaded
    both = [await running(pair, "fake:until=never") for _ in range(2)]
    assert sorted(jobs_of(worker) for worker in await workers(pair)) == sorted([job_id] for job_id in both)


async def test_jobs_of_a_loaded_model_go_first_for_a_while(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wait_s in (30, 0):
        async with served_daemon(tmp_path, database, monkeypatch, affinity_max_wait_s=wait_s, jobs_per_gpu=1) as served:
            await offer_second(served, pool)
            held = await running(served, "fake:until=never")
            models = [SECOND, "demo", SECOND, "demo", "demo"]
            jobs = [await served.submit(model=model) for model in models]
            positions = [(await served.json(f"/jobs/{job_id}"))["queue_position"] for job_id in jobs]
            assert positions == [0, 1, 2, 3, 4]
            await served.client.post(f"/jobs/{held}/cancel")
            for job_id in jobs:
                assert (await served.finished(job_id))["status"] == "completed"
            rows = await pool.fetch("SELECT id::text FROM jobs WHERE id::text = ANY ($1) ORDER BY started_at", jobs)
            done = [jobs.index(row["id"]) for row in rows]
            assert done == ([1, 3, 4, 0, 2] if wait_s else [0, 1, 2, 3, 4])


async def offer_second(served: ServedDaemon, pool: Pool) -> None:
    """Returns when jobs for it can run."""
    await pool.execute(
        """WITH made AS (INSERT INTO whisper_models (name, source, path, sha256)
                         SELECT $1, source, path, sha256 FROM whisper_models WHERE name = 'demo'
                         ON CONFLICT DO NOTHING RETURNING id_model)
           INSERT INTO model_settings (id_model, enabled) SELECT id_model, true FROM made""",
        SECOND,
    )
    await served.client.patch(f"/models/{SECOND}", json={"enabled": True})
    async with asyncio.timeout(20):
        while SECOND not in [
            model["name"] for model in (await served.json("/models"))["models"] if model["state"] == "ready"
        ]:
            await asyncio.sleep(POLL_S)


async def test_the_wait_is_estimated_from_what_was_measured(single: ServedDaemon) -> None:
    held = await running(single, "fake:until=never")
    unknown = (await single.post()).json()
    assert (unknown["queue_position"], unknown["estimated_wait_s"]) == (0, None)
    await single.client.post(f"/jobs/{held}/cancel")
    await single.finished(unknown["job_id"])
    await running(single, "fake:until=never")
    waits = [(await single.post(prompt="fake:sleep=2")).json() for _ in range(3)]
    assert [answer["queue_position"] for answer in waits] == [0, 1, 2]
    seconds = [answer["estimated_wait_s"] for answer in waits]
    assert None not in seconds
    assert seconds == sorted(seconds)
    await order(single, 0, "drain")
    assert (await single.json(f"/jobs/{waits[0]['job_id']}"))["estimated_wait_s"] is None


async def test_a_runner_that_cannot_be_killed_quarantines_its_device_and_no_other(
    pair: ServedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 12: a process in the uninterruptible sleep of a driver, which no signal ends. Signals to it are dropped."""
    victim = (await workers(pair))[0]
    assert victim.pid is not None
    kill = os.killpg
    monkeypatch.setattr(link, "KILL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(os, "killpg", lambda pid, number: None if pid == victim.pid else kill(pid, number))
    await order(pair, 1, "drain")
    stuck = await running(pair, "fake:hang")
    await order(pair, 1, "resume")
    response = await pair.client.post(f"/jobs/{stuck}/cancel")
    assert response.json()["status"] == "cancelled"
    quarantined = (await until(pair, lambda workers: workers[0].state == "quarantined"))[0]
    assert "driver" in str(quarantined.error)
    assert (quarantined.pid, quarantined.restarts) == (victim.pid, 0)
    for _ in range(2):
        job = await pair.finished(await pair.submit())
        assert (job["status"], job["attempt"]) == ("completed", 1)
    assert (await pair.client.get("/health/ready")).status_code == 200
    refused = await pair.client.post("/workers/0/resume")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "wrong_state")
    kill(victim.pid, signal.SIGKILL)
    await until(pair, lambda workers: workers[0].pid is None)
    assert (await workers(pair))[0].state == "quarantined"
    await order(pair, 0, "resume")
    await until(pair, lambda workers: workers[0].state == "idle" and workers[0].pid != victim.pid)


async def test_the_next_job_is_claimed_while_the_end_of_the_last_is_recorded(
    single: ServedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, reached, go = JobStore.complete, asyncio.Event(), asyncio.Event()

    async def held(self: JobStore, claim: Claim, *args: Any, **kwargs: Any) -> bool:
        if not reached.is_set():
            reached.set()
            await go.wait()
        return await complete(self, claim, *args, **kwargs)

    monkeypatch.setattr(JobStore, "complete", held)
    first, second = await single.submit(), await single.submit()
    await reached.wait()
    assert (await single.finished(second))["status"] == "completed"
    assert (await single.json("/queue"))["running"] == [first]
    go.set()
    assert (await single.finished(first))["attempt"] == 1


async def test_jobs_go_on_while_a_model_is_loaded_beside_them(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than a runner may say nothing."""
    stall_timeout_s = 4
    there = tmp_path / "there"
    there.touch()
    monkeypatch.setenv("FAKE_LOAD_UNTIL", str(there))
    async with served_daemon(tmp_path, database, monkeypatch, stall_timeout_s=stall_timeout_s) as served:
        await offer_second(served, pool)
        neighbour = await running(served, f"fake:until={tmp_path / 'go'}")
        there.unlink()
        loading = await served.submit(model=SECOND)
        await served.until(loading, lambda job: job["stage"] == "loading")
        behind = await served.submit()
        began_s = (await served.json("/status"))["stage_elapsed_seconds"]
        async with asyncio.timeout(30):
            while (await served.json("/status"))["stage_elapsed_seconds"] < began_s + stall_timeout_s + 1:
                await asyncio.sleep(POLL_S)
        there.touch()
        (tmp_path / "go").touch()
        for job_id in (neighbour, loading, behind):
            job = await served.finished(job_id)
            assert (job["status"], job["attempt"]) == ("completed", 1)
