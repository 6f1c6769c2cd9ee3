"""Decoding by ffmpeg, ahead of the GPUs.

The jobs at the head of the queue are decoded while others run, so that a GPU never waits for ffmpeg. They are still
`queued` then: ffmpeg is a child with limits of its own and cannot hurt the daemon, so no attempt is counted for it, and
whatever goes wrong is kept for the worker that claims the job.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpu_daemon import clock
from gpu_daemon.audio.decode import Decoded, decode
from gpu_daemon.errors import GpuDaemonError, JobError
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import JobId
from gpu_daemon.logs import log
from gpu_daemon.scheduling.queue import Waiting

SOURCE_NAME = "source"
DECODED_NAME = "audio.s16"


@dataclass(frozen=True, slots=True)
class Prepared:
    audio: Decoded
    took_s: float


class Preparer:
    def __init__(self, jobs_dir: Path, *, max_duration_s: int, at_once: int) -> None:
        self._jobs_dir = jobs_dir
        self._max_duration_s = max_duration_s
        self._at_once = asyncio.Semaphore(at_once)
        self._ahead_limit = at_once
        self._tasks: dict[JobId, asyncio.Task[Prepared | GpuDaemonError]] = {}

    def look_ahead(self, jobs: Iterable[Waiting]) -> None:
        """Start on the first few of `jobs`; those begun earlier go on, and count."""
        for job in jobs:
            if len(self._tasks) >= self._ahead_limit:
                return
            self._begin(job)

    async def prepared(self, job: Waiting) -> Prepared:
        """The decoded audio; whoever gets it owns the file. Raises NotMedia, TooLarge, JobError."""
        task = self._begin(job)
        try:
            outcome = await asyncio.shield(task)
        except asyncio.CancelledError:
            await self.discard(job.id)
            raise
        self._tasks.pop(job.id, None)
        if isinstance(outcome, GpuDaemonError):
            raise outcome
        return outcome

    async def discard(self, job_id: JobId) -> None:
        """Stop ffmpeg if it is at it and forget the job."""
        task = self._tasks.pop(job_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def stop(self) -> None:
        for job_id in list(self._tasks):
            await self.discard(job_id)

    def _begin(self, job: Waiting) -> asyncio.Task[Prepared | GpuDaemonError]:
        task = self._tasks.get(job.id)
        if task is None:
            task = self._tasks[job.id] = asyncio.create_task(self._prepare(job), name=f"prepare {job.id}")
        return task

    async def _prepare(self, job: Waiting) -> Prepared | GpuDaemonError:
        directory = self._jobs_dir / job.id
        async with self._at_once:
            began = clock.monotonic()
            try:
                audio = await decode(
                    directory / SOURCE_NAME,
                    directory / DECODED_NAME,
                    max_duration_s=self._max_duration_s,
                    trim_silence=job.trim_silence,
                )
            except GpuDaemonError as error:
                return error
            except OSError as error:
                log.error("job.prepare_failed", job_id=job.id, error=str(error))
                return JobError(
                    "the audio could not be decoded: no disk space, or its file is gone", code="decode_failed"
                )
            reach(FaultPoint.DECODED)
            return Prepared(audio, clock.monotonic() - began)
