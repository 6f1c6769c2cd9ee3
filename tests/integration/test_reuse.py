"""The same audio with the same model and options: the stored result, unless the client wants it done again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.jobs.model import Job
from gpu_daemon.store.jobs import JobStore
from tests.receiver import Receiver
from tests.serving import ServedDaemon, served_daemon, tone
from tests.web import Site, answer

ABOUT_THE_RUN = {"queue_time_s", "processing_time_s", "timings", "gpu", "reused"}


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    keys: Any = ("first-key-of-a-test", "second-key-of-a-test")
    async with served_daemon(
        tmp_path, database, monkeypatch, reuse_results=True, api_keys=keys, fetch_allowed_networks=("loopback",)
    ) as served:
        served.client.headers["X-API-Key"] = keys[0]
        yield served


async def done(served: ServedDaemon, audio: bytes | None = None, **fields: str) -> dict[str, Any]:
    response = await served.post(audio, **fields)
    assert response.status_code == 202, response.text
    return await served.finished(response.json()["job_id"])


async def test_the_stored_result_is_the_answer(served: ServedDaemon, receiver: Receiver) -> None:
    first = await done(served, language="en")
    response = await served.post(name="other.wav", language="en", callback_url=receiver.url, metadata='{"order": 2}')
    assert (response.status_code, response.json()["status"]) == (202, "completed")
    second = await served.json(f"/jobs/{response.json()['job_id']}")
    assert (first["reused"], second["reused"], second["attempt"]) == (False, True, 0)
    assert second["job_id"] != first["job_id"]
    assert (second["file_name"], second["progress"], second["queue_time_s"]) == ("other.wav", 100, 0)
    for name in first["result"].keys() - ABOUT_THE_RUN:
        assert second["result"][name] == first["result"][name], name
    assert list(second["result"]) == list(first["result"])
    (request,) = await receiver.wait_for(1)
    assert (request.json()["status"], request.json()["metadata"]) == ("completed", {"order": 2})
    assert request.json()["result"]["text"] == first["result"]["text"]
    assert (await served.json("/queue/stats"))["reused"] == 1
    assert served.directories() == []
    waited = await served.post(language="en", wait="true")
    assert (waited.status_code, waited.json()["reused"]) == (200, True)


async def test_what_differs_is_done_anew(served: ServedDaemon) -> None:
    assert not (await done(served, language="en"))["reused"]
    assert not (await done(served, language="en", prompt="other"))["reused"]
    assert not (await done(served, tone(0.9), language="en"))["reused"]
    assert not (await done(served, language="en", reuse_result="false"))["reused"]
    assert (await done(served, language="en"))["reused"]
    served.client.headers["X-API-Key"] = "second-key-of-a-test"
    assert not (await done(served, language="en"))["reused"], "what another client sent is its own"


async def test_what_is_fetched_is_known_by_its_content(served: ServedDaemon, site: Site, receiver: Receiver) -> None:
    """Before it is decoded, and though no worker takes a job."""
    first = await done(served, language="en")
    await served.client.post("/workers/0/drain")
    url = site.put("/other%20name.wav", answer(body=tone()))

    async def fetched(**members: Any) -> str:
        response = await served.client.post("/transcribe", json={"url": url, "language": "en"} | members)
        assert response.status_code == 202, response.text
        job_id: str = response.json()["job_id"]
        return job_id

    second = await served.finished(await fetched(callback_url=receiver.url))
    assert (second["status"], second["reused"], second["attempt"]) == ("completed", True, 0)
    assert (second["file_name"], second["file_size_bytes"]) == ("other name.wav", len(tone()))
    assert second["result"]["text"] == first["result"]["text"]
    (request,) = await receiver.wait_for(1)
    assert request.json()["result"]["reused"]
    assert (await served.json("/queue/stats"))["reused"] == 1
    assert served.directories() == []
    assert await served.json("/queue") == {"status": "idle", "queued": [], "running": []}
    other = [await fetched(reuse_result=False), await fetched(prompt="other")]
    served.client.headers["X-API-Key"] = "second-key-of-a-test"
    others = await fetched()
    await served.client.post("/workers/0/resume")
    assert not (await served.finished(others))["reused"], "what another client sent is its own"
    served.client.headers["X-API-Key"] = "first-key-of-a-test"
    for job_id in other:
        assert not (await served.finished(job_id))["reused"]


async def test_a_cancel_that_meets_an_earlier_result_is_too_late(
    served: ServedDaemon, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is being stored then: the end is told of as any other, and nothing is left."""
    await done(served)
    complete, reached, go = JobStore.complete_queued, asyncio.Event(), asyncio.Event()

    async def held(self: JobStore, job: Job, result: bytes, *, model_sha256: str) -> bool:
        written = await complete(self, job, result, model_sha256=model_sha256)
        reached.set()
        await go.wait()
        return written

    monkeypatch.setattr(JobStore, "complete_queued", held)
    url = site.put("/a.wav", answer(body=tone()))
    job_id = (await served.client.post("/transcribe", json={"url": url})).json()["job_id"]
    await reached.wait()
    waiting = asyncio.create_task(served.client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=20"}))
    cancelling = asyncio.create_task(served.client.post(f"/jobs/{job_id}/cancel"))
    await asyncio.wait({cancelling}, timeout=0.2)
    assert not cancelling.done()
    go.set()
    assert (await cancelling).json()["error"]["code"] == "wrong_state"
    assert (await waiting).json()["reused"]
    assert served.directories() == []


async def test_a_result_without_logprobs_is_no_answer_to_who_asks_for_them(served: ServedDaemon) -> None:
    plain = await done(served)
    assert all("logprobs" not in segment for segment in plain["result"]["segments"])
    asked = await done(served, logprobs="true")
    assert (asked["reused"], asked["attempt"]) == (False, 1)
    again = await done(served, logprobs="true")
    assert again["reused"]
    assert again["result"]["segments"] == asked["result"]["segments"]
    assert all(segment["logprobs"] for segment in again["result"]["segments"])
    assert (await done(served))["result"]["segments"] == plain["result"]["segments"]


async def test_a_failed_job_or_another_checkpoint_is_no_answer(served: ServedDaemon, pool: Pool) -> None:
    assert (await done(served, prompt="fake:error"))["status"] == "failed"
    assert not (await done(served, prompt="fake:error"))["reused"]
    assert not (await done(served))["reused"]
    await pool.execute("UPDATE jobs SET model_sha256 = repeat('0', 64) WHERE state = 'completed'")
    assert not (await done(served))["reused"]
