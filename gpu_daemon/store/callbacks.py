"""All SQL on `callbacks`, the outbox, and `callback_attempts`, its log."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from gpu_daemon.database.pool import Pool
from gpu_daemon.jobs.model import JobId
from gpu_daemon.store.failures import connection
from gpu_daemon.store.rows import key_of
from gpu_daemon.store.text import storable

LOGGED = 50
"""Tries of one callback that are kept: a receiver may ask for more than the schedule has, with Retry-After."""
DUE = """
    WITH RECURSIVE hosts AS (
        (SELECT host FROM callbacks WHERE state = 'pending' ORDER BY host LIMIT 1)
        UNION ALL
        SELECT (SELECT host FROM callbacks WHERE state = 'pending' AND host > hosts.host
                ORDER BY host LIMIT 1)
        FROM hosts WHERE host IS NOT NULL
    ), heads AS (
        SELECT head.id FROM hosts CROSS JOIN LATERAL (
            SELECT count(*) AS places FROM unnest($4::text[]) one WHERE one = hosts.host
        ) taken CROSS JOIN LATERAL (
            SELECT id, next_attempt_at, row_number() OVER (ORDER BY next_attempt_at, id) AS nth FROM callbacks
            WHERE state = 'pending' AND host = hosts.host AND next_attempt_at <= now()
              AND id <> ALL ($3)
            ORDER BY next_attempt_at, id
            LIMIT greatest(0, $2 - taken.places)
        ) head
        ORDER BY taken.places + head.nth, next_attempt_at, id LIMIT $1
    )
    SELECT extract(epoch FROM soon.next_attempt_at - now())::float8 AS next_in_s, one.*
    FROM (
        SELECT min((SELECT next_attempt_at FROM callbacks
                    WHERE state = 'pending' AND host = hosts.host AND next_attempt_at > now()
                    ORDER BY next_attempt_at, id LIMIT 1)) AS next_attempt_at
        FROM hosts WHERE host IS NOT NULL
    ) soon LEFT JOIN (
        SELECT id, job_id, host, url, payload, attempts, schedule, schedule_attempts,
               extract(epoch FROM now() - schedule_began_at)::float8 AS age_s,
               next_attempt_at AS since
        FROM heads JOIN callbacks USING (id)
    ) one ON true
    ORDER BY since, id
"""
"""A row without a callback when none is due. Goes from host to host along the index and reads a few rows of each.

A host that has no place yet comes before one that has some: many slow ones must not take each place that becomes free.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One that is due."""

    id: int
    job_id: JobId
    host: str
    url: str
    payload: str
    attempts: int
    """Tries so far."""
    schedule: int
    schedule_attempts: int
    """Tries so far since the job ended, or since the callback was asked for again."""
    age_s: float
    """Since then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    deliveries: list[Delivery]
    next_in_s: float | None
    """Until another will be due; None: none is waiting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    at: datetime
    duration_s: float
    status: int | None
    error: str | None
    """None: delivered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedTry(Try):
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackState:
    state: str
    """pending, delivered or dead"""
    attempts: int
    next_attempt_at: datetime
    last_status: int | None
    last_error: str | None
    delivered_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    pending: int
    """Not tried yet in their schedule."""
    retrying: int
    delivered: int
    dead: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Undelivered:
    job_id: JobId
    state: str
    """pending or dead"""
    attempts: int
    next_attempt_at: datetime
    last_error: str | None
    host: str


