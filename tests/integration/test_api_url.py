"""POST /transcribe with a `url`, against a real web server on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gpu_daemon.api.schemas import JobView, Result
from gpu_daemon.database.pool import ConnectionParameters
from tests.serving import ServedDaemon, served_daemon, tone
from tests.web import Held, Site, answer, redirect


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(
        tmp_path,
        database,
        monkeypatch,
        fetch_allowed_networks=("loopback",),
        max_file_size_mb=1,
        max_duration_s=20,
        max_attempts=2,
    ) as served:
        yield served


async def send(served: ServedDaemon, url: str, **members: Any) -> str:
    response = await served.client.post("/transcribe", json={"url": url, **members})
    assert response.status_code == 202, response.text
    job_id: str = response.json()["job_id"]
    return job_id


async def test_a_file_is_fetched_and_done(served: ServedDaemon, site: Site) -> None:
    url = site.put("/recordings/t%C3%B6ne%20%3C1%3E.wav", answer(body=tone()))
    job_id = await send(served, f"{url}?signature=secret#t=1", language="English", metadata={"order": 7}, priority=3)
    job = await served.finished(job_id)
    JobView.model_validate(job)
    assert (job["status"], job["attempt"], job["error"]) == ("completed", 1, None)
    assert (job["file_name"], job["file_size_bytes"], job["duration"]) == ("töne <1>.wav", len(tone()), 1.0)
    assert (job["source_url"], job["language"], job["metadata"]) == (url, "English", {"order": 7})
    assert job["timings"]["fetching"] > 0
    assert job["timings"]["preparing"] >= 0  # it is not decoded: less than half a millisecond is 0
    (request,) = site.requests
    assert request.path.endswith("?signature=secret")
    assert served.directories() == []


async def test_a_form_may_hold_the_url_and_wait_for_the_result(served: ServedDaemon, site: Site) -> None:
    site.put("/file", answer(body=tone(), headers={"Content-Disposition": 'attachment; filename="talk.wav"'}))
    url = site.put("/a", redirect("/file"))
    response = await served.client.post(
        "/transcribe", files={"url": (None, url), "wait": (None, "true"), "timestamp_granularity": (None, "word")}
    )
    assert response.status_code == 200, response.text
    assert Result.model_validate(response.json()).segments[0].words
    assert (await served.json(f"/jobs/{response.headers['x-job-id']}"))["file_name"] == "talk.wav"


async def test_the_job_is_durable_before_a_byte_is_fetched_and_says_that_it_fetches(
    served: ServedDaemon, site: Site
) -> None:
    page = Held(tone(), after=100)
    job_id = await send(served, site.put("/x.wav", page))
    async with asyncio.timeout(10):
        await page.stopped.wait()
    job = await served.until(job_id, lambda job: job["stage"] == "fetching")
    JobView.model_validate(job)
    assert (job["status"], job["file_size_bytes"], job["duration"]) == ("queued", None, None)
    page.released.set()
    assert (await served.finished(job_id))["status"] == "completed"


async def test_how_much_has_been_fetched_is_said(served: ServedDaemon, site: Site) -> None:
    page = Held(tone(), after=len(tone()) // 2)
    job_id = await send(served, site.put("/x.wav", page))
    told: list[float] = []
    async with asyncio.timeout(20), served.client.stream("GET", f"/jobs/{job_id}/events") as events:
        async for line in events.aiter_lines():
            job = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if "progress" in job:
                told.append(job["progress"])
                if job["stage"] == "fetching" and job["progress"] == pytest.approx(2.5, abs=0.1):
                    page.released.set()
    assert page.released.is_set()
    assert (told == sorted(told), told[-1]) == (True, 100)


async def test_one_that_is_fetched_while_no_worker_takes_it_does_not_fall_back(
    served: ServedDaemon, site: Site
) -> None:
    await served.client.post("/workers/0/drain")
    job_id = await send(served, site.put("/x.wav", answer(body=tone())))
    job = await served.until(job_id, lambda job: job["file_size_bytes"] is not None and job["stage"] is None)
    assert (job["status"], job["progress"]) == ("queued", 5)
    await served.client.post("/workers/0/resume")
    assert (await served.finished(job_id))["status"] == "completed"


async def test_a_cancelled_fetch_stops_and_leaves_nothing(served: ServedDaemon, site: Site) -> None:
    page = Held(tone(), after=100)
    job_id = await send(served, site.put("/x.wav", page))
    async with asyncio.timeout(10):
        await page.stopped.wait()
    response = await served.client.post(f"/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    assert served.directories() == []


async def test_local_files_do_not_wait_for_a_slow_server(served: ServedDaemon, site: Site) -> None:
    """One worker, and more fetches than are made at once."""
    pages = [Held(tone(), after=100) for _ in range(6)]
    slow = [await send(served, site.put(f"/{i}.wav", page)) for i, page in enumerate(pages)]
    local = [await served.submit() for _ in range(2)]
    for job_id in local:
        assert (await served.finished(job_id))["status"] == "completed"
    for page in pages:
        page.released.set()
    for job_id in slow:
        assert (await served.finished(job_id))["status"] == "completed"


FAILURES: dict[str, tuple[Any, str, int]] = {
    "gone": (answer(404, b"secret"), "fetch_failed", 1),
    "broken": (answer(500, b"secret"), "fetch_failed", 2),
    "too large": (answer(body=b"x" * 1_100_000), "too_large", 1),
    "a page": (answer(body=b"<html>log in</html>", headers={"Content-Type": "text/html"}), "not_media", 1),
    "nothing in it": (answer(body=b""), "not_media", 1),
    "too long": (answer(body=tone(21.0)), "too_long", 1),
    "to metadata": (redirect("http://169.254.169.254/latest"), "url_blocked", 1),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_what_goes_wrong_is_said_without_secrets(
    served: ServedDaemon, site: Site, database: ConnectionParameters, case: str
) -> None:
    page, code, attempts = FAILURES[case]
    job_id = await send(served, site.put("/x.wav", page) + "?signature=secret")
    job = await served.finished(job_id)
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", code, attempts)
    assert "secret" not in str(job)
    assert "127.0.0.1" not in job["error"]["message"]
    assert len(site.requests) == attempts
    assert served.directories() == []
    connection = await asyncpg.connect(**database.arguments())
    assert await connection.fetchval("SELECT source_url FROM jobs") == f"{site.url}/x.wav"
    await connection.close()


async def test_a_waiting_client_is_told_that_the_url_is_at_fault(served: ServedDaemon, site: Site) -> None:
    for page, status, code in (
        (answer(404), 400, "fetch_failed"),
        (redirect("ftp://example.org/x"), 400, "url_blocked"),
        (answer(body=b"<html>"), 415, "not_media"),
    ):
        response = await served.client.post("/transcribe", json={"url": site.put("/x", page), "wait": True})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, "url")


async def test_a_server_that_recovers_costs_an_attempt(served: ServedDaemon, site: Site) -> None:
    job_id = await send(served, site.put("/x.wav", answer(503), answer(body=tone())))
    job = await served.finished(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 2)


async def test_a_repeated_request_finds_its_job(served: ServedDaemon, site: Site) -> None:
    url = site.put("/x.wav", answer(body=tone()))
    headers = {"Idempotency-Key": "once"}
    first = await served.client.post("/transcribe", json={"url": url, "priority": 1}, headers=headers)
    form = await served.client.post("/transcribe", files={"url": (None, url), "priority": (None, "1")}, headers=headers)
    assert first.status_code == form.status_code == 202
    assert first.json()["job_id"] == form.json()["job_id"]
    other = await served.client.post("/transcribe", json={"url": url, "priority": 2}, headers=headers)
    assert other.status_code == 409
    await served.finished(first.json()["job_id"])


async def test_a_large_json_body_is_refused(served: ServedDaemon) -> None:
    response = await served.client.post("/transcribe", json={"url": "https://example.org/", "prompt": "x" * 70_000})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
