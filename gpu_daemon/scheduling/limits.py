"""How long a runner may take, and how long it may say nothing."""

import asyncio

from gpu_daemon import clock
from gpu_daemon.errors import JobError
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
    """`runner.run`, stopped once `cancelled` is set (JobCancelled); the child is killed when the job takes longer than
    `limit_s` in all (JobError `job_timeout`), makes no progress for `stall_s` (StalledJob), or the caller is cancelled.
    """
    deadline = clock.monotonic() + limit_s
    beat, at = clock.monotonic(), Stage.LOADING

    def advanced(stage: Stage, fraction: float) -> None:
        nonlocal beat, at
        beat, at = clock.monotonic(), stage
        on_progress(stage, fraction)

    async def obey() -> None:
        await cancelled.wait()
        await runner.cancel(request.job_id)

    run = asyncio.create_task(runner.run(request, advanced, on_segments))
    obeying = asyncio.create_task(obey())  # after `run`, so that the runner knows of the job when it is asked
    try:
        while not run.done():
            now = clock.monotonic()
            silence_s = max(stall_s, LOADING_STALL_LIMIT_S) if at is Stage.LOADING else stall_s
            if now >= deadline:
                raise JobError(f"the job took longer than its limit of {limit_s:.0f} s", code="job_timeout")
            if now >= beat + silence_s:
                raise StalledJob(f"the runner made no progress for {silence_s:.0f} s")
            # Looked at again after `stall_s` at the latest: the stage, and with it the limit, may have changed.
            await asyncio.wait({run}, timeout=min(deadline - now, beat + silence_s - now, stall_s))
        return run.result()
    finally:
        obeying.cancel()
        if not run.done():
            await asyncio.shield(_abandon(runner, run))


async def _abandon(runner: Runner, run: "asyncio.Task[Completed]") -> None:
    await runner.kill()
    await asyncio.wait({run})
    run.exception()  # seen: it says that the runner was killed, which we know
