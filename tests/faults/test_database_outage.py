"""The database goes away while a job runs, and comes back."""

from pathlib import Path

from gpu_daemon.database.embedded import EmbeddedPostgres
from tests.receiver import Receiver
from tests.running import FAKE_ENGINE, RunningDaemon
from tests.speech import conversation, write


async def test_a_result_waits_for_the_database(tmp_path: Path) -> None:
    """Fault 6: the GPU's work is not lost, submits are refused politely meanwhile, and nothing is restarted."""
    write(conversation("en", 500_020, 1), tmp_path / "one.wav", "wav")
    server = EmbeddedPostgres(tmp_path / "outside")
    daemon = RunningDaemon(tmp_path / "data", await server.start(), FAKE_ENGINE)
    try:
        await daemon.start()
        answer = await daemon.submit(tmp_path / "one.wav", model="demo", initial_prompt="fake:sleep=2")
        await daemon.line("job.started", job_id=answer["job_id"])
        await server.stop()
        await daemon.line("job.record_failed", job_id=answer["job_id"])
        with (tmp_path / "one.wav").open("rb") as file:
            refused = await daemon.client.post("/transcribe", files={"file": file}, data={"model": "demo"})
        assert refused.status_code == 503, refused.text
        assert "retry-after" in refused.headers
        assert (await daemon.client.get("/health")).status_code == 200
        ready = await daemon.client.get("/health/ready")
        assert ready.status_code == 503
        assert "database" in ready.json()["reason"]
        await server.start()
        job = await daemon.finished(answer["job_id"])
        assert (job["status"], job["attempt"]) == ("completed", 1)
        again = await daemon.finished((await daemon.submit(tmp_path / "one.wav", model="demo"))["job_id"])
        assert again["status"] == "completed"
        assert not list((tmp_path / "data" / "jobs").iterdir())
    finally:
        await daemon.close()
        await server.stop()


async def test_a_result_outlives_the_daemon_that_could_not_write_it(tmp_path: Path, receiver: Receiver) -> None:
    """Fault 6, then the daemon is killed too: what the GPU has done is written after the restart, not done again."""
    write(conversation("en", 500_020, 1), tmp_path / "one.wav", "wav")
    server = EmbeddedPostgres(tmp_path / "outside")
    daemon = RunningDaemon(tmp_path / "data", await server.start(), FAKE_ENGINE)
    try:
        await daemon.start()
        answer = await daemon.submit(
            tmp_path / "one.wav", model="demo", initial_prompt="fake:sleep=2", callback_url=receiver.url
        )
        await daemon.line("job.started", job_id=answer["job_id"])
        await server.stop()
        await daemon.line("result.kept_on_disk", job_id=answer["job_id"])
        await daemon.kill()
        await server.start()
        await daemon.start()
        await daemon.line("result.delivered_late", job_id=answer["job_id"], written=True)
        job = await daemon.job(answer["job_id"])
        assert (job["status"], job["attempt"]) == ("completed", 1)
        assert job["result"]["text"]
        (request,) = await receiver.wait_for(1)
        assert (request.json()["status"], request.json()["job_id"]) == ("completed", answer["job_id"])
        assert not list((tmp_path / "data" / "jobs").iterdir())
    finally:
        await daemon.close()
        await server.stop()
