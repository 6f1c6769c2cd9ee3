"""All SQL on `callbacks`, the outbox."""

from dataclasses import dataclass
from datetime import datetime

from gpu_daemon.database.pool import Pool
from gpu_daemon.jobs.model import JobId
from gpu_daemon.store.failures import connection
from gpu_daemon.store.rows import key_of
from gpu_daemon.store.text import storable


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One that is due."""

    id: int
    job_id: JobId
    url: str
    payload: str
    attempts: int
    """Tries so far."""
    age_s: float
    """Since the job ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackState:
    state: str
    """pending, delivered or dead"""
    attempts: int
    next_attempt_at: datetime
    last_status: int | None
    last_error: str | None
    delivered_at: datetime | None


class CallbackStore:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def due(
        self, limit: int, *, per_host: int | None = None, but: frozenset[int] = frozenset()
    ) -> list[Delivery]:
        """The longest overdue first, at most `per_host` of one receiver, without `but` (they are under way)."""
        async with connection(self._pool) as db:
            rows = await db.fetch(
                """WITH waiting AS (
                       SELECT id, row_number() OVER (
                           PARTITION BY lower(substring(url FROM '^[^:]*://(?:[^/?#]*@)?([^/?#]*)'))
                           ORDER BY next_attempt_at, id) AS place
                       FROM callbacks WHERE state = 'pending' AND next_attempt_at <= now() AND id <> ALL ($3))
                   SELECT id, job_id, url, payload, attempts, extract(epoch FROM now() - created_at)::float8 AS age_s
                   FROM waiting JOIN callbacks USING (id) WHERE place <= $2 ORDER BY next_attempt_at, id LIMIT $1""",
                limit,
                limit if per_host is None else per_host,
                list(but),
            )
        return [Delivery(**{**dict(row), "job_id": JobId(str(row["job_id"]))}) for row in rows]

    async def next_due_in_s(self, *, but: frozenset[int] = frozenset()) -> float | None:
        """Not negative; None: nothing is pending."""
        async with connection(self._pool) as db:
            seconds = await db.fetchval(
                """SELECT extract(epoch FROM min(next_attempt_at) - now()) FROM callbacks
                   WHERE state = 'pending' AND id <> ALL ($1)""",
                list(but),
            )
        return None if seconds is None else max(0.0, float(seconds))

    async def delivered(self, id_: int, status: int) -> None:
        await self._execute(
            """UPDATE callbacks SET state = 'delivered', attempts = attempts + 1, last_status = $2, last_error = NULL,
                                    delivered_at = now() WHERE id = $1 AND state = 'pending'""",
            id_,
            status,
        )

    async def retry(self, id_: int, delay_s: float, status: int | None, error: str) -> None:
        await self._execute(
            """UPDATE callbacks SET attempts = attempts + 1, last_status = $3, last_error = $4,
                                    next_attempt_at = now() + make_interval(secs => $2)
               WHERE id = $1 AND state = 'pending'""",
            id_,
            delay_s,
            status,
            storable(error),
        )

    async def dead(self, id_: int, status: int | None, error: str) -> None:
        await self._execute(
            """UPDATE callbacks SET state = 'dead', attempts = attempts + 1, last_status = $2, last_error = $3
               WHERE id = $1 AND state = 'pending'""",
            id_,
            status,
            storable(error),
        )

    async def of_job(self, job_id: JobId) -> CallbackState | None:
        """None: the job owes no callback, or none yet."""
        if (key := key_of(job_id)) is None:
            return None
        async with connection(self._pool) as db:
            row = await db.fetchrow(
                """SELECT state, attempts, next_attempt_at, last_status, last_error, delivered_at
                   FROM callbacks WHERE job_id = $1""",
                key,
            )
        return None if row is None else CallbackState(**dict(row))

    async def _execute(self, sql: str, *arguments: object) -> None:
        async with connection(self._pool) as db:
            await db.execute(sql, *arguments)
