"""The wall clock jumps while jobs run. Fault 34."""

import ast
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import gpu_daemon
from gpu_daemon import clock
from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.scheduling.retention import Retention
from gpu_daemon.store.jobs import JobStore
from tests.invariants import violations, watch
from tests.receiver import Receiver, Reply
from tests.serving import served_daemon

WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_jump_of_the_clock_expires_nothing(
    tmp_path: Path,
    database: ConnectionParameters,
    pool: Pool,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
) -> None:
    await watch(database)
    receiver.plan(Reply(status=500))
    real_now = clock.now
    async with served_daemon(
        tmp_path, database, monkeypatch, result_ttl_s=600, stall_timeout_s=30, job_timeout_s=60
    ) as served:
        running = await served.submit(initial_prompt="fake:sleep=1", callback_url=receiver.url)
        waiting = await served.submit()
        await served.until(running, lambda job: job["status"] == "processing")
        monkeypatch.setattr(clock, "now", lambda: real_now() + timedelta(hours=hours))
        for job_id in (running, waiting):
            job = await served.finished(job_id)
            assert (job["status"], job["attempt"]) == ("completed", 1)
            assert 0 <= job["result"]["processing_time_s"] < 60
            assert abs(job["result"]["processing_time_s"] - job["processing_time_s"]) < 5, (
                "the row's, but for its write"
            )
        (call,) = await receiver.wait_for(1)
        said = datetime.fromtimestamp(int(call.headers["webhook-timestamp"]), clock.now().tzinfo)
        assert abs(clock.now() - said) < timedelta(minutes=1), "the receiver is told the time that the machine has"
        await receiver.wait_for(2, timeout_s=20)  # again in the 5 s of the schedule, not in an hour
        await Retention(served.settings, JobStore(pool)).sweep()
        assert await violations(database, served.settings.jobs_dir, receiver.requests, told={running, waiting}) == []


def test_only_the_clock_looks_at_the_wall_clock() -> None:
    """So a jump cannot reach anything that does not ask `clock.now`."""
    root = Path(gpu_daemon.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in WALL_CLOCKS
    }
    assert {path for path in found if not path.startswith("client/")} == {"clock.py"}  # the client is no part of it