class CallbackStore:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def due(
        self,
        limit: int,
        *,
        per_host: int | None = None,
        but: Collection[int] = (),
        busy: Collection[str] = (),
    ) -> Due:
        """Receivers in turn, the longest overdue of each first, at most `per_host` of it, without `but`: under way.

        `busy` has the host of each one under way, as often as it has any. What it costs grows with the receivers that
        are waited for, not with the callbacks that wait.
        """
        async with connection(self._pool) as db:
            rows = await db.fetch(
                DUE,
                limit,
                limit if per_host is None else per_host,
                list(but),
                list(busy),
            )
        return Due(
            deliveries=[
                Delivery(
                    id=row["id"],
                    job_id=JobId(str(row["job_id"])),
                    host=row["host"],
                    url=row["url"],
                    payload=row["payload"],
                    attempts=row["attempts"],
                    schedule=row["schedule"],
                    schedule_attempts=row["schedule_attempts"],
                    age_s=row["age_s"],
                )
                for row in rows
                if row["id"] is not None
            ],
            next_in_s=rows[0]["next_in_s"],
        )

    async def delivered(self, delivery: Delivery, tried: Try) -> bool:
        return await self._record(delivery, tried, "state = 'delivered', delivered_at = now()")

    async def retry(self, delivery: Delivery, tried: Try, delay_s: float) -> bool:
        """One that was asked for again in the meantime is due at once, and this try is none of its new schedule's."""
        return await self._record(
            delivery,
            tried,
            """schedule_attempts = schedule_attempts + (schedule = $7)::integer,
               next_attempt_at = CASE WHEN schedule = $7 THEN now() + make_interval(secs => $8)
                                      ELSE next_attempt_at END""",
            delivery.schedule,
            delay_s,
        )

    async def dead(self, delivery: Delivery, tried: Try) -> bool:
        """One that was asked for again in the meantime is still pending."""
        return await self._record(
            delivery, tried, "state = CASE WHEN schedule = $7 THEN 'dead' ELSE state END", delivery.schedule
        )

    async def _record(self, delivery: Delivery, tried: Try, change: str, *arguments: object) -> bool:
        """Outcome and log in one statement. Called again after Unavailable it does nothing if that was committed."""
        async with connection(self._pool) as db:
            status: str = await db.execute(
                f"""WITH moved AS (
                        UPDATE callbacks SET attempts = attempts + 1, last_status = $5, last_error = $6, {change}
                        WHERE id = $1 AND attempts = $2 AND state = 'pending' RETURNING id, attempts
                    ), forgotten AS (
                        DELETE FROM callback_attempts USING moved
                        WHERE callback_id = moved.id AND number <= moved.attempts - {LOGGED}
                    )
                    INSERT INTO callback_attempts (callback_id, number, at, duration_s, status, error)
                    SELECT id, attempts, $3, $4, $5, $6 FROM moved""",
                delivery.id,
                delivery.attempts,
                tried.at,
                tried.duration_s,
                tried.status,
                None if tried.error is None else storable(tried.error),
                *arguments,
            )
        return status.endswith(" 1")

    async def redeliver(self, job_id: JobId) -> bool:
        """Due now, with a fresh schedule, whatever became of it. False: the job owes no callback, or none yet."""
        if (key := key_of(job_id)) is None:
            return False
        async with connection(self._pool) as db:
            status: str = await db.execute(
                """UPDATE callbacks SET state = 'pending', delivered_at = NULL, next_attempt_at = now(),
                                        schedule = schedule + 1, schedule_attempts = 0, schedule_began_at = now()
                   WHERE job_id = $1""",
                key,
            )
        return status.endswith(" 1")

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

    async def counts(self) -> Counts:
        async with connection(self._pool) as db:
            row = await db.fetchrow(
                """SELECT count(*) FILTER (WHERE state = 'pending' AND schedule_attempts = 0) AS pending,
                          count(*) FILTER (WHERE state = 'pending' AND schedule_attempts > 0) AS retrying,
                          count(*) FILTER (WHERE state = 'delivered') AS delivered,
                          count(*) FILTER (WHERE state = 'dead') AS dead
                   FROM callbacks"""
            )
        assert row is not None
        return Counts(**dict(row))

    async def undelivered(self, *, client: str | None, limit: int) -> list[Undelivered]:
        """Pending and dead ones, newest first; of one client, or of all."""
        async with connection(self._pool) as db:
            rows = await db.fetch(
                """SELECT job_id, callbacks.state, attempts, next_attempt_at, last_error, host
                   FROM callbacks JOIN jobs ON jobs.id = job_id
                   WHERE callbacks.state IN ('pending', 'dead') AND ($1::text IS NULL OR client = $1)
                   ORDER BY callbacks.id DESC LIMIT $2""",
                client,
                limit,
            )
        return [Undelivered(**(dict(row) | {"job_id": JobId(str(row["job_id"]))})) for row in rows]

    async def tries(self, job_id: JobId) -> list[LoggedTry]:
        """In their order; the newest LOGGED."""
        if (key := key_of(job_id)) is None:
            return []
        async with connection(self._pool) as db:
            rows = await db.fetch(
                """SELECT number, at, duration_s, status, error
                   FROM callback_attempts JOIN callbacks ON callbacks.id = callback_id
                   WHERE job_id = $1 ORDER BY number""",
                key,
            )
        return [LoggedTry(**dict(row)) for row in rows]
