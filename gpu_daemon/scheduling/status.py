"""What is said of a worker and of the job it runs."""

from dataclasses import dataclass
from enum import StrEnum

from gpu_daemon.gpu.detect import Device
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.transcript.model import Segment


class WorkerState(StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RESTARTING = "restarting"
    DRAINING = "draining"
    """Its last job is under way; drained when that has ended."""
    DRAINED = "drained"
    """Takes no jobs until somebody resumes it."""
    QUARANTINED = "quarantined"
    """Runners die on its device; no jobs until somebody resumes it."""
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """Where a running job is now; fresher than its row."""

    stage: Stage
    progress: float
    worker_index: int
    attempt: int
    stage_since_s: float
    """On the monotonic clock."""
    segments: tuple[Segment, ...] = ()
    """What was heard so far in this attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    index: int
    device: Device
    state: WorkerState
    job_id: JobId | None
    model: str | None
    stage: Stage | None
    progress: float | None
    loaded: dict[str, int]
    """Bytes by model name."""
    pid: int | None
    answered_s_ago: float | None
    restarts: int
    error: str | None
    """Why the runner last died or did not start, or why the device is quarantined."""
