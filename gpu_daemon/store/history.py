"""How jobs ended lately, in buckets of time, from the rows that are still there (RESULT_TTL_S)."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from gpu_daemon import clock
from gpu_daemon.database.pool import Pool
from gpu_daemon.store.failures import connection

Window = Literal["15m", "1h", "24h"]


@dataclass(frozen=True, slots=True)
class _Plan:
    bucket_s: int
    buckets: int
    kept_s: float
    """An answer is given again for so long: the database counts the jobs of the whole window each time."""


PLANS: dict[Window, _Plan] = {
    "15m": _Plan(bucket_s=15, buckets=60, kept_s=2.0),
    "1h": _Plan(bucket_s=60, buckets=60, kept_s=5.0),
    "24h": _Plan(bucket_s=900, buckets=96, kept_s=30.0),
}
MOST_SHARE = 0.05
"""Of the time that the database may be kept busy by one window: a day of a hundred thousand jobs takes it a second."""
BUCKETS = """
    WITH spans AS (
        SELECT span, to_timestamp(span * $1::int) AS at,
               least($1, extract(epoch FROM now())::float8 - span * $1::int) AS past_s
        FROM generate_series(floor(extract(epoch FROM now()) / $1)::bigint - $2::int + 1,
                             floor(extract(epoch FROM now()) / $1)::bigint) AS span
    ), ended AS (
        SELECT floor(extract(epoch FROM finished_at) / $1)::bigint AS span, state,
               CASE WHEN state = 'completed' AND NOT reused THEN duration_s END AS audio_s,
               extract(epoch FROM started_at - created_at)::float8 AS wait_s,
               CASE WHEN state = 'completed' THEN extract(epoch FROM finished_at - created_at)::float8 END AS total_s
        FROM jobs
        WHERE finished_at >= to_timestamp((floor(extract(epoch FROM now()) / $1)::bigint - $2::int + 1) * $1::int)
    ), summed AS (
        SELECT span, count(*) FILTER (WHERE state = 'completed') AS completed,
               count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
               coalesce(sum(audio_s), 0) AS audio_s,
               percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY wait_s) AS waits,
               percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY total_s) AS totals
        FROM ended GROUP BY span
    )
    SELECT at, past_s, coalesce(completed, 0) AS completed, coalesce(failed, 0) AS failed,
           coalesce(cancelled, 0) AS cancelled, coalesce(audio_s, 0)::float8 AS audio_s,
           waits[1] AS wait_p50_s, waits[2] AS wait_p95_s, totals[1] AS total_p50_s, totals[2] AS total_p95_s
    FROM spans LEFT JOIN summed USING (span) ORDER BY span
"""
"""Jobs by when they ended, along the index on finished_at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Of the jobs that ended in it. A percentile of none is None."""

    at: datetime
    """When it began; the last one has not ended yet."""
    completed: int
    failed: int
    cancelled: int
    audio_s: float
    """Transcribed; not that of jobs which were answered with an earlier result."""
    wait_p50_s: float | None
    """From arrival to the last attempt."""
    wait_p95_s: float | None
    total_p50_s: float | None
    """Of completed jobs, from arrival to the end."""
    total_p95_s: float | None
    speed: float | None
    """Seconds of audio for each second that passed, by all devices together."""


class History:
    """Each window is asked for once at a time, whoever wants it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: dict[Window, tuple[float, tuple[Bucket, ...]]] = {}  # until when
        self._asking = {window: asyncio.Lock() for window in PLANS}

    async def buckets(self, window: Window) -> tuple[Bucket, ...]:
        """Oldest first, without gaps. Raises Unavailable."""
        async with self._asking[window]:
            until_s, buckets = self._kept.get(window, (float("-inf"), ()))
            began_s = clock.monotonic()
            if began_s > until_s:
                buckets = await self._read(PLANS[window])
                now_s = clock.monotonic()
                self._kept[window] = now_s + max(PLANS[window].kept_s, (now_s - began_s) / MOST_SHARE), buckets
        return buckets

    async def _read(self, plan: _Plan) -> tuple[Bucket, ...]:
        async with connection(self._pool) as db:
            rows = await db.fetch(BUCKETS, plan.bucket_s, plan.buckets)
        figures = [dict(row) for row in rows]
        return tuple(
            Bucket(**row, speed=row["audio_s"] / past_s if past_s > 0 else None)
            for row in figures
            for past_s in [row.pop("past_s")]
        )
