"""Writes that come while one is under way share the next transaction; each has its own answer."""

import asyncio
from collections import Counter

import asyncpg
import pytest

from gpu_daemon.database.pool import ConnectionParameters, Pool, open_pool
from gpu_daemon.errors import Unavailable
from gpu_daemon.jobs.state import JobState
from gpu_daemon.store.jobs import JobStore
from gpu_daemon.store.together import MOST, Together
from tests.new_jobs import new_job

STATEMENT = "INSERT INTO written (key) VALUES ($1) ON CONFLICT DO NOTHING RETURNING key, $2::integer AS nth"


@pytest.fixture
async def together(pool: Pool) -> Together:
    await pool.execute("CREATE TABLE written (key integer PRIMARY KEY CHECK (key >= 0), transaction xid8)")
    await pool.execute("ALTER TABLE written ALTER transaction SET DEFAULT pg_current_xact_id()")
    return Together(pool, STATEMENT, in_order=True)


async def transactions(pool: Pool) -> list[int]:
    """How many rows each has written, in their order."""
    rows = await pool.fetch("SELECT transaction::text, count(*) FROM written GROUP BY transaction ORDER BY transaction")
    return [row["count"] for row in rows]


async def test_those_that_come_together_share_a_transaction(together: Together, pool: Pool) -> None:
    n = 2 * MOST + 10
    rows = await asyncio.gather(*(together.write(key) for key in range(n)))
    assert [row["key"] for row in rows if row is not None] == list(range(n))
    assert await transactions(pool) == [MOST, MOST, 10]
    await together.write(n)
    assert (await transactions(pool))[-1] == 1


async def test_who_writes_nothing_is_told_so(together: Together) -> None:
    rows = await asyncio.gather(*(together.write(key) for key in (1, 2, 1, 3, 2)))
    assert [None if row is None else row["key"] for row in rows] == [1, 2, None, 3, None]


async def test_what_one_does_wrong_is_its_error_alone(together: Together, pool: Pool) -> None:
    outcomes = await asyncio.gather(*(together.write(key) for key in (1, -1, "two", 3)), return_exceptions=True)
    assert isinstance(outcomes[1], asyncpg.CheckViolationError)
    assert isinstance(outcomes[2], asyncpg.DataError)
    assert [row["key"] for row in await pool.fetch("SELECT key FROM written ORDER BY key")] == [1, 3]


async def test_a_caller_that_goes_away_stops_nobody(together: Together, pool: Pool) -> None:
    writes = [asyncio.create_task(together.write(key)) for key in range(3)]
    await asyncio.sleep(0)
    writes[1].cancel()
    await asyncio.wait(writes)
    assert [write.cancelled() for write in writes] == [False, True, False]
    assert await transactions(pool) == [3]


async def test_a_connection_that_breaks_is_everybodys_trouble(together: Together, pool: Pool) -> None:
    async with pool.acquire() as spare, spare.transaction():
        await spare.execute("LOCK TABLE written")
        writes = [asyncio.create_task(together.write(key)) for key in range(3)]
        while not await spare.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0)
        await spare.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [True] * 3
    assert await together.write(1) is not None


async def test_a_database_that_lets_nobody_in_is_away(
    together: Together, pool: Pool, database: ConnectionParameters, postgres: ConnectionParameters
) -> None:
    """It is being restored, say, or the password is another now: nobody waits for ever."""
    newcomers = await open_pool(database)
    together = Together(newcomers, STATEMENT, in_order=True)
    outside = await asyncpg.connect(**postgres.arguments())
    try:
        await outside.execute(f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS false")
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*(together.write(key) for key in range(3)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
            await outside.execute(f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS true")
            assert await together.write(1) is not None
        assert await transactions(pool) == [1]
    finally:
        await outside.close()
        await newcomers.close()


async def test_jobs_that_come_together_keep_their_order_and_end_together(pool: Pool) -> None:
    store = JobStore(pool)
    jobs = [await one for one in [asyncio.create_task(store.insert(new_job(client=str(n)))) for n in range(20)]]
    assert [job.client for job in sorted(jobs, key=lambda job: job.seq)] == [str(n) for n in range(20)]
    claims = await asyncio.gather(*(store.claim(job.id, 0) for job in reversed(jobs) for _ in range(2)))
    given = [claim for claim in claims if claim is not None]
    assert Counter(claim.job_id for claim, _ in given) == Counter(job.id for job in jobs), "once each"
    assert len({claim.lease_token for claim, _ in given}) == len(jobs)
    ends = [store.complete(claim, b'{"n": %d}' % n, {}) for n, (claim, _) in enumerate(given)]
    ends += [store.cancel(claim) for claim, _ in given]
    assert sum(await asyncio.gather(*ends)) == len(jobs), "one end each"
    assert (await store.counts())[JobState.COMPLETED] + (await store.counts())[JobState.CANCELLED] == len(jobs)
    for n, (claim, _) in enumerate(given):
        if await store.result(claim.job_id) is not None:
            assert await store.result(claim.job_id) == f'{{"n": {n}}}'
    xids = await pool.fetchval("SELECT count(DISTINCT xmin::text) FROM jobs")
    assert xids < len(jobs), "several share a commit"
