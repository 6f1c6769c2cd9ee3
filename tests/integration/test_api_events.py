"""GET /jobs/{id}/events, read by us, by `curl -N` and by a browser's EventSource."""

import asyncio
import json
import re
import shutil
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.async_api import async_playwright

from gpu_daemon.api import events as events_module
from gpu_daemon.api.context import Context
from gpu_daemon.api.following import follow
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.events import EventHub
from gpu_daemon.jobs.state import JobState
from tests.new_jobs import stored_job
from tests.serving import CHROMIUM, ServedDaemon, served_daemon, tone


@dataclass(frozen=True, slots=True)
class Said:
    id: int
    event: str
    data: dict[str, Any]


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch, jobs_per_gpu=1) as served:  # what is to wait, waits
        yield served


def parsed(block: str) -> Said | None:
    """None: a comment, or what is for the browser alone."""
    fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
    return Said(int(fields["id"]), fields["event"], json.loads(fields["data"])) if "data" in fields else None


@asynccontextmanager
async def told(served: ServedDaemon, job_id: str, **headers: str) -> AsyncIterator[AsyncIterator[Said]]:
    async with served.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"

        async def messages() -> AsyncIterator[Said]:
            block = ""
            async for line in response.aiter_lines():
                if line:
                    block += f"{line}\n"
                elif block:
                    if (said := parsed(block)) is not None:
                        yield said
                    block = ""

        yield messages()


async def all_told(served: ServedDaemon, job_id: str, **headers: str) -> list[Said]:
    async with told(served, job_id, **headers) as messages:
        return [said async for said in messages]


def put_together(said: list[Said]) -> list[dict[str, Any]]:
    """The segments, as a reader keeps them."""
    segments: list[dict[str, Any]] = []
    for one in said:
        if one.event == "segments":
            segments = segments[: one.data["first"]] + one.data["segments"]
    return segments


async def until_first_segments(messages: AsyncIterator[Said]) -> list[Said]:
    said = []
    async for one in messages:
        said.append(one)
        if one.event == "segments":
            break
    return said


async def test_from_the_queue_to_the_end(served: ServedDaemon, tmp_path: Path) -> None:
    job_id = await served.submit(audio=tone(12.0), prompt=f"fake:until={tmp_path / 'go'}")
    async with told(served, job_id) as messages:
        first = await anext(messages)
        assert (first.event, first.data["job_id"], first.id) == ("state", job_id, 0)
        assert first.data["status"] in ("queued", "processing")
        (tmp_path / "go").touch()
        said = [first, *[one async for one in messages]]
    assert [one.event for one in said].count("end") == 1
    assert said[-1].event == "end"
    assert said[-1].data["status"] == "completed"
    progress = [one.data["progress"] for one in said if one.event == "state" and one.data["status"] == "processing"]
    assert progress == sorted(progress)
    assert [one.id for one in said] == sorted(one.id for one in said)
    result = (await served.finished(job_id))["result"]
    assert put_together(said) == result["segments"]
    assert len(result["segments"]) == 3


async def test_segments_come_as_they_are_heard_and_a_reader_comes_back_for_the_rest(
    served: ServedDaemon, tmp_path: Path
) -> None:
    job_id = await served.submit(audio=tone(12.0), prompt=f"fake:then=until={tmp_path / 'go'}")
    async with told(served, job_id) as messages:
        said = await until_first_segments(messages)
    assert (await served.json(f"/jobs/{job_id}"))["status"] == "processing"
    assert said[-1].data["first"] == 0
    assert [one.data["stage"] for one in said if one.event == "state"][-1] == "transcribing"
    (tmp_path / "go").touch()
    await served.finished(job_id)
    rest = await all_told(served, job_id, **{"Last-Event-ID": str(said[-1].id)})
    assert rest[0].event == "segments"
    assert rest[0].data["first"] == len(said[-1].data["segments"])
    result = (await served.finished(job_id))["result"]
    assert put_together(said + rest) == result["segments"]
    response = await served.client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(rest[-1].id)})
    assert (response.status_code, response.content) == (204, b"")
    for nonsense in ("x", "-1", "9" * 40):
        assert put_together(await all_told(served, job_id, **{"Last-Event-ID": nonsense})) == result["segments"]


async def test_another_attempt_begins_again(served: ServedDaemon, tmp_path: Path) -> None:
    job_id = await served.submit(audio=tone(7.0), prompt=f"fake:then=once={tmp_path / 'died'},exit")
    said = await all_told(served, job_id)
    job = await served.finished(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 2)
    assert put_together(said) == job["result"]["segments"]
    assert {one.data["attempt"] for one in said if one.event == "segments"} >= {2}
    assert said[-1].data["attempt"] == 2


async def test_how_others_end(served: ServedDaemon, tmp_path: Path) -> None:
    failed = await served.submit(prompt="fake:error")
    assert [one.data["error"]["code"] for one in await all_told(served, failed) if one.event == "end"] == [
        "engine_error"
    ]
    never = f"fake:until={tmp_path / 'never'}"
    running, waiting = await served.submit(prompt=never), await served.submit(prompt=never)
    async with told(served, running) as messages, told(served, waiting) as others:
        await anext(messages)
        await anext(others)
        assert (await served.client.delete(f"/jobs/{waiting}")).status_code == 204
        assert [one.data["status"] async for one in others if one.event == "end"] == ["cancelled"]
        await served.client.post(f"/jobs/{running}/cancel")
        assert [one.data["status"] async for one in messages if one.event == "end"] == ["cancelled"]
    for path in (f"/jobs/{waiting}/events", "/jobs/nonesuch/events"):
        assert (await served.client.get(path)).status_code == 404


