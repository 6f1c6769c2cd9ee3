"""The Python client against a real daemon, and against what is none."""

import asyncio
import math
import struct
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from gpu_daemon.client import (
    NO_ANSWER,
    AsyncWhisperClient,
    GpuDaemonClientError,
    JobView,
    Retries,
    WhisperClient,
    verify_callback,
)
from gpu_daemon.database.pool import ConnectionParameters
from tests.receiver import Receiver, Reply
from tests.relay import Relay
from tests.running import FAKE_ENGINE, running_daemon
from tests.serving import served_daemon
from tests.web import Site, answer

NEVER = "fake:until=/nowhere/never"


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
        with WhisperClient(base_url, retries=Retries(most=0)) as client:
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
        job_id = client.submit(tone, prompt="fake:hang")
        for job in client.watch(job_id):
            if job.stage == "transcribing":
                client.cancel(job_id)
        assert job.status == "cancelled"

    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        await in_thread(daemon.url, use)


async def test_where_nobody_answers(free_port: int) -> None:
    error = await refusal(f"http://127.0.0.1:{free_port}", lambda client: client.health())
    assert (error.status, error.code) == (None, NO_ANSWER)
    assert f"no daemon answers at http://127.0.0.1:{free_port}" in error.message


@pytest.mark.parametrize("status", [200, 404, 502])
async def test_where_something_else_answers(receiver: Receiver, status: int) -> None:
    receiver.plan(Reply(status=status))
    error = await refusal(receiver.url, lambda client: client.health())
    assert (error.status, error.code) == (status, NO_ANSWER)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://[::1", ""])
async def test_what_is_no_address(url: str) -> None:
    assert (await refusal(url, lambda client: client.health())).code == NO_ANSWER


async def test_a_file_is_transcribed_in_one_call(
    tmp_path: Path, tone: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[JobView] = []
    async with served_daemon(tmp_path, database, monkeypatch) as served:

        def use(client: WhisperClient) -> None:
            result = client.transcribe_file(str(tone), on_progress=seen.append, language="en", word_timestamps=True)
            assert result["text"]
            assert (result["language"], result["duration"]) == ("en", 10.0)
            assert client.result(seen[-1].job_id, "vtt", max_words_per_line=1).count("-->") == 8
            with pytest.raises(GpuDaemonClientError) as failed:
                client.transcribe_file(tone, prompt="fake:error")
            assert (failed.value.code, failed.value.status) == ("engine_error", None)
            with pytest.raises(FileNotFoundError):
                client.transcribe_file("nowhere.wav")

        await in_thread(served.url, use)
    assert seen[-1].status == "completed"
    assert [job.progress for job in seen] == sorted(job.progress for job in seen)


async def test_with_asyncio(
    tmp_path: Path, tone: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[JobView] = []
    uploaded: list[tuple[int, int]] = []
    async with (
        served_daemon(tmp_path, database, monkeypatch) as served,
        AsyncWhisperClient(served.url) as client,
    ):
        result = await client.transcribe_file(tone, on_progress=seen.append, metadata={"order": 7})
        assert (result["duration"], seen[-1].json["metadata"]) == (10.0, {"order": 7})
        job_id = await client.submit(tone, prompt=NEVER, on_upload_progress=lambda *sizes: uploaded.append(sizes))
        assert uploaded[-1] == (tone.stat().st_size,) * 2
        async for event in client.events(job_id):
            if event.json.get("stage") == "transcribing" and event.kind == "state":
                assert (await client.cancel(job_id)).status == "cancelled"
        assert (await client.wait(job_id)).status == "cancelled"
        assert (await client.health())["status"] == "ready"
        assert [model.name for model in await client.models() if model.enabled] == ["demo"]
        assert (await client.result(seen[-1].job_id, "srt")).startswith("1\n")
        with pytest.raises(GpuDaemonClientError, match="it has no result"):
            await client.result(job_id)


async def test_events_go_on_over_a_broken_connection(
    tmp_path: Path, tone: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments: list[object] = []
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        address = urlsplit(served.url)
        relay = Relay(replace(database, host=str(address.hostname), port=address.port or 0))
        at = await relay.start()
        async with AsyncWhisperClient(f"http://{at.host}:{at.port}") as client:
            job_id = await client.submit(tone, prompt=f"fake:then=until={tmp_path / 'go'}")
            async for event in client.events(job_id):
                if event.kind == "segments":
                    segments[event.json["first"] :] = event.json["segments"]
                    if not (tmp_path / "go").exists():
                        relay.go_away()
                        relay.refuse = False
                        (tmp_path / "go").touch()
            job = await client.job(job_id)
        await relay.stop()
    assert event.kind == "end"
    assert segments == job.json["result"]["segments"]


async def test_a_callback_is_known_by_its_signature(
    tmp_path: Path, tone: Path, database: ConnectionParameters, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "whsec_" + "c2VjcmV0" * 6
    async with (
        served_daemon(tmp_path, database, monkeypatch, callback_secret=(SecretStr(secret),)) as served,
        AsyncWhisperClient(served.url) as client,
    ):
        job_id = await client.submit(tone, callback_url=receiver.url)
        (request,) = await receiver.wait_for(1)
    assert verify_callback(request.body, request.headers, secret)["job_id"] == job_id
