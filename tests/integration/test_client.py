"""The Python client against a real daemon, and against what is none."""

import asyncio
import math
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_daemon.client import NO_ANSWER, GpuDaemonClientError, JobView, WhisperClient
from gpu_daemon.database.pool import ConnectionParameters
from tests.receiver import Receiver, Reply
from tests.running import FAKE_ENGINE, running_daemon
from tests.web import Site, answer


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """Ten seconds that the fake engine hears words in."""
    path = tmp_path / "ünïcode tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(b"".join(struct.pack("<h", round(8000 * math.sin(n / 10))) for n in range(160_000)))
    return path


async def in_thread(base_url: str, use: Callable[[WhisperClient], None]) -> None:
    """The client blocks; the test's event loop must not."""

    def run() -> None:
        with WhisperClient(base_url) as client:
            use(client)

    await asyncio.to_thread(run)


async def refusal(base_url: str, use: Callable[[WhisperClient], object]) -> GpuDaemonClientError:
    with pytest.raises(GpuDaemonClientError) as caught:
        await in_thread(base_url, lambda client: void(use(client)))
    return caught.value


def void(_: object) -> None:
    """Of a lambda's value."""


async def test_an_address_is_sent_in_place_of_a_file(
    tmp_path: Path, tone: Path, database: ConnectionParameters, site: Site
) -> None:
    url = site.put("/talk.wav", answer(body=tone.read_bytes()))

    def use(client: WhisperClient) -> None:
        job = client.wait(client.submit(f"{url}?signature=secret", language="en", metadata={"order": 7}))
        assert (job.status, job.json["file_name"], job.json["source_url"]) == ("completed", "talk.wav", url)
        assert (job.json["language"], job.json["metadata"]) == ("en", {"order": 7})

    async with running_daemon(tmp_path, database, **FAKE_ENGINE, FETCH_ALLOWED_NETWORKS="loopback") as daemon:
        await in_thread(daemon.url, use)


async def test_from_a_file_to_its_transcript(tmp_path: Path, tone: Path, database: ConnectionParameters) -> None:
    seen: list[JobView] = []
    uploaded: list[tuple[int, int]] = []

    def use(client: WhisperClient) -> None:
        job_id = client.submit(
            tone,
            model="demo",
            language="English",
            priority=3,
            metadata={"order": 7},
            on_upload_progress=lambda sent, size: uploaded.append((sent, size)),
        )
        job = client.wait(job_id, seen.append)
        assert (job.job_id, job.status, job.progress) == (job_id, "completed", 100.0)
        assert (job.json["priority"], job.json["metadata"], job.json["language"]) == (3, {"order": 7}, "English")
        assert job.json["file_name"] == tone.name
        assert client.result(job_id, "srt").startswith("1\n00:00:00,000 --> ")
        assert client.result(job_id, "text").strip() == job.json["result"]["text"] != ""
        (demo,) = [model for model in client.models() if model.enabled]
        assert (demo.name, demo.state, demo.done_bytes) == ("demo", "ready", demo.size_bytes)
        assert client.health()["status"] == "ready"

    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        await in_thread(daemon.url, use)
    size_bytes = tone.stat().st_size
    assert uploaded[-1] == (size_bytes, size_bytes)
    assert len(uploaded) > 3, "it is streamed, not read at once"
    assert [sent for sent, _ in uploaded] == sorted(sent for sent, _ in uploaded)
    assert seen[-1].ended
    assert [job.ended for job in seen[:-1]] == [False] * (len(seen) - 1)


async def test_what_the_daemon_refuses_is_said_in_its_words(
    tmp_path: Path, tone: Path, database: ConnectionParameters
) -> None:
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        error = await refusal(daemon.url, lambda client: client.submit(tone, model="nonesuch"))
        assert (error.status, error.code) == (400, "model_not_found")
        assert "nonesuch" in error.message
        assert error.request_id is not None
        error = await refusal(daemon.url, lambda client: client.job("nonesuch"))
        assert (error.status, error.code) == (404, "not_found")


async def test_a_running_job_is_cancelled(tmp_path: Path, tone: Path, database: ConnectionParameters) -> None:
    def use(client: WhisperClient) -> None:
        job_id = client.submit(tone, other_fields={"prompt": "fake:hang"})
        for job in client.watch(job_id):
            if job.stage == "transcribing":
                client.cancel(job_id)
        assert job.status == "cancelled"

    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        await in_thread(daemon.url, use)


async def test_where_nobody_answers(unused_tcp_port: int) -> None:
    error = await refusal(f"http://127.0.0.1:{unused_tcp_port}", lambda client: client.health())
    assert (error.status, error.code) == (None, NO_ANSWER)
    assert f"no daemon answers at http://127.0.0.1:{unused_tcp_port}" in error.message


@pytest.mark.parametrize("status", [200, 404, 502])
async def test_where_something_else_answers(receiver: Receiver, status: int) -> None:
    receiver.plan(Reply(status=status))
    error = await refusal(receiver.url, lambda client: client.health())
    assert (error.status, error.code) == (status, NO_ANSWER)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://[::1", ""])
async def test_what_is_no_address(url: str) -> None:
    assert (await refusal(url, lambda client: client.health())).code == NO_ANSWER
