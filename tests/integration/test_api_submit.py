"""POST /transcribe over a real socket: what is accepted, what is refused, and that a refusal leaves nothing behind."""

import asyncio
import base64
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from gpu_daemon.api import line as line_module
from gpu_daemon.api import submit as submit_module
from gpu_daemon.api.schemas import Accepted, Result
from gpu_daemon.audio.ffmpeg import find_ffmpeg
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.store import jobs as jobs_module
from tests.relay import Relay
from tests.serving import ServedDaemon, served_daemon, tone


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(
        tmp_path, database, monkeypatch, max_file_size_mb=1, max_duration_s=20, max_queue=3, jobs_per_gpu=1
    ) as served:
        yield served


def voice(audio: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(audio).decode()}"


async def nothing_left(served: ServedDaemon) -> None:
    assert served.directories() == []
    assert (await served.json("/jobs"))["jobs"] == []


def error_of(response: httpx2.Response) -> dict[str, Any]:
    assert response.headers["x-request-id"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "/jobs/" not in error["message"]
    return error


async def test_a_job_is_accepted_and_done(served: ServedDaemon) -> None:
    response = await served.post(
        name="../Müller \u202e&<b>.wav", language="English", metadata='{"order": 7}', priority="3"
    )
    assert response.status_code == 202
    answer = Accepted.model_validate(response.json())
    assert (answer.status, answer.queue_position) == ("queued", 0)
    assert response.headers["location"] == answer.status_url == f"/jobs/{answer.job_id}"
    job = await served.finished(answer.job_id)
    assert job["status"] == "completed", job
    assert (job["file_name"], job["language"], job["metadata"], job["priority"]) == (
        "Müller &<b>.wav",
        "English",
        {"order": 7},
        3,
    )
    assert job["file_size_bytes"] == len(tone())
    assert served.directories() == []


async def test_fields_may_come_after_the_file(served: ServedDaemon) -> None:
    boundary = "after"
    body = b"".join(
        (
            b'--after\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + tone() + b"\r\n",
            b'--after\r\nContent-Disposition: form-data; name="language"\r\n\r\nfr\r\n--after--\r\n',
        )
    )
    response = await served.client.post(
        "/transcribe", content=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    assert response.status_code == 202, response.text
    assert (await served.json(response.json()["status_url"]))["language"] == "fr"


async def test_wait_answers_with_the_result(served: ServedDaemon) -> None:
    response = await served.post(wait="true", timestamp_granularity="word")
    assert response.status_code == 200
    result = Result.model_validate(response.json())
    assert result.segments[0].words
    assert response.headers["cache-control"] == "no-store"
    assert (await served.json(f"/jobs/{response.headers['x-job-id']}"))["result"] == response.json()


async def test_a_preferred_wait_ends_with_the_result_or_with_202(served: ServedDaemon) -> None:
    files = {"file": ("a.wav", tone())}
    response = await served.client.post("/transcribe", files=files, headers={"Prefer": "respond-async, wait=20"})
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=20")
    response = await served.client.post(
        "/transcribe", files=files, data={"prompt": "fake:sleep=30"}, headers={"Prefer": "wait=0"}
    )
    assert response.status_code == 202
    assert response.json()["status"] in ("queued", "processing")


async def test_a_wait_for_a_job_that_fails_or_is_cancelled_says_so(served: ServedDaemon) -> None:
    response = await served.post(wait="true", prompt="fake:error")
    assert response.status_code == 500
    assert error_of(response)["code"] == "engine_error"
    waiting = asyncio.create_task(served.post(wait="true", prompt="fake:sleep=30"))
    while not (running := (await served.json("/queue"))["running"]):
        await asyncio.sleep(0.02)
    assert (await served.client.post(f"/jobs/{running[0]}/cancel")).status_code == 200
    response = await waiting
    assert (response.status_code, error_of(response)["code"]) == (409, "cancelled")


async def test_a_long_wait_is_kept_from_falling_asleep(
    served: ServedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blanks before the JSON; a job that fails then breaks the line, and its id says where to ask why."""
    monkeypatch.setattr(submit_module, "QUIET_S", 0.0)
    monkeypatch.setattr(line_module, "DRIP_S", 0.02)

    async def waited(then: str) -> tuple[str, bytes]:
        body = b""
        async with served.client.stream(
            "POST",
            "/transcribe",
            files={"file": ("tone.wav", tone())},
            data={"wait": "true", "prompt": f"fake:until={tmp_path / 'go'}"},
        ) as response:
            assert response.status_code == 200
            with contextlib.suppress(httpx2.RemoteProtocolError):
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > 3 and then == "cancel":
                        await served.client.post(f"/jobs/{response.headers['x-job-id']}/cancel")
                    elif len(body) > 3:
                        (tmp_path / "go").touch()
        return response.headers["x-job-id"], body

    job_id, body = await waited("cancel")
    assert body.strip() == b""
    assert (await served.json(f"/jobs/{job_id}"))["status"] == "cancelled"
    job_id, body = await waited("complete")
    assert body.startswith(b"   ")
    assert json.loads(body) == (await served.json(f"/jobs/{job_id}"))["result"]


async def test_a_client_that_stops_waiting_does_not_stop_its_job(served: ServedDaemon, tmp_path: Path) -> None:
    waiting = asyncio.create_task(served.post(wait="true", prompt=f"fake:until={tmp_path / 'go'}"))
    while not (running := (await served.json("/queue"))["running"]):
        await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert (await served.json("/queue"))["running"] == running
    (tmp_path / "go").touch()
    assert (await served.finished(running[0]))["status"] == "completed"


def ffmpeg(*arguments: str) -> bytes:
    command = [str(find_ffmpeg()), "-v", "error", *arguments, "-"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout


SILENT_VIDEO = ("-f", "lavfi", "-i", "color=c=red:s=64x64:d=0.4", "-c:v", "mpeg4", "-f", "matroska")
SIXTEEN_CHANNELS = (
    "-f",
    "lavfi",
    "-i",
    "sine=duration=0.2",
    "-af",
    "aformat=channel_layouts=hexadecagonal",
    "-f",
    "wav",
)

REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "text named mp3": ({"audio": b"Dear Sir, this is not music.\n" * 50, "name": "song.mp3"}, 415, "not_media", "file"),
    "empty file": ({"audio": b""}, 415, "not_media", "file"),
    "cut in its header": ({"audio": tone()[:30]}, 415, "not_media", "file"),
    "a playlist": ({"audio": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "name": "a.m3u8"}, 415, "not_media", "file"),
    "too large": ({"audio": b"x" * (1024 * 1024 + 1)}, 413, "too_large", "file"),
    "much too large": ({"audio": b"x" * (4 << 20)}, 413, "too_large", "file"),
    "too long": ({"audio": tone(21.0)}, 413, "too_long", "file"),
    "unknown model": ({"model": "huge"}, 400, "model_not_found", "model"),
    "disabled model": ({"model": "tiny"}, 400, "model_not_found", "model"),
    "unknown language": ({"language": "Klingon"}, 400, "invalid_value", "language"),
    "unknown field": ({"langauge": "en"}, 400, "unknown_field", "langauge"),
    "wrong value": ({"beam_size": "many"}, 400, "invalid_value", "beam_size"),
    "callback scheme": ({"callback_url": "ftp://example.org/x"}, 400, "invalid_value", "callback_url"),
    "callback to nowhere": (
        {"callback_url": "http://169.254.169.254/latest"},
        400,
        "address_not_allowed",
        "callback_url",
    ),
    "too many to split": (
        {"audio": ffmpeg(*SIXTEEN_CHANNELS), "channel_mode": "split"},
        400,
        "too_many_channels",
        "channel_mode",
    ),
    "speakers by channel and by voice": (
        {"diarize": "true", "channel_mode": "split"},
        400,
        "invalid_value",
        "channel_mode",
    ),
    "a voice that is none": (
        {"diarize": "true", "known_speaker_names": "Ada", "known_speaker_references": voice(b"RIFF")},
        415,
        "not_media",
        "known_speaker_references",
    ),
    "a voice that is too short": (
        {"diarize": "true", "known_speaker_names": "Ada", "known_speaker_references": voice(tone(1.0))},
        400,
        "invalid_value",
        "known_speaker_references",
    ),
}


async def test_known_voices_are_kept_beside_the_file_and_belong_to_what_was_asked(served: ServedDaemon) -> None:
    await served.client.post("/workers/0/drain")
    key = {"Idempotency-Key": "k"}
    asked = {
        "diarize": "true",
        "hf_token": "hf_one",
        "known_speaker_names[]": ["Ada", "Grace"],
        "known_speaker_references[]": [voice(tone(2.0)), voice(tone(9.5))],
    }

    async def post(**changed: Any) -> httpx2.Response:
        return await served.client.post(
            "/transcribe", files={"file": ("a.wav", tone())}, data=asked | changed, headers=key
        )

    first = await post()
    assert first.status_code == 202, first.text
    (directory,) = served.directories()
    files = {path.name: path.read_bytes() for path in (served.settings.jobs_dir / directory).iterdir()}
    assert (files["source"], files["voice-0"], files["voice-1"]) == (tone(), tone(2.0), tone(9.5))
    again = await post(hf_token="hf_two")
    assert (again.status_code, again.json()["job_id"]) == (202, first.json()["job_id"])
    other = await post(**{"known_speaker_references[]": [voice(tone(2.0)), voice(tone(9.0))]})
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_conflict")
    url = await served.client.post(
        "/transcribe",
        json={
            "url": "http://127.0.0.1:9/a.wav",
            "diarize": True,
            "known_speaker_names": ["Ada"],
            "known_speaker_references": [voice(tone(9.9))],
        },
    )
    assert error_of(url)["code"] == "address_not_allowed"
    assert served.directories() == [directory]
    await served.client.post(f"/jobs/{directory}/cancel")
    await served.finished(directory)
    assert served.directories() == []


async def test_bad_input_is_refused_in_a_sentence_and_leaves_nothing(served: ServedDaemon) -> None:
    answers = {}
    for case, (fields, *_) in REFUSED.items():
        response = await served.post(**fields)
        error = error_of(response)
        answers[case] = (response.status_code, error["code"], error["param"])
        assert served.directories() == [], case
    assert answers == {case: tuple(expected) for case, (_, *expected) in REFUSED.items()}
    await nothing_left(served)


async def test_video_without_sound_is_refused(served: ServedDaemon) -> None:
    response = await served.post(ffmpeg(*SILENT_VIDEO), name="film.mkv")
    assert (response.status_code, error_of(response)["message"]) == (415, "the file has no audio stream")
    await nothing_left(served)


async def test_other_bodies_and_headers_are_refused(served: ServedDaemon) -> None:
    files = {"file": ("a.wav", tone())}
    for arguments, param in (
        ({"data": {"model": "demo"}}, "file"),
        ({"json": {"model": "demo"}}, "file"),
        ({"json": {"file": "RIFF", "url": "https://example.org/a.mp3"}}, "file"),
        ({"json": {"url": "https://example.org/a.mp3", "langauge": "en"}}, "langauge"),
        ({"json": {"url": "https://example.org/a.mp3", "wait": "true"}}, "wait"),
        ({"json": ["https://example.org/a.mp3"]}, None),
        ({"files": files, "data": {"url": "https://example.org/a.mp3"}}, "url"),
        ({"files": {"url": (None, "file:///etc/passwd")}}, "url"),
        ({"content": b""}, "file"),
        ({"files": {"audio": ("a.wav", tone())}}, "audio"),
        ({"files": {"model": (None, "demo")}}, "file"),
        ({"files": files, "headers": {"Idempotency-Key": ""}}, "Idempotency-Key"),
        ({"files": files, "headers": {"Idempotency-Key": "k" * 256}}, "Idempotency-Key"),
        ({"files": files, "headers": [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]}, "Idempotency-Key"),
    ):
        response = await served.client.post("/transcribe", **arguments)
        assert (response.status_code, error_of(response)["param"]) == (400, param)
    await nothing_left(served)


async def test_too_large_a_content_length_is_refused_before_the_body(served: ServedDaemon) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    writer.write(
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
    )
    answer = await asyncio.wait_for(reader.read(), 20)  # to the end: the connection is closed, not drained
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert b"100 Continue" not in answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "too_large"
    writer.close()
    await nothing_left(served)


async def test_a_wrong_field_before_the_file_is_told_before_the_file_has_come(served: ServedDaemon) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    writer.write(
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 900000\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="task"\r\n\r\nsing\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 20)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"param":"task"' in answer
    writer.close()
    await nothing_left(served)


async def test_a_body_without_end_is_cut_off_at_the_limit(served: ServedDaemon) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    writer.write(
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(b"%x\r\n%b\r\n" % (len(head), head))

    async def send_on() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"10000\r\n%b\r\n" % bytes(65536))
                await writer.drain()

    sending = asyncio.create_task(send_on())
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 20)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    await asyncio.wait_for(sending, 20)
    await nothing_left(served)


async def test_a_client_that_hangs_up_leaves_nothing(served: ServedDaemon) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    writer.write(
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"\0" * 1_000_000
    writer.write(b"%x\r\n%b\r\n" % (len(head), head))
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(20):
        while served.directories():
            await asyncio.sleep(0.02)
    await nothing_left(served)
    assert (await served.post()).status_code == 202


async def test_a_full_queue_refuses_before_the_body_and_says_when_to_come_back(served: ServedDaemon) -> None:
    running = await served.submit(prompt="fake:sleep=30")
    await served.until(running, lambda job: job["status"] == "processing")
    for position in range(3):
        response = await served.post()
        assert response.json()["queue_position"] == position
    response = await served.post()
    assert (response.status_code, error_of(response)["code"]) == (503, "queue_full")
    assert int(response.headers["retry-after"]) > 0
    assert len(served.directories()) == 4


async def test_too_little_disk_refuses_with_507(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_daemon(tmp_path, database, monkeypatch, disk_reserve_mb=1 << 40) as served:
        response = await served.post()
        assert (response.status_code, error_of(response)["code"]) == (507, "disk_full")
        assert int(response.headers["retry-after"]) > 0
        await nothing_left(served)


async def test_several_at_once(served: ServedDaemon) -> None:
    responses = await asyncio.gather(*(served.post(tone(0.5 + i / 10), name=f"{i}.wav") for i in range(3)))
    assert [response.status_code for response in responses] == [202] * 3
    jobs = [await served.finished(response.json()["job_id"]) for response in responses]
    assert [job["file_name"] for job in jobs] == ["0.wav", "1.wav", "2.wav"]
    assert [job["file_size_bytes"] for job in jobs] == [len(tone(0.5 + i / 10)) for i in range(3)]
    assert served.directories() == []


async def test_too_many_submissions_in_a_minute_are_refused_before_the_body(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("first-key-of-a-test", "second-key-of-a-test")
    async with served_daemon(tmp_path, database, monkeypatch, api_keys=keys, rate_limit_per_minute=2) as served:
        served.client.headers["X-API-Key"] = keys[0]
        for status in (202, 202, 429):
            response = await served.post()
            assert response.status_code == status
        assert 0 < int(response.headers["retry-after"]) <= 60
        assert (error_of(response)["type"], error_of(response)["code"]) == ("rate_limit_error", "rate_limited")
        assert (await served.client.get("/jobs")).status_code == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nX-API-Key: {keys[0]}\r\nContent-Length: 1000000\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.1 429")
        writer.close()
        served.client.headers["X-API-Key"] = keys[1]
        assert (await served.post()).status_code == 202


# Idempotency-Key.


async def test_a_request_that_is_sent_again_finds_its_job(served: ServedDaemon) -> None:
    async def send(audio: bytes = tone(), key: str = "order-7", **fields: str) -> httpx2.Response:
        return await served.client.post(
            "/transcribe", files={"file": ("a.wav", audio)}, data=fields, headers={"Idempotency-Key": key}
        )

    first = await send(language="en")
    assert first.status_code == 202
    assert "idempotent-replayed" not in first.headers
    job_id = first.json()["job_id"]
    await served.finished(job_id)
    again = await send(language="en")
    assert (again.status_code, again.json()["job_id"], again.json()["status"]) == (202, job_id, "completed")
    assert again.headers["idempotent-replayed"] == "true"
    for other in (await send(language="fr"), await send(tone(2.0), language="en"), await send()):
        assert other.status_code == 409
        assert (error_of(other)["code"], error_of(other)["param"]) == ("idempotency_conflict", "Idempotency-Key")
    assert (await send(key="order-8", language="en")).json()["job_id"] != job_id
    assert [job["job_id"] for job in (await served.json("/jobs"))["jobs"]][1:] == [job_id]
    assert job_id not in served.directories()


async def test_a_repeated_request_may_wait_for_the_result_of_the_first(served: ServedDaemon) -> None:
    async def send() -> httpx2.Response:
        return await served.client.post(
            "/transcribe",
            files={"file": ("a.wav", tone())},
            data={"wait": "true", "prompt": "fake:sleep=0.5"},
            headers={"Idempotency-Key": "k"},
        )

    answers = await asyncio.gather(send(), send(), send())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-job-id"] for answer in answers}) == 1
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == ["", "true", "true"]
    assert len((await served.json("/jobs"))["jobs"]) == 1


# The database goes away while it stores the job, and nobody can say whether it has.


@pytest.mark.parametrize("stored", [True, False])
async def test_a_job_of_unknown_outcome_is_settled_when_the_database_is_back(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    monkeypatch.setattr(jobs_module, "DOUBT_TIMEOUT_S", 0.2)
    relay = Relay(database)
    try:
        async with served_daemon(tmp_path, await relay.start(), monkeypatch) as served:
            headers = {"Idempotency-Key": "k"}
            with capture_logs() as logs:
                if stored:
                    relay.lose_answer_to(b"doubt.wav", then_away=True)
                else:
                    relay.break_at(b"INSERT INTO jobs")
                response = await served.client.post(
                    "/transcribe", files={"file": ("doubt.wav", tone())}, headers=headers
                )
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) > 0
                assert "Idempotency-Key" in error_of(response)["message"]
                relay.refuse = False
                async with asyncio.timeout(20):
                    while "job.settled" not in {line["event"] for line in logs}:
                        await asyncio.sleep(0.05)
            jobs = (await served.json("/jobs"))["jobs"]
            assert len(jobs) == stored
            again = await served.client.post("/transcribe", files={"file": ("doubt.wav", tone())}, headers=headers)
            job = await served.finished(again.json()["job_id"])
            assert job["status"] == "completed"
            assert [other["job_id"] for other in (await served.json("/jobs"))["jobs"]] == [job["job_id"]]
            assert served.directories() == []
    finally:
        await relay.stop()
