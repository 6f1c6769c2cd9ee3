"""A start with 100,000 jobs that wait. Fault 37."""

import resource
import time
from pathlib import Path

import pytest

from gpu_daemon.database.pool import Pool
from gpu_daemon.scheduling.preparation import SOURCE_NAME
from gpu_daemon.scheduling.queue import JobQueue, Waiting
from gpu_daemon.scheduling.recovery import recover
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore
from tests.new_jobs import new_job

JOBS = 100_000
MOST_MEMORY_BYTES = 1 << 30


@pytest.mark.timeout(600)
async def test_the_queue_of_a_hundred_thousand_is_rebuilt_in_order(tmp_path: Path, pool: Pool) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    store = JobStore(pool)
    await store.insert(new_job())
    columns = "state, options, requested_language, file_name, file_size_bytes, file_sha256, duration_s, callback_url"
    await pool.execute(
        f"""INSERT INTO jobs (id, priority, {columns})
            SELECT gen_random_uuid(), n % 3 - 1, {columns} FROM jobs, generate_series(2, {JOBS}) AS n""",
        timeout=120,
    )
    await pool.execute("UPDATE jobs SET state = 'processing', attempt = 1, lease_token = id WHERE seq % 50000 = 7")
    for row in await pool.fetch("SELECT id FROM jobs"):
        directory = settings.jobs_dir / str(row["id"])
        directory.mkdir(parents=True)
        (directory / SOURCE_NAME).touch()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    queue = JobQueue()
    for job in await recover(store, settings):
        queue.push(Waiting.of(job))
    took_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) * 1024
    print(f"{JOBS} jobs: {took_s:.1f} s, {cpu_s:.1f} s of them our own, {grown_bytes / 1e6:.0f} MB")
    rows = await pool.fetch("SELECT id FROM jobs WHERE state = 'queued' ORDER BY priority DESC, seq")
    assert [str(row["id"]) for row in rows] == [job.id for job in queue]
    assert len(queue) == JOBS
    assert grown_bytes < MOST_MEMORY_BYTES
