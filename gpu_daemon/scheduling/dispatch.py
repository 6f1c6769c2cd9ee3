"""Which worker takes which job. Pure: no clock, no await.

A job goes to the worker with the fewest jobs, and among those to one that holds its model. A job that was tried before
runs alone: whatever ended its last attempt, it can take nobody with it. One worker clears itself for it: it takes no
other job until the last of those it has is done.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from gpu_daemon.jobs.model import JobId
from gpu_daemon.scheduling.queue import JobQueue, Waiting


class Taker(Protocol):
    """A worker."""

    index: int

    @property
    def load(self) -> int:
        """Jobs it has."""

    @property
    def has_room(self) -> bool:
        """It would take another one now."""

    @property
    def on_duty(self) -> bool: ...

    @property
    def loaded(self) -> Collection[str]:
        """Names of models."""


class Dispatch:
    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._clearing: dict[int, JobId] = {}  # workers that wait to be empty, and for whom

    def take(
        self,
        taker: Taker,
        others: Iterable[Taker],
        *,
        can_run: Callable[[Waiting], bool],
        alone: Callable[[Waiting], bool],
        now_s: float,
    ) -> Waiting | None:
        """The job that `taker` is to begin now, out of the queue. `now_s`: on a clock that only goes forward."""
        others = list(others)
        self._forget(taker, others)
        rivals = [other for other in others if other.has_room and other.index not in self._clearing]
        if not taker.has_room or any(rival.load < taker.load for rival in rivals):
            return None
        equals = [rival for rival in rivals if rival.load == taker.load]
        held_elsewhere = {name for rival in equals for name in rival.loaded} - set(taker.loaded)
        cleared_for = {job_id for index, job_id in self._clearing.items() if index != taker.index}

        def may_take(job: Waiting) -> bool:
            if job.model in held_elsewhere or not can_run(job):
                return False
            return not (taker.load and alone(job) and job.id in cleared_for)

        first = next((job for job in self._queue if may_take(job)), None)
        if first is not None and taker.load and alone(first):
            self._clearing[taker.index] = first.id
            return None
        self._clearing.pop(taker.index, None)
        if first is None:
            return None
        return self._queue.take(
            lambda job: may_take(job) and not (taker.load and alone(job)), loaded=taker.loaded, now_s=now_s
        )

    def _forget(self, taker: Taker, others: list[Taker]) -> None:
        """Of those that wait to be empty: whose job is gone, and who takes none any more."""
        on_duty = {worker.index for worker in (taker, *others) if worker.on_duty}
        self._clearing = {
            index: job_id
            for index, job_id in self._clearing.items()
            if index in on_duty and self._queue.position(job_id) is not None
        }
