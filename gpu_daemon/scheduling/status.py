"""What is said of a worker and of the jobs it runs."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

from gpu_daemon.gpu.detect import Device
from gpu_daemon.jobs.model import Job, JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.transcript.model import Segment


class WorkerState(StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RESTARTING = "restarting"
    DRAINING = "draining"
    """Its last jobs are under way; drained when they have ended."""
    DRAINED = "drained"
    """Takes no jobs until somebody resumes it."""
    QUARANTINED = "quarantined"
    """Runners die on its device; no jobs until somebody resumes it."""
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """Where a running job is now; fresher than its row."""

    stage: Stage
    span: tuple[float, float]
    """The part of the whole job that this stage is, in percent."""
    progress: float
    worker_index: int
    attempt: int
    stage_since_s: float
    """On the monotonic clock."""
    moved_s: float
    """When the progress last changed, on the same clock."""
    segments: tuple[Segment, ...] = ()
    """What was heard so far in this attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerJob:
    id: JobId
    client: str | None
    model: str
    started_at: datetime | None
    duration_s: float | None
    live: Live = field(repr=False)

    @classmethod
    def of(cls, job: Job, live: Live) -> Self:
        return cls(
            id=job.id,
            client=job.client,
            model=job.options.model,
            started_at=job.started_at,
            duration_s=job.duration_s,
            live=live,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    index: int
    device: Device
    state: WorkerState
    jobs: tuple[WorkerJob, ...]
    """In the order in which it took them."""
    loaded: dict[str, int]
    """Bytes by model name."""
    pid: int | None
    answered_s_ago: float | None
    restarts: int
    error: str | None
    """Why the runner last died or did not start, or why the device is quarantined."""
