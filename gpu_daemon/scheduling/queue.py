"""Who is next. Pure: no clock, no await, no database."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpu_daemon.jobs.model import Job, JobId


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """What the queue knows of a job; the row in the database has the rest."""

    id: JobId
    seq: int
    priority: int
    client: str | None
    model: str
    duration_s: float | None
    trim_silence: bool

    @classmethod
    def of(cls, job: Job) -> "Waiting":
        return cls(
            id=job.id,
            seq=job.seq,
            priority=job.priority,
            client=job.client,
            model=job.options.model,
            duration_s=job.duration_s,
            trim_silence=job.options.trim_silence,
        )


@dataclass(frozen=True, order=True, slots=True)
class _Place:
    minus_priority: int
    round: int
    seq: int
    id: JobId


class JobQueue:
    """Highest priority first; inside a priority, clients in turn; then first come.

    Turns are start-time fair queueing (Goyal, Vin, Cheng 1996) with every job of the same weight: a client's n-th job
    stands in the n-th round after the one that is being served. A job's place never changes once it is queued.
    """

    def __init__(self) -> None:
        self._order: list[_Place] = []
        self._jobs: dict[JobId, tuple[Waiting, _Place]] = {}
        self._served: dict[int, int] = {}  # the round being served, by priority
        self._last: dict[tuple[int, str | None], int] = {}  # the last round with a job of this client, by priority

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Waiting]:
        """In the order in which they will run."""
        return (self._jobs[place.id][0] for place in self._order)

    def push(self, job: Waiting) -> None:
        """A job that is already waiting stays where it is."""
        served = self._served.get(job.priority, 0)
        turn = max(served, self._last.get((job.priority, job.client), 0)) + 1
        if self._insert(job, turn):
            self._last[job.priority, job.client] = turn

    def push_back(self, job: Waiting) -> None:
        """One that was taken already, and comes before those that never were."""
        self._insert(job, self._served.get(job.priority, 0))

    def take(self, can_run: Callable[[Waiting], bool]) -> Waiting | None:
        """The first job that can run now; jobs that cannot (their model is still downloading) keep their place."""
        job = next((job for job in self if can_run(job)), None)
        if job is not None:
            turn = self._jobs[job.id][1].round
            self._served[job.priority] = max(turn, self._served.get(job.priority, 0))
            self.remove(job.id)
        return job

    def remove(self, job_id: JobId) -> Waiting | None:
        found = self._jobs.pop(job_id, None)
        if found is None:
            return None
        job, place = found
        del self._order[bisect_left(self._order, place)]
        if not self._order:
            self._served.clear()
            self._last.clear()
        return job

    def get(self, job_id: JobId) -> Waiting | None:
        found = self._jobs.get(job_id)
        return None if found is None else found[0]

    def position(self, job_id: JobId) -> int | None:
        """0: next. None: not waiting here."""
        found = self._jobs.get(job_id)
        return None if found is None else bisect_left(self._order, found[1])

    def _insert(self, job: Waiting, turn: int) -> bool:
        if job.id in self._jobs:
            return False
        place = _Place(-job.priority, turn, job.seq, job.id)
        self._jobs[job.id] = job, place
        insort(self._order, place)
        return True
