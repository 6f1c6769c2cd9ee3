"""What a dead daemon left behind: rows that say `processing`, files without rows, rows without files.

Run once at start, under the daemon lock, before anything is accepted.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import Job, JobId
from gpu_daemon.jobs.state import TERMINAL, JobState
from gpu_daemon.logs import log
from gpu_daemon.scheduling.preparation import DECODED_NAME, SOURCE_NAME
from gpu_daemon.scheduling.spool import deliver_spooled
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore

SWEPT_AT_ONCE = 1000


async def recover(jobs: JobStore, settings: Settings) -> list[Job]:
    """The queued jobs, in the order of the queue."""
    await deliver_spooled(jobs, settings.jobs_dir)
    requeued, ended = await jobs.orphans(settings.max_attempts)
    for job_id in requeued:
        log.warning("job.requeued", job_id=job_id, reason="the daemon died while it ran")
    for job_id in ended:
        log.error("job.ended", job_id=job_id, reason="the daemon died while it ran, at its last attempt")
    await _sweep_files(jobs, settings)
    queued = await _with_files(jobs, settings.jobs_dir)
    reach(FaultPoint.RECOVERED)
    return queued


async def _sweep_files(jobs: JobStore, settings: Settings) -> None:
    """Remove uploads that never became a job, audio of jobs that have ended, and half-decoded files."""
    jobs_dir, names = settings.jobs_dir, await asyncio.to_thread(os.listdir, settings.jobs_dir)
    for first in range(0, len(names), SWEPT_AT_ONCE):
        some = [JobId(name) for name in names[first : first + SWEPT_AT_ONCE]]
        await asyncio.to_thread(_sweep, jobs_dir, some, await jobs.known(some), settings.audio_ttl_s > 0)


def _sweep(jobs_dir: Path, job_ids: Sequence[JobId], known: Mapping[JobId, JobState], keeps_audio: bool) -> None:
    for job_id in job_ids:
        state = known.get(job_id)
        if state is None or (state in TERMINAL and not keeps_audio):
            remove(jobs_dir, job_id)
        else:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(f"{jobs_dir}/{job_id}/{DECODED_NAME}")


async def _with_files(jobs: JobStore, jobs_dir: Path) -> list[Job]:
    queued = await jobs.queued()
    present = await asyncio.to_thread(lambda: {job.id for job in queued if _has_file(jobs_dir, job)})
    for job in queued:
        if job.id not in present:
            await jobs.fail_queued(job.id, "audio_missing", "the audio file is gone from the daemon's disk")
    return [job for job in queued if job.id in present]


def _has_file(jobs_dir: Path, job: Job) -> bool:
    """Or will have one: what came as a URL is fetched again, also when its row knows nothing of the file yet."""
    source = f"{jobs_dir}/{job.id}/{SOURCE_NAME}"
    if job.file_sha256 is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(source)
    return job.source_url is not None or os.path.isfile(source)


async def remove_files(jobs_dir: Path, job_id: JobId) -> None:
    await asyncio.to_thread(remove, jobs_dir, job_id)


def remove(jobs_dir: Path, job_id: JobId) -> None:
    """Blocks. Files that cannot be removed are swept at the next start."""
    directory = jobs_dir / job_id
    try:  # most have their source and nothing else: `rmtree` looks, and looks again
        os.unlink(directory / SOURCE_NAME)
        os.rmdir(directory)
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
