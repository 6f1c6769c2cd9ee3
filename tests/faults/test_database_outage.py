"""The database goes away while a job runs, and comes back."""

import os
import signal
from pathlib import Path

from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.pool import ConnectionParameters
from tests.invariants import violations, watch
from tests.receiver import Receiver
from tests.relay import Relay
from tests.running import FAKE_ENGINE, RunningDaemon, only_demo
from tests.serving import tone
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


async def test_a_server_that_is_killed_costs_no_attempt(tmp_path: Path, receiver: Receiver) -> None:
    """Fault 6: kill -9 of PostgreSQL under a job that runs; it reads its log again and everything is there."""
    (tmp_path / "one.wav").write_bytes(tone(0.2))
    server = EmbeddedPostgres(tmp_path / "outside")
    database = await server.start()
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE)
    try:
        await daemon.start()
        await only_demo(database)
        await watch(database)
        told = [
            (await daemon.submit(tmp_path / "one.wav", initial_prompt=prompt, callback_url=receiver.url))["job_id"]
            for prompt in ("fake:sleep=1", "")
        ]
        await daemon.line("job.started", job_id=told[0])
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        for job_id in told:
            await daemon.line("job.ended", job_id=job_id, state="completed")
            assert (await daemon.job(job_id))["attempt"] == 1
        await receiver.wait_for(2)
        assert await daemon.stop() == 0
        assert [line["event"] for line in daemon.lines].count("runner.ready") == 1, "nobody was restarted"
        assert await violations(database, daemon.data_dir / "jobs", receiver.requests, told=told) == []
    finally:
        await daemon.close()
        await server.stop()


async def test_a_commit_whose_answer_is_lost_is_found_out(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver
) -> None:
    """Fault 8: the connection is cut after a result was sent; it was made, and is not made twice."""
    (tmp_path / "one.wav").write_bytes(tone(0.2))
    relay = Relay(database)
    await only_demo(database)
    await watch(database)
    through = await relay.start()
    try:
        daemon = RunningDaemon(tmp_path / "data", through, FAKE_ENGINE)
        try:
            await daemon.start()
            answer = await daemon.submit(
                tmp_path / "one.wav", initial_prompt="fake:sleep=0.5", callback_url=receiver.url
            )
            job_id = answer["job_id"]
            await daemon.line("job.started", job_id=job_id)
            relay.lose_answer_to(b'"token_count"')
            await daemon.line("job.record_failed", job_id=job_id)
            await daemon.line("job.ended", job_id=job_id, state="completed")
            assert relay.lost == 1
            await receiver.wait_for(1)
            after = (await daemon.submit(tmp_path / "one.wav", callback_url=receiver.url))["job_id"]
            await daemon.finished(after)
            await receiver.wait_for(2)
            assert await daemon.stop() == 0
            assert len(receiver.requests) == 2, "one for each job"
            found = await violations(database, daemon.data_dir / "jobs", receiver.requests, told={job_id, after})
            assert found == []
        finally:
            await daemon.close()
    finally:
        await relay.stop()
