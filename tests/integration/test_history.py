"""What the page draws of the last hours, from rows of a real database."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from gpu_daemon import clock
from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.store.history import PLANS, Bucket, History, Window
from gpu_daemon.store.jobs import JobStore
from tests.new_jobs import new_job
from tests.serving import ServedDaemon, served_daemon


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


async def ended(
    pool: Pool,
    state: str,
    *,
    at: datetime,
    wait_s: float | None = None,
    total_s: float = 1.0,
    audio_s: float | None = 1.0,
    reused: bool = False,
) -> None:
    job = await JobStore(pool).insert(new_job(duration_s=audio_s))
    await pool.execute(
        """UPDATE jobs SET state = $2, reused = $3, finished_at = $4::timestamptz,
                           created_at = $4::timestamptz - make_interval(secs => $5::float8),
                           started_at = $4::timestamptz - make_interval(secs => $5::float8 - $6::float8)
           WHERE id = $1""",
        *(uuid.UUID(job.id), state, reused, at, total_s, wait_s),
    )


def with_jobs(buckets: tuple[Bucket, ...]) -> list[Bucket]:
    return [bucket for bucket in buckets if bucket.completed or bucket.failed or bucket.cancelled]


@pytest.mark.parametrize("window", PLANS)
async def test_buckets_without_gaps_and_without_jobs(pool: Pool, window: Window) -> None:
    buckets = await History(pool).buckets(window)
    plan = PLANS[window]
    assert len(buckets) == plan.buckets <= 100
    assert plan.buckets * plan.bucket_s == {"15m": 900, "1h": 3600, "24h": 86400}[window]
    times = [bucket.at.timestamp() for bucket in buckets]
    assert {later - earlier for earlier, later in pairwise(times)} == {plan.bucket_s}
    assert times[0] % plan.bucket_s == 0
    assert with_jobs(buckets) == []
    assert {(bucket.audio_s, bucket.wait_p50_s, bucket.total_p95_s) for bucket in buckets} == {(0.0, None, None)}


async def test_a_bucket_is_made_of_the_jobs_that_ended_in_it(pool: Pool) -> None:
    then = clock.now() - timedelta(hours=11)
    at = then - timedelta(seconds=then.timestamp() % 900 - 450)  # the middle of a bucket
    for number in range(1, 21):
        await ended(pool, "completed", at=at, wait_s=number, total_s=10 * number, audio_s=90)
    await ended(pool, "completed", at=at, wait_s=0.0, total_s=0, audio_s=5000, reused=True)
    await ended(pool, "failed", at=at, wait_s=100, total_s=1000)
    await ended(pool, "cancelled", at=at, wait_s=None, audio_s=None)
    await ended(pool, "completed", at=at - timedelta(days=1))  # before the window
    await JobStore(pool).insert(new_job())
    (bucket,) = with_jobs(await History(pool).buckets("24h"))
    assert (bucket.completed, bucket.failed, bucket.cancelled) == (21, 1, 1)
    assert bucket.audio_s == 1800, "what was answered with an earlier result was not transcribed"
    assert bucket.speed == 2.0, "of 900 s"
    assert bucket.wait_p50_s == pytest.approx(10.5)
    assert bucket.wait_p95_s == pytest.approx(19.95)
    assert bucket.total_p50_s == pytest.approx(100)
    assert bucket.total_p95_s == pytest.approx(190)


async def test_the_database_is_asked_once_for_all_who_look(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(pool)
    await asyncio.gather(*(history.buckets("15m") for _ in range(5)))
    await ended(pool, "completed", at=clock.now())
    assert with_jobs(await history.buckets("15m")) == [], "it is kept a while"
    now_s = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now_s + 1000)
    assert len(with_jobs(await history.buckets("15m"))) == 1


async def test_the_route(served: ServedDaemon) -> None:
    job_id = await served.submit()
    await served.finished(job_id)
    page = await served.json("/dashboard/history", window="15m")
    assert (page["window"], page["bucket_s"], len(page["buckets"])) == ("15m", 15, 60)
    assert sum(bucket["completed"] for bucket in page["buckets"]) == 1
    assert sum(bucket["audio_s"] for bucket in page["buckets"]) == pytest.approx(1.0)
    refused = await served.client.get("/dashboard/history", params={"window": "1y"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "window")
