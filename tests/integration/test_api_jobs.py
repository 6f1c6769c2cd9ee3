"""Reading, listing, cancelling and deleting jobs, and the routes of older services."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_daemon.api.schemas import Deliveries, JobOfService, JobPage, JobView, Queue, QueueStats, RunningJob
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.transcript.formats import Format, parse_result, render
from tests.receiver import Receiver, Reply
from tests.serving import ServedDaemon, served_daemon, tone

HOLD = "fake:sleep=30"


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch, jobs_per_gpu=1) as served:  # what is to wait, waits
        yield served


async def test_a_result_in_every_format(served: ServedDaemon) -> None:
    job_id = await served.submit(audio=tone(7.0), timestamp_granularity="word")
    job = JobView.model_validate(await served.finished(job_id))
    assert job.result is not None
    assert job.status == "completed"
    assert job.progress == 100
    stored = (await served.client.get(f"/jobs/{job_id}/result")).text
    for format, content_type in (
        (Format.JSON, "application/json"),
        (Format.TEXT, "text/plain; charset=utf-8"),
        (Format.SRT, "application/x-subrip; charset=utf-8"),
        (Format.VTT, "text/vtt; charset=utf-8"),
        (Format.TSV, "text/tab-separated-values; charset=utf-8"),
        (Format.DIARIZED_JSON, "application/json"),
    ):
        response = await served.client.get(f"/jobs/{job_id}/result", params={"format": format.value})
        assert response.status_code == 200
        assert response.headers["content-type"] == content_type
        assert response.headers["cache-control"] == "private, no-cache"
        assert response.text == render(format, parse_result(stored))
    verbose = await served.client.get(f"/jobs/{job_id}/result?format=verbose_json")
    assert verbose.text == stored
    assert verbose.json() == job.result.model_dump(mode="json")
    refused = await served.client.get(f"/jobs/{job_id}/result?format=docx")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "format")


async def test_a_job_without_a_result_has_none_to_give(served: ServedDaemon) -> None:
    failed = await served.submit(prompt="fake:error")
    job = JobView.model_validate(await served.finished(failed))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "engine_error"
    running = await served.submit(prompt=HOLD)
    for job_id in (failed, running):
        response = await served.client.get(f"/jobs/{job_id}/result")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "no_result")


async def test_what_is_no_job_is_not_found(served: ServedDaemon) -> None:
    for job_id in ("nope", "7f9c24e8-3b1a-4f6d-9d3e-0123456789ab", "%00", "..%2f..", "x" * 500):
        for method, path in (
            ("GET", f"/jobs/{job_id}"),
            ("GET", f"/jobs/{job_id}/result"),
            ("POST", f"/jobs/{job_id}/cancel"),
            ("DELETE", f"/jobs/{job_id}"),
            ("GET", f"/status?job_id={job_id}"),
        ):
            response = await served.client.request(method, path)
            assert response.status_code == 404, path
            assert response.json()["error"]["code"] == "not_found"


async def test_progress_and_place_while_it_runs_and_waits(served: ServedDaemon) -> None:
    running = await served.submit(prompt="fake:sleep=2")
    waiting = await served.submit(prompt=HOLD)
    job = JobView.model_validate(await served.until(running, lambda job: job["progress"] > 10))
    assert (job.status, job.stage, job.attempt) == ("processing", "transcribing", 1)
    assert job.queue_position is None
    job = JobView.model_validate(await served.json(f"/jobs/{waiting}"))
    assert (job.status, job.queue_position, job.stage, job.progress) == ("queued", 0, None, 0)


async def test_the_list_is_newest_first_in_pages_without_texts(served: ServedDaemon) -> None:
    failed = await served.submit(prompt="fake:error")
    await served.finished(failed)
    done = [await served.submit() for _ in range(4)]
    for job_id in done:
        await served.finished(job_id)
    first = JobPage.model_validate(await served.json("/jobs", limit=2))
    assert [job.job_id for job in first.jobs] == [done[3], done[2]]
    for job_id in (await served.submit(), await served.submit()):  # what comes and goes meanwhile moves no page
        await served.finished(job_id)
    assert (await served.client.delete(f"/jobs/{done[2]}")).status_code == 204
    second = JobPage.model_validate(await served.json("/jobs", limit=3, cursor=first.next_cursor))
    assert [job.job_id for job in second.jobs] == [done[1], done[0], failed]
    assert second.next_cursor is None
    by_state = JobPage.model_validate(await served.json("/jobs", status="failed"))
    assert [job.job_id for job in by_state.jobs] == [failed]
    assert (await served.json("/jobs", model="base"))["jobs"] == []
    assert len((await served.json("/jobs", model="demo"))["jobs"]) == 6
    assert "result" not in (await served.json("/jobs"))["jobs"][0]
    order = await served.submit(metadata='{"order": "100%_A"}')
    for search, found in (
        (order[:9].upper(), [order]),
        ("100%_a", [order]),
        ("100%ba", []),
        ("nothing", []),
        (failed, [failed]),
        (failed[1:], []),
    ):
        assert [job["job_id"] for job in (await served.json("/jobs", search=search))["jobs"]] == found, search
    name = (await served.json(f"/jobs/{order}"))["file_name"]
    assert len((await served.json("/jobs", search=name[1:].upper()))["jobs"]) == 7


async def test_a_wrong_filter_is_refused_by_name(served: ServedDaemon) -> None:
    for query in (
        "limit=0",
        "limit=501",
        "limit=many",
        "cursor=abc",
        "cursor=0",
        f"cursor={2**63}",
        "status=done",
        "model=%00",
        "search=%00",
    ):
        response = await served.client.get(f"/jobs?{query}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, query.split("=")[0]), query


async def test_cancel_a_waiting_and_a_running_job(served: ServedDaemon, receiver: Receiver) -> None:
    running = await served.submit(prompt=HOLD, callback_url=receiver.url)
    waiting = await served.submit(callback_url=receiver.url)
    await served.until(running, lambda job: job["status"] == "processing")
    for job_id in (waiting, running):
        response = await served.client.post(f"/jobs/{job_id}/cancel")
        assert response.status_code == 200
        assert JobView.model_validate(response.json()).status == "cancelled"
        again = await served.client.post(f"/jobs/{job_id}/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "wrong_state")
    requests = await receiver.wait_for(2)
    assert {request.json()["job_id"] for request in requests} == {waiting, running}


async def test_delete_removes_the_job_and_its_files(served: ServedDaemon) -> None:
    running = await served.submit(prompt=HOLD)
    waiting = await served.submit()
    await served.until(running, lambda job: job["status"] == "processing")
    for job_id in (waiting, running):
        response = await served.client.delete(f"/jobs/{job_id}")
        assert (response.status_code, response.content) == (204, b"")
        assert (await served.client.delete(f"/jobs/{job_id}")).status_code == 404
    assert served.directories() == []
    assert (await served.json("/jobs"))["jobs"] == []


async def test_the_job_tells_how_its_callback_went(served: ServedDaemon, receiver: Receiver) -> None:
    receiver.plan(Reply(status=500))
    job_id = await served.submit(callback_url=receiver.url)
    await receiver.wait_for(1)
    job = await served.until(job_id, lambda job: job["callback"]["attempts"] == 1)
    assert job["callback"]["delivered"] is False
    assert job["callback"]["state"] == "pending"
    assert "500" in job["callback"]["error"]
    assert job["callback"]["next_attempt_at"] is not None
    good = await served.submit(callback_url=receiver.url)
    job = await served.until(good, lambda job: job["callback"]["delivered"])
    view = JobView.model_validate(job).callback
    assert view is not None
    assert (view.state, view.attempts, view.error, view.next_attempt_at) == ("delivered", 1, None, None)
    assert view.delivered_at_ms is not None
    without = await served.submit()
    assert (await served.finished(without))["callback"] is None


async def test_the_log_of_deliveries_and_sending_again(served: ServedDaemon, receiver: Receiver) -> None:
    receiver.plan(Reply(status=500))
    job_id = await served.submit(callback_url=f"{receiver.url}/hook?token=word#part")
    await served.until(job_id, lambda job: job["callback"]["attempts"] == 1)
    text = (await served.client.get(f"/jobs/{job_id}/callbacks")).text
    assert "word" not in text
    log = Deliveries.model_validate_json(text)
    assert (log.job_id, log.url, log.state, log.attempts) == (job_id, f"{receiver.url}/hook", "pending", 1)
    assert log.next_attempt_at is not None
    (tried,) = log.deliveries
    assert (tried.number, tried.status, tried.error, tried.delivered) == (1, 500, "HTTP 500", False)
    assert 0 <= tried.duration_s < 10
    response = await served.client.post(f"/jobs/{job_id}/callbacks/redeliver")
    assert response.status_code == 202
    asked = Deliveries.model_validate(response.json())
    assert asked.state in ("pending", "delivered"), "it may have gone out already"
    assert asked.webhook_id == log.webhook_id
    await served.until(job_id, lambda job: job["callback"]["delivered"])
    again = await served.client.post(f"/jobs/{job_id}/callbacks/redeliver")
    assert again.status_code == 202
    await served.until(job_id, lambda job: job["callback"]["attempts"] == 3 and job["callback"]["delivered"])
    log = Deliveries.model_validate(await served.json(f"/jobs/{job_id}/callbacks"))
    assert [(tried.number, tried.status, tried.delivered) for tried in log.deliveries] == [
        *((1, 500, False), (2, 200, True), (3, 200, True))
    ]
    assert {request.headers["webhook-id"] for request in receiver.requests} == {log.webhook_id}
    assert {request.path for request in receiver.requests} == {"/hook?token=word"}


async def test_no_callback_to_show_or_send(served: ServedDaemon, receiver: Receiver) -> None:
    without = await served.submit()
    running = await served.submit(prompt=HOLD, callback_url=receiver.url)
    log = Deliveries.model_validate(await served.json(f"/jobs/{running}/callbacks"))
    assert (log.state, log.attempts, log.next_attempt_at, log.deliveries) == (None, 0, None, [])
    for method, path, status, code in (
        ("GET", f"/jobs/{without}/callbacks", 404, "no_callback"),
        ("POST", f"/jobs/{without}/callbacks/redeliver", 404, "no_callback"),
        ("POST", f"/jobs/{running}/callbacks/redeliver", 409, "wrong_state"),
        ("GET", "/jobs/7f9c24e8-3b1a-4f6d-9d3e-0123456789ab/callbacks", 404, "not_found"),
        ("POST", "/jobs/7f9c24e8-3b1a-4f6d-9d3e-0123456789ab/callbacks/redeliver", 404, "not_found"),
    ):
        response = await served.client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), path
    await served.client.post(f"/jobs/{running}/cancel")
    assert [request.json()["status"] for request in await receiver.wait_for(1)] == ["cancelled"]


async def test_the_cuda_services_status(served: ServedDaemon) -> None:
    done, failed = await served.submit(), await served.submit(prompt="fake:error")
    await served.finished(done)
    await served.finished(failed)
    job = JobOfService.model_validate(await served.json("/status", job_id=done))
    assert job.result is not None
    assert (job.status, job.error, job.error_code) == ("completed", None, None)
    job = JobOfService.model_validate(await served.json("/status", job_id=failed))
    assert job.error
    assert (job.status, job.error_code, job.result) == ("failed", "engine_error", None)


async def test_the_rocm_services_status_and_the_queue(served: ServedDaemon) -> None:
    idle = RunningJob.model_validate(await served.json("/status"))
    assert (idle.busy, idle.stage, idle.job_id) == (False, "idle", None)
    assert await served.json("/queue") == {"status": "idle", "queued": [], "running": []}
    running = await served.submit(prompt=HOLD, name="long.wav")
    await served.until(running, lambda job: job["stage"] == "transcribing")
    low, high = await served.submit(priority="-1"), await served.submit(priority="1")
    now = RunningJob.model_validate(await served.json("/status"))
    assert (now.busy, now.job_id, now.filename, now.stage) == (True, running, "long.wav", "transcribing")
    assert now.elapsed_seconds is not None
    assert now.stage_elapsed_seconds is not None
    assert now.elapsed_seconds >= now.stage_elapsed_seconds - 0.1
    assert now.details == {"audio_duration_seconds": 1.0}
    queue = Queue.model_validate(await served.json("/queue"))
    assert queue == Queue(status="busy", queued=[high, low], running=[running])
    stats = QueueStats.model_validate(await served.json("/queue/stats"))
    assert (stats.queued, stats.started, stats.finished, stats.workers) == (2, 1, 0, 1)


async def test_many_readers_at_once(served: ServedDaemon) -> None:
    job_id = await served.submit(audio=tone(7.0))
    await served.finished(job_id)
    answers = await asyncio.gather(*(served.client.get(f"/jobs/{job_id}/result?format=srt") for _ in range(30)))
    assert len({answer.text for answer in answers}) == 1
