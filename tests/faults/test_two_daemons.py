"""Two daemons on one database: the second is refused, and an owner that was frozen finds that it owns nothing."""

import os
import signal
from pathlib import Path

from gpu_daemon.database.pool import ConnectionParameters, Pool
from tests.invariants import violations, watch
from tests.receiver import Receiver
from tests.running import FAKE_ENGINE, RunningDaemon, only_demo, running_daemon
from tests.serving import tone

CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'gpu_daemon' AND pid <> pg_backend_pid()
"""


async def test_a_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path, database: ConnectionParameters) -> None:
    """Fault 35."""
    (tmp_path / "one.wav").write_bytes(tone(0.2))
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as first:
        job_id = (await first.submit(tmp_path / "one.wav", initial_prompt="fake:sleep=4"))["job_id"]
        await first.line("job.started", job_id=job_id)
        second = RunningDaemon(tmp_path / "other", database, FAKE_ENGINE)
        await second.spawn()
        try:
            assert await second.ended() == 1
            assert "another daemon works on this database" in second.tail()
        finally:
            await second.close()
        job = await first.finished(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 1)


async def test_the_late_result_of_a_frozen_owner_changes_nothing(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, receiver: Receiver
) -> None:
    """Fault 5: SIGSTOP, another daemon does the job, SIGCONT."""
    (tmp_path / "one.wav").write_bytes(tone(0.2))
    await only_demo(database)
    await watch(database)
    frozen = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE)
    heir = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE)
    try:
        await frozen.start()
        answer = await frozen.submit(tmp_path / "one.wav", initial_prompt="fake:sleep=1", callback_url=receiver.url)
        job_id = answer["job_id"]
        await frozen.line("job.started", job_id=job_id)
        os.kill(frozen.pid, signal.SIGSTOP)
        # What the server does when the connections of a host that is gone time out.
        await pool.execute(CUT)
        await heir.start()
        job = await heir.finished(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 2)
        await heir.line("callback.delivered", job_id=job_id)
        row = await pool.fetchrow("SELECT * FROM jobs")
        os.kill(frozen.pid, signal.SIGCONT)
        await frozen.line("job.stale_lease", job_id=job_id, attempt=1)
        assert await pool.fetchrow("SELECT * FROM jobs") == row
        assert await frozen.stop() == 0
        after = await heir.submit(tmp_path / "one.wav", callback_url=receiver.url)
        await heir.finished(after["job_id"])
        await receiver.wait_for(2)
        assert await heir.stop() == 0
        assert len(receiver.requests) == 2, "one for each job"
        assert (
            await violations(
                database, tmp_path / "data" / "jobs", receiver.requests, told={job_id, str(after["job_id"])}
            )
            == []
        )
    finally:
        await heir.close()
        if frozen.alive:
            os.kill(frozen.pid, signal.SIGCONT)
        await frozen.close()


async def test_a_database_newer_than_the_daemon_is_left_alone(
    tmp_path: Path, database: ConnectionParameters, pool: Pool
) -> None:
    """Fault 40."""
    await pool.execute("INSERT INTO gpu_daemon_migrations (name, sha256) VALUES ('9999_future', 'x')")
    tables = await pool.fetch("SELECT * FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 3, 4")
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE)
    await daemon.spawn()
    try:
        assert await daemon.ended() == 1
    finally:
        await daemon.close()
    assert "newer than this daemon: it has the migration 9999_future; update the daemon" in daemon.tail()
    now = await pool.fetch("SELECT * FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 3, 4")
    assert now == tables
