"""The main job, end to end: a real daemon, PostgreSQL, ffmpeg, and the real runner with the demo checkpoint."""

from pathlib import Path
from typing import Any

from gpu_daemon.database.pool import ConnectionParameters
from tests.receiver import Receiver
from tests.running import RunningDaemon, descendants, running_daemon
from tests.speech import Container, Spoken, conversation, word_error_rate, write

CALLBACK_KEYS = {
    "job_id", "status", "model", "language", "queue_time_s", "processing_time_s", "result", "error", "error_code",
    "metadata", "callback",
}  # fmt: skip


async def test_a_file_becomes_a_transcript_and_a_callback(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver
) -> None:
    spoken = conversation("en", 500_001, 3)
    write(spoken, tmp_path / "talk.mp3", "mp3")
    async with running_daemon(tmp_path, database) as daemon:
        answer = await daemon.submit(
            tmp_path / "talk.mp3",
            callback_url=receiver.url + "/done",
            language="English",
            metadata='{"order": 7}',
            timestamp_granularity="word",
        )
        assert answer["status"] == "queued"
        assert answer["status_url"] == f"/jobs/{answer['job_id']}"
        job = await daemon.finished(answer["job_id"])
        assert job["status"] == "completed", job
        assert word_error_rate(spoken.text, job["result"]["text"]) == 0
        assert job["attempt"] == 1
        assert job["progress"] == 100
        assert abs(job["result"]["duration"] - spoken.duration_s) < 0.1
        assert set(job["result"]["timings"]) >= {"preparing", "loading", "transcribing"}
        assert job["result"]["segments"][0]["words"]

        (request,) = await receiver.wait_for(1, timeout_s=20)
        payload: dict[str, Any] = request.json()
        assert set(payload) == CALLBACK_KEYS
        assert payload["status"] == "completed"
        assert payload["language"] == "English"
        assert payload["metadata"] == {"order": 7}
        assert payload["result"]["text"] == job["result"]["text"]
        assert payload["callback"]["delivered"] is True

        for format_, content_type in (
            ("json", "application/json"),
            ("verbose_json", "application/json"),
            ("text", "text/plain"),
            ("srt", "application/x-subrip"),
            ("vtt", "text/vtt"),
            ("tsv", "text/tab-separated-values"),
        ):
            response = await daemon.client.get(answer["result_url"], params={"format": format_})
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(content_type)
            assert job["result"]["segments"][0]["text"].strip() in response.text
        assert not list((daemon.data_dir / "jobs").iterdir())


async def test_wait_true_answers_with_the_result(tmp_path: Path, database: ConnectionParameters) -> None:
    spoken = conversation("en", 500_002, 1)
    write(spoken, tmp_path / "one.wav", "wav")
    async with running_daemon(tmp_path, database) as daemon:
        with (tmp_path / "one.wav").open("rb") as file:
            response = await daemon.client.post("/transcribe", files={"file": file}, data={"wait": "true"})
        assert response.status_code == 200
        assert word_error_rate(spoken.text, response.json()["text"]) == 0


