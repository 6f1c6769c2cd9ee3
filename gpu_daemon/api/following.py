"""A job looked at whenever it has changed, until it has ended.

Nothing is kept for who looks seldom: what happened in between is in what is seen next.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from gpu_daemon.api.context import Context
from gpu_daemon.errors import NotFound, Unavailable
from gpu_daemon.jobs.model import Job, JobId
from gpu_daemon.jobs.state import TERMINAL, JobState
from gpu_daemon.scheduling.status import Live
from gpu_daemon.transcript.formats import parse_result
from gpu_daemon.transcript.model import Segment

DATABASE_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    job: Job
    live: Live | None
    """While it runs."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Heard so far in the attempt that runs."""
        return () if self.live is None else self.live.segments


async def follow(context: Context, job: Job, *, every_s: float) -> AsyncGenerator[Look | None]:
    """At once, and after each change; None when nothing has for `every_s`, or nobody knows.

    The last look is at a job that has ended. Raises NotFound when the job is deleted.
    """
    with context.hub.watch(job.id) as changed:
        while True:
            changed.clear()
            seen = await _look(context, job)
            if seen is None:  # the database is away, and the job goes on
                await asyncio.sleep(DATABASE_PAUSE_S)
                yield None
                continue
            job = seen.job
            yield seen
            if job.state in TERMINAL:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await changed.wait()
            if not changed.is_set():
                yield None  # and looked at again: its place in the queue changes with others'


async def _look(context: Context, job: Job) -> Look | None:
    """The row is asked for only where more has changed than what `live` tells."""
    live = context.scheduler.live(job.id)
    if live is None or job.state is not JobState.PROCESSING or job.attempt != live.attempt:
        try:
            found = await context.jobs.get(job.id)
        except (Unavailable, OSError):
            return None
        if found is None:
            raise NotFound(f"there is no job {job.id}", param="job_id")
        job = found
        live = context.scheduler.live(job.id)
    return Look(job, None if live is None or live.attempt != job.attempt or job.state in TERMINAL else live)


async def all_segments(context: Context, job_id: JobId) -> tuple[Segment, ...]:
    """Of a job that is completed. Raises NotFound."""
    text = await context.jobs.result(job_id)
    if text is None:
        raise NotFound(f"there is no job {job_id}", param="job_id")
    return (await asyncio.to_thread(parse_result, text)).segments