async def test_a_quiet_line_is_kept_open(served: ServedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "KEEP_ALIVE_S", 0.05)
    job_id = await served.submit(prompt=f"fake:until={tmp_path / 'go'}")
    last = ""
    async with served.client.stream("GET", f"/jobs/{job_id}/events") as response:
        async for line in response.aiter_lines():
            if line == ": keep-alive":
                (tmp_path / "go").touch()
            last = line or last
    assert '"completed"' in last


async def test_a_reader_that_stops_reading_holds_up_nothing(served: ServedDaemon, tmp_path: Path) -> None:
    job_id = await served.submit(audio=tone(12.0), prompt=f"fake:then=until={tmp_path / 'go'}")
    address = urlsplit(served.url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (address.hostname, address.port))
    await loop.sock_sendall(
        sock, f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    (tmp_path / "go").touch()
    await served.finished(job_id)
    read = b""
    while piece := await loop.sock_recv(sock, 1000):
        read += piece
    sock.close()
    assert read.count(b"event: end\n") == 1


async def test_a_slow_reader_costs_no_memory() -> None:
    """It does not look, and the job changes a hundred thousand times."""
    job = stored_job(state=JobState.PROCESSING)

    class Row:
        async def get(self, job_id: str) -> object:
            return job

    class Running:
        def live(self, job_id: str) -> None:
            return None

    hub = EventHub()
    context = cast(Context, type("Parts", (), {"hub": hub, "jobs": Row(), "scheduler": Running()})())
    async with aclosing(follow(context, job, every_s=60)) as looks:
        await anext(looks)
        tracemalloc.start()
        before = tracemalloc.take_snapshot()
        for number in range(100_000):
            hub.publish("job", job.id, progress=number / 1000)
        grown = sum(line.size_diff for line in tracemalloc.take_snapshot().compare_to(before, "filename"))
        tracemalloc.stop()
        assert await anext(looks) is not None
    assert grown < 50_000
    assert hub._watchers == {}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_follows_to_the_end(served: ServedDaemon) -> None:
    job_id = await served.submit(audio=tone(7.0))
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sSN", "--noproxy", "*", f"{served.url}/jobs/{job_id}/events"), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        stdout, _ = await curl.communicate()
    assert curl.returncode == 0
    assert re.findall(r"^event: end\ndata: .*\"status\": \"completed\"", stdout.decode(), re.MULTILINE)


FOLLOW = """jobId => new Promise(resolve => {
    const seen = {segments: [], states: 0, opened: 0};
    const source = new EventSource(`/jobs/${jobId}/events`);
    source.onopen = () => seen.opened++;
    source.addEventListener("state", () => seen.states++ || go());
    source.addEventListener("segments", event => {
        const {first, segments} = JSON.parse(event.data);
        seen.segments.splice(first, Infinity, ...segments);
    });
    source.addEventListener("end", event => seen.end = JSON.parse(event.data));
    // Not closed by hand: it comes back, is told that there is no more, and gives up.
    source.onerror = () => source.readyState === EventSource.CLOSED && resolve(seen);
})"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_browser_follows_to_the_end(
    served: ServedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "COME_BACK_MS", 50)
    job_id = await served.submit(audio=tone(12.0), prompt=f"fake:then=until={tmp_path / 'go'}")
    await served.until(job_id, lambda job: job["stage"] == "transcribing")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-dev-shm-usage"])
        page = await browser.new_page()
        await page.goto(f"{served.url}/docs")
        await page.expose_function("go", lambda: (tmp_path / "go").touch())
        seen = await page.evaluate(FOLLOW, job_id)
        await browser.close()
    assert seen["end"]["status"] == "completed"
    assert seen["states"] > 0
    assert seen["opened"] == 1, "the second time it was told 204"
    assert seen["segments"] == (await served.finished(job_id))["result"]["segments"]


async def test_a_reader_with_a_key_sees_its_own_jobs_only(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_daemon(tmp_path, database, monkeypatch, api_keys=("one", "two")) as served:
        response = await served.client.post(
            "/transcribe", files={"file": ("a.wav", tone())}, headers={"X-API-Key": "one"}
        )
        job_id = response.json()["job_id"]
        answers: list[httpx2.Response] = [
            await served.client.get(f"/jobs/{job_id}/events", headers=headers)
            for headers in ({"X-API-Key": "one"}, {"X-API-Key": "two"}, {})
        ]
    assert [answer.status_code for answer in answers] == [200, 404, 401]


async def test_a_ticket_takes_the_place_of_a_key(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one job's events and nothing else, and for a while."""
    mine, other = {"X-API-Key": "one"}, {"X-API-Key": "two"}
    async with served_daemon(tmp_path, database, monkeypatch, api_keys=("one", "two")) as served:
        ask = served.client.get
        jobs = [
            (await served.client.post("/transcribe", files={"file": ("a.wav", tone())}, headers=mine)).json()["job_id"]
            for _ in range(2)
        ]
        tickets = [await served.client.post(f"/jobs/{jobs[0]}/events/ticket", headers=key) for key in (mine, other, {})]
        assert [answer.status_code for answer in tickets] == [200, 404, 401]
        url = tickets[0].json()["url"]
        followed = await ask(url)
        assert (followed.status_code, followed.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert '"status": "completed"' in followed.text
        assert (await ask(url, headers=other)).status_code == 404, "a key says more than a ticket"
        for elsewhere in (
            url.replace(jobs[0], jobs[1]),
            url.replace("/events", ""),
            url.replace("/events", "/result"),
            url[:-1] + ("0" if url[-1] != "0" else "1"),
            url.replace("ticket=", "ticket=9"),
            url.partition("=")[0] + "=",
        ):
            assert (await ask(elsewhere)).status_code == 401, elsewhere