async def test_silence_before_the_speech_does_not_shift_the_times(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    spoken = conversation("en", 500_003, 2, lead_silence_s=10.0)
    write(spoken, tmp_path / "late.m4a", "m4a")
    async with running_daemon(tmp_path, database) as daemon:
        answer = await daemon.submit(tmp_path / "late.m4a")
        job = await daemon.finished(answer["job_id"])
        assert job["status"] == "completed", job
        assert word_error_rate(spoken.text, job["result"]["text"]) == 0
        assert abs(job["result"]["segments"][0]["start"] - 10.0) <= 0.3
        # Whisper's own rules let no first segment begin later than 1 s: with trim_silence=false the time would be its.


FORMATS: tuple[Container, ...] = ("wav", "mp3", "m4a", "ogg", "flac", "webm", "mp4", "telephone")


async def test_every_container_gives_the_right_words(tmp_path: Path, database: ConnectionParameters) -> None:
    spoken: Spoken = conversation("en", 500_047, 3)
    async with running_daemon(tmp_path, database) as daemon:
        jobs = {}
        for container in FORMATS:
            path = tmp_path / f"talk.{container}"
            write(spoken, path, container)
            jobs[container] = (await daemon.submit(path))["job_id"]
        for container, job_id in jobs.items():
            job = await daemon.finished(job_id)
            assert job["status"] == "completed", (container, job)
            assert word_error_rate(spoken.text, job["result"]["text"]) == 0, (container, job["result"]["text"])


async def test_an_embedded_database_serves_as_well(tmp_path: Path) -> None:
    spoken = conversation("fr", 500_005, 1)
    write(spoken, tmp_path / "un.flac", "flac")
    async with running_daemon(tmp_path, None, DEFAULT_MODEL="large-v3") as daemon:
        assert "DEFAULT_MODEL: large-v3" in (await daemon.line("daemon.no_default_model"))["reason"]
        assert {model["name"] for model in (await daemon.json("/models"))["models"] if model["enabled"]} == {
            "base",
            "demo",
        }
        job = await daemon.finished((await daemon.submit(tmp_path / "un.flac", model="demo"))["job_id"])
        assert job["result"]["language"] == "fr"
        assert word_error_rate(spoken.text, job["result"]["text"]) == 0
        children = descendants(daemon.pid)
        assert await daemon.stop() == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


async def test_results_survive_a_restart(tmp_path: Path) -> None:
    write(conversation("en", 500_006, 1), tmp_path / "one.ogg", "ogg")
    daemon = RunningDaemon(tmp_path / "data", None, {})
    try:
        await daemon.start()
        job_id = (await daemon.submit(tmp_path / "one.ogg", model="demo"))["job_id"]
        before = await daemon.finished(job_id)
        assert await daemon.stop() == 0
        await daemon.start()
        assert await daemon.job(job_id) == before
    finally:
        await daemon.close()


async def test_an_unknown_setting_or_a_busy_port_is_said_plainly(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    async with running_daemon(tmp_path, database) as daemon:
        port = daemon.url.rsplit(":", 1)[1]
        other = RunningDaemon(tmp_path / "other", database, {"PORT": port})
        await other.spawn()
        assert await other.ended() == 1
        assert "PORT: cannot listen" in other.tail()
        second = RunningDaemon(tmp_path / "second", database, {})
        await second.spawn()
        assert await second.ended() == 1
        assert "another daemon" in second.tail()
    wrong = RunningDaemon(tmp_path / "wrong", database, {"MAX_QUEUE": "many", "DEVICES": "gpu"})
    await wrong.spawn()
    assert await wrong.ended() == 1
    assert "MAX_QUEUE" in wrong.tail()
    assert "Traceback" not in wrong.tail()
    for daemon in (other, second, wrong):
        await daemon.client.aclose()


async def test_two_devices_two_at_once_in_order_of_priority(tmp_path: Path, database: ConnectionParameters) -> None:
    write(conversation("en", 500_007, 1), tmp_path / "one.wav", "wav")
    settings = {"DEVICES": "cpu,cpu", "GPU_DAEMON_ENGINE": "tests.fake_engine:create", "JOBS_PER_GPU": "1"}
    async with running_daemon(tmp_path, database, **settings) as daemon:

        async def held(name: str, priority: str = "0") -> dict[str, Any]:
            """A job that goes on until its file exists: so each device is freed on its own, and in a known order."""
            hold = {"priority": priority, "initial_prompt": f"fake:until={tmp_path / name}"}
            return await daemon.submit(tmp_path / "one.wav", **hold)

        first, second = [(await held(name))["job_id"] for name in ("first", "second")]
        for job_id in (first, second):
            await daemon.line("job.started", job_id=job_id)
        middle, low, high = await held("middle"), await held("low", "-3"), await held("high", "5")
        assert [answer["queue_position"] for answer in (middle, low, high)] == [0, 1, 0]
        queue = await daemon.json("/queue")
        assert queue["status"] == "busy"
        assert sorted(queue["running"]) == sorted([first, second])
        order = [high["job_id"], middle["job_id"], low["job_id"]]
        assert queue["queued"] == order
        for number, name in enumerate(("first", "second", "high")):
            (tmp_path / name).touch()
            await daemon.line("job.started", job_id=order[number])
            assert (await daemon.json("/queue"))["queued"] == order[number + 1 :]
        for name in ("middle", "low"):
            (tmp_path / name).touch()
        for job_id in (first, second, *order):
            assert (await daemon.finished(job_id))["status"] == "completed"
        assert await daemon.json("/queue") == {"status": "idle", "queued": [], "running": []}
