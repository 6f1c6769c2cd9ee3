"""How long a runner may take over one of its jobs, and how long it may say nothing."""

import asyncio
from typing import Any

from gpu_daemon import clock
from gpu_daemon.errors import JobCancelled, JobError
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.process import Completed, OnProgress, OnSegments, Runner
from gpu_daemon.runner.protocol import Run

LOADING_STALL_LIMIT_S = 900.0
"""Reading a large checkpoint from a slow disk is not a hang."""
CONCLUDED_WITHIN_S = 10.0
"""From when who speaks is no longer waited for to the transcript without it: a step of the engine, and a long file."""


class StalledJob(JobError):
    code = "stalled"
    retryable = True


async def run_within_limits(
    runner: Runner,
    request: Run,
    on_progress: OnProgress,
    on_segments: OnSegments,
    *,
    cancelled: "asyncio.Future[None]",
    limit_s: float,
    stall_s: float,
) -> Completed:
    """`runner.run`, stopped once `cancelled` is done (JobCancelled), when the job takes longer than `limit_s` in all
    (JobError `job_timeout`) or makes no progress for `stall_s` (StalledJob).

    A job that is late with nothing but its speakers ends without them, if it asked for more than those.

    What stops is the job: see `Runner.cancel`. A runner in which nothing makes progress is killed, with all it does.
    """
    deadline = clock.monotonic() + limit_s
    beat, at = clock.monotonic(), Stage.LOADING

    def advanced(stage: Stage, fraction: float) -> None:
        nonlocal beat, at
        beat, at = clock.monotonic(), stage
        on_progress(stage, fraction)

    def silence_limit_s() -> float:
        return max(stall_s, LOADING_STALL_LIMIT_S) if at is Stage.LOADING else stall_s

    run = asyncio.create_task(runner.run(request, advanced, on_segments))
    ends: tuple[asyncio.Future[Any], ...] = (run, cancelled)
    try:
        while True:
            # Looked at again after `stall_s` at the latest: the stage, and with it the limit, may have changed.
            timeout_s = min(min(deadline, beat + silence_limit_s()) - clock.monotonic(), stall_s)
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if run.done():
                return run.result()
            now, silence_s = clock.monotonic(), silence_limit_s()
            if cancelled.done():
                return await _stopped(runner, request, run, JobCancelled("the job was cancelled"))
            if now >= deadline:
                late = JobError(f"the job took longer than its limit of {limit_s:.0f} s", code="job_timeout")
                if at is Stage.DIARIZING:
                    runner.conclude(request.job_id, late)
                    await asyncio.wait(ends, timeout=CONCLUDED_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
                return await _stopped(runner, request, run, late)
            if now >= beat + silence_s:
                stalled = StalledJob(f"the runner made no progress for {silence_s:.0f} s")
                if runner.is_still(silence_s):
                    await runner.kill()
                return await _stopped(runner, request, run, stalled)
    finally:
        run.cancel()


async def _stopped(runner: Runner, request: Run, run: "asyncio.Task[Completed]", why: JobError) -> Completed:
    """Raises `why`, or what came before it; the result if that did."""
    await runner.cancel(request.job_id)
    await asyncio.wait({run})
    error = run.exception()
    if error is None:
        return run.result()
    raise why if isinstance(error, JobCancelled) or not runner.ready else error
