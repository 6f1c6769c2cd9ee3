"""How long a runner may take over one of its jobs, and how long it may say nothing."""

import asyncio

from gpu_daemon import clock
from gpu_daemon.errors import JobCancelled, JobError
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.process import Completed, OnProgress, OnSegments, Runner
from gpu_daemon.runner.protocol import Run

LOADING_STALL_LIMIT_S = 900.0
"""Reading a large checkpoint from a slow disk is not a hang."""


class StalledJob(JobError):
    code = "stalled"
    retryable = True


async def run_within_limits(
    runner: Runner,
    request: Run,
    on_progress: OnProgress,
    on_segments: OnSegments,
    *,
    cancelled: asyncio.Event,
    limit_s: float,
    stall_s: float,
) -> Completed:
    """`runner.run`, stopped once `cancelled` is set (JobCancelled), when the job takes longer than `limit_s` in all
    (JobError `job_timeout`) or makes no progress for `stall_s` (StalledJob).

    What stops is the job: see `Runner.cancel`. A runner in which nothing makes progress is killed, with all it does.
    """
    deadline = clock.monotonic() + limit_s
    beat, at = clock.monotonic(), Stage.LOADING

    def advanced(stage: Stage, fraction: float) -> None:
        nonlocal beat, at
        beat, at = clock.monotonic(), stage
        on_progress(stage, fraction)

    run = asyncio.create_task(runner.run(request, advanced, on_segments))
    asked = asyncio.create_task(cancelled.wait())  # after `run`, so that the runner knows of the job when it is asked
    try:
        while not run.done():
            now = clock.monotonic()
            silence_s = max(stall_s, LOADING_STALL_LIMIT_S) if at is Stage.LOADING else stall_s
            if asked.done():
                return await _stopped(runner, request, run, JobCancelled("the job was cancelled"))
            if now >= deadline:
                late = JobError(f"the job took longer than its limit of {limit_s:.0f} s", code="job_timeout")
                return await _stopped(runner, request, run, late)
            if now >= beat + silence_s:
                stalled = StalledJob(f"the runner made no progress for {silence_s:.0f} s")
                if runner.is_still(silence_s):
                    await runner.kill()
                return await _stopped(runner, request, run, stalled)
            # Looked at again after `stall_s` at the latest: the stage, and with it the limit, may have changed.
            timeout_s = min(deadline - now, beat + silence_s - now, stall_s)
            await asyncio.wait({run, asked}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return run.result()
    finally:
        asked.cancel()
        run.cancel()


async def _stopped(runner: Runner, request: Run, run: "asyncio.Task[Completed]", why: JobError) -> Completed:
    """Raises `why`, or what came before it; the result if that did."""
    await runner.cancel(request.job_id)
    await asyncio.wait({run})
    error = run.exception()
    if error is None:
        return run.result()
    raise why if isinstance(error, JobCancelled) or not runner.ready else error
