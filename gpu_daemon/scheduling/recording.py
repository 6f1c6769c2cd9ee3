"""Writes what became of an attempt, however long the database is away."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

from gpu_daemon.errors import Unavailable
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import Job, JobId
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.logs import log
from gpu_daemon.runner.process import Completed


class Recorder:
    def __init__(self) -> None:
        self._rng = random.Random()  # noqa: S311 - jitter
        self._background: set[asyncio.Task[None]] = set()
        """asyncio keeps only weak references to tasks."""

    async def record(
        self, job_id: JobId, write: Callable[[], Awaitable[bool]], *, keep: Callable[[], None] | None = None
    ) -> bool:
        """Tried until the database takes it: the work is done and must not be lost.

        `keep` puts it on disk meanwhile, in case the daemon does not live to see the database again. Blocks.
        """
        failures = 0
        while True:
            try:
                return await write()
            except (Unavailable, OSError) as error:
                failures += 1
                if failures == 1 and keep is not None:
                    await _keep(job_id, keep)
                delay_s = backoff_s(failures, first_s=0.5, most_s=15, rng=self._rng)
                log.error("job.record_failed", job_id=job_id, error=str(error), retry_in_s=round(delay_s, 1))
                await asyncio.sleep(delay_s)

    def in_background(self, write: Awaitable[bool]) -> None:
        """Once, and it does not matter much whether it succeeds."""

        async def tolerate() -> None:
            try:
                await write
            except (Unavailable, OSError) as error:
                log.warning("job.progress_not_stored", error=str(error))

        task = asyncio.create_task(tolerate())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _keep(job_id: JobId, keep: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(keep)
        reach(FaultPoint.RESULT_KEPT)
        log.warning("result.kept_on_disk", job_id=job_id)
    except OSError as error:
        log.error("result.not_kept", job_id=job_id, error=str(error))


def result_of(
    completed: Completed, job: Job, took_s: float, timings: dict[str, float], gpu: dict[str, Any] | None
) -> bytes:
    """The transcript with what only the daemon knows, spliced in as text: a long one is never parsed here."""
    extra = {
        "queue_time_s": None if job.queue_time_s is None else round(job.queue_time_s, 3),
        "processing_time_s": round(took_s, 3),
        "timings": timings,
        "gpu": gpu,
        "reused": False,
    }
    return completed.transcript[:-1] + b"," + json.dumps(extra).encode()[1:]
