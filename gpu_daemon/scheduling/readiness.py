"""Would a job sent now run? From what the daemon knows of itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpu_daemon.catalogue.catalogue import ModelState, ModelStatus
from gpu_daemon.scheduling.status import WorkerState
from gpu_daemon.scheduling.worker import Worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    status: Literal["starting", "ready", "draining", "error"]
    reason: str | None


def of_workers(workers: Sequence[Worker]) -> Readiness | None:
    """None: one of them can take a job."""
    on_duty = [worker for worker in workers if worker.on_duty]
    if not on_duty:
        return _nobody_on_duty(workers)
    if any(worker.ready for worker in on_duty):
        return None
    failing = [worker.status().error for worker in on_duty if worker.state is WorkerState.RESTARTING]
    if len(failing) == len(on_duty):
        return Readiness(status="error", reason=f"no runner starts: {failing[0]}")
    return Readiness(status="starting", reason="the runners are starting")


def _nobody_on_duty(workers: Sequence[Worker]) -> Readiness:
    if all(worker.state is not WorkerState.QUARANTINED for worker in workers):
        return Readiness(status="draining", reason="every worker is drained: no job runs until one is resumed")
    reasons = [
        f"worker {worker.index} is {worker.state}" + (f" ({error})" if (error := worker.status().error) else "")
        for worker in workers
    ]
    return Readiness(status="error", reason=f"no worker takes jobs: {'; '.join(reasons)}")


def of_models(models: Sequence[ModelStatus]) -> Readiness:
    enabled = [model for model in models if model.enabled]
    if any(model.state is ModelState.READY for model in enabled):
        return Readiness(status="ready", reason=None)
    if not enabled:
        return Readiness(status="error", reason="no model is enabled")
    if all(model.state is ModelState.FAILED for model in enabled):
        return Readiness(status="error", reason=f"no model is usable: {enabled[0].name}: {enabled[0].error}")
    return Readiness(status="starting", reason="the models are being downloaded")
