"""The file of a job that came with a URL: fetched, examined as an upload would have been, and noted in its row."""

import asyncio
import random
from pathlib import Path

from gpu_daemon.audio.fetch import Fetcher, OnBytes
from gpu_daemon.audio.probe import check_duration, probe
from gpu_daemon.errors import DiskFull, JobCancelled, JobError, Unavailable
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import JobId, SourceFile
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.logs import log
from gpu_daemon.store.jobs import JobStore

AT_ONCE = 4
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


class SourceFetcher:
    def __init__(self, fetcher: Fetcher, jobs: JobStore, *, max_duration_s: int) -> None:
        self._fetcher = fetcher
        self._jobs = jobs
        self._max_duration_s = max_duration_s
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._rng = random.Random()  # noqa: S311 - jitter

    async def fetch(
        self,
        job_id: JobId,
        url: str,
        source: Path,
        *,
        attempt: int,
        ffmpeg: asyncio.Semaphore,
        on_bytes: OnBytes,
    ) -> None:
        """`source` is there when this returns, and its row knows it; neither if it does not.

        After `attempt` failures it waits first. Raises JobError and its like, TooLarge, NotMedia, OSError of the disk.
        """
        if attempt:
            await asyncio.sleep(backoff_s(attempt, first_s=FIRST_PAUSE_S, most_s=LONGEST_PAUSE_S, rng=self._rng))
        kept = False
        try:
            async with self._at_once:
                fetched = await self._fetcher.fetch(url, source, on_bytes)
            reach(FaultPoint.FETCHED)
            async with ffmpeg:
                info = await probe(source)
            check_duration(info, self._max_duration_s)
            await self._note(
                job_id,
                SourceFile(
                    name=fetched.file_name,
                    size_bytes=fetched.size_bytes,
                    sha256=fetched.sha256,
                    duration_s=info.duration_s,
                ),
            )
            kept = True
            reach(FaultPoint.FETCH_NOTED)
        except DiskFull as error:
            raise JobError("there is no disk space left for the file", code=error.code, retryable=True) from error
        except Unavailable as error:
            raise JobError("the file could not be examined in time", code="decode_timeout", retryable=True) from error
        finally:
            if not kept:
                source.unlink(missing_ok=True)

    async def close(self) -> None:
        await self._fetcher.close()

    async def _note(self, job_id: JobId, file: SourceFile) -> None:
        """However long the database is away. Raises JobCancelled if the job has ended meanwhile."""
        failures = 0
        while True:
            try:
                noted = await self._jobs.fetched(job_id, file)
            except (Unavailable, OSError) as error:
                failures += 1
                log.warning("job.fetch_not_noted", job_id=job_id, error=str(error))
                await asyncio.sleep(backoff_s(failures, first_s=0.5, most_s=15, rng=self._rng))
            else:
                if not noted:
                    raise JobCancelled("the job ended while its file was fetched")
                log.info("job.fetched", job_id=job_id, size_bytes=file.size_bytes, duration_s=file.duration_s)
                return
