"""A result that the database could not take yet, on disk: the work of a GPU outlives the daemon, too."""

import asyncio
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gpu_daemon.durable import write
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import Claim, JobId
from gpu_daemon.logs import log
from gpu_daemon.store.jobs import JobStore

RESULT_NAME = "result"


class SpooledResult(BaseModel):
    """One line of JSON; the transcript is the rest of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int
    lease_token: str
    timings: dict[str, float]
    model_sha256: str | None


def spool(directory: Path, claim: Claim, result: bytes, timings: dict[str, float], model_sha256: str | None) -> None:
    """Survives a power cut when it returns. Blocks. Raises OSError; nothing half-written is taken for a result."""
    head = SpooledResult(
        attempt=claim.attempt, lease_token=claim.lease_token, timings=timings, model_sha256=model_sha256
    )
    write(directory / RESULT_NAME, head.model_dump_json().encode() + b"\n" + result)


async def deliver_spooled(jobs: JobStore, jobs_dir: Path) -> None:
    """Write the results that waited on disk when the daemon ended. One whose job has gone on since is dropped."""
    for path in await asyncio.to_thread(lambda: sorted(jobs_dir.glob(f"*/{RESULT_NAME}"))):
        job_id = JobId(path.parent.name)
        head, _, result = (await asyncio.to_thread(path.read_bytes)).partition(b"\n")
        try:
            spooled = SpooledResult.model_validate_json(head)
            claim = Claim(job_id=job_id, attempt=spooled.attempt, lease_token=spooled.lease_token)
            written = await jobs.complete(claim, result, spooled.timings, model_sha256=spooled.model_sha256)
        except ValueError:  # of its head, of its text, of the ids
            log.error("result.unreadable", job_id=job_id)
            path.unlink()
            continue
        reach(FaultPoint.KEPT_RESULT_WRITTEN)
        log.warning("result.delivered_late", job_id=job_id, written=written)
        path.unlink()
