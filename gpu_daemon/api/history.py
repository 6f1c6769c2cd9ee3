"""Throughput and waiting times over the last minutes and hours: what the page draws."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from gpu_daemon import clock
from gpu_daemon.api.access import RequireKey
from gpu_daemon.api.context import context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.schemas import Body
from gpu_daemon.store.history import PLANS, Bucket, Window

router = APIRouter(tags=["operations"])


class HistoryBucket(Body):
    """Of the jobs that ended in it."""

    at: str
    completed: int
    failed: int
    cancelled: int
    audio_s: float
    wait_p50_s: float | None
    wait_p95_s: float | None
    total_p50_s: float | None
    total_p95_s: float | None
    speed: float | None

    @classmethod
    def of(cls, bucket: Bucket) -> "HistoryBucket":
        return cls(
            at=clock.rfc3339(bucket.at) or "",
            completed=bucket.completed,
            failed=bucket.failed,
            cancelled=bucket.cancelled,
            audio_s=round(bucket.audio_s, 1),
            wait_p50_s=_rounded(bucket.wait_p50_s),
            wait_p95_s=_rounded(bucket.wait_p95_s),
            total_p50_s=_rounded(bucket.total_p50_s),
            total_p95_s=_rounded(bucket.total_p95_s),
            speed=_rounded(bucket.speed),
        )


class HistoryPage(Body):
    """Oldest first, without gaps; the last bucket has not ended yet."""

    window: Window
    bucket_s: int
    buckets: list[HistoryBucket]


@router.get(
    "/dashboard/history",
    dependencies=[RequireKey],
    summary="Jobs that ended, seconds of audio and waiting times, over 15 minutes, an hour or a day",
    responses=documented(400, 401, 503),
)
async def history(request: Request, window: Annotated[Window, Query()] = "1h") -> HistoryPage:
    """Of all clients together. Jobs that were deleted or forgotten (RESULT_TTL_S) are not in it."""
    buckets = await context_of(request).history.buckets(window)
    return HistoryPage(
        window=window, bucket_s=PLANS[window].bucket_s, buckets=[HistoryBucket.of(bucket) for bucket in buckets]
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
