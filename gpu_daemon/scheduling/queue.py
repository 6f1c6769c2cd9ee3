"""Who is next. Pure: no clock, no await, no database."""

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from gpu_daemon.audio.decode import Decoded
from gpu_daemon.jobs.model import ChannelMode, Job, JobId

AFFINITY_PLACES = 200
"""So far behind the first job one with a loaded model is looked for."""


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
    split_channels: bool
    source_url: str | None = field(repr=False)
    """Where its file is to be fetched; None: it is there."""
    attempt: int
    """How many have been made."""
    audio: Decoded | None = None
    """What the engine is to hear, if nothing is to be prepared."""
    created_at: datetime | None = None
    takes_earlier_result: bool = False
    """When its file has been fetched; it is not remembered over a restart."""

    @classmethod
    def of(cls, job: Job, audio: Decoded | None = None, *, takes_earlier_result: bool = False) -> "Waiting":
        return cls(
            id=job.id,
            seq=job.seq,
            priority=job.priority,
            client=job.client,
            model=job.options.model,
            duration_s=job.duration_s,
            trim_silence=job.options.trim_silence,
            split_channels=job.options.channel_mode is ChannelMode.SPLIT,
            source_url=job.source_url,
            attempt=job.attempt,
            audio=audio,
            created_at=job.created_at,
            takes_earlier_result=takes_earlier_result,
        )


@dataclass(frozen=True, order=True, slots=True)
class _Place:
    minus_priority: int
    round: int
    seq: int
    id: JobId
    job: Waiting = field(compare=False)


class JobQueue:
    """Highest priority first; inside a priority, clients in turn; then first come.

    Turns are start-time fair queueing (Goyal, Vin, Cheng 1996) with every job of the same weight: a client's n-th job
    stands in the n-th round after the one that is being served. A job's place never changes once it is queued.

    A worker may take a job from further behind, because its runner holds the model: each of those that it passes over
    is passed over for `affinity_wait_s` at most, counted from the first time, and never for a job of less priority.
    """

    def __init__(self, *, affinity_wait_s: float = 0.0) -> None:
        self._affinity_wait_s = affinity_wait_s
        self._order: list[_Place] = []
        self._places: dict[JobId, _Place] = {}
        self._served: dict[int, int] = {}  # the round being served, by priority
        self._last: dict[tuple[int, str | None], int] = {}  # the last round with a job of this client, by priority
        self._passed_over: dict[JobId, float] = {}  # when first
        self._n_urls = 0
        self._n_prepared = 0

    @property
    def has_unprepared(self) -> bool:
        """There is a job whose audio is to be prepared."""
        return self._n_prepared < len(self._order)

    @property
    def has_urls(self) -> bool:
        """There is a job whose file is to be fetched."""
        return self._n_urls > 0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Waiting]:
        """In the order in which they will run."""
        return (place.job for place in self._order)

    def push(self, job: Waiting) -> None:
        """A job that is already waiting stays where it is."""
        served = self._served.get(job.priority, 0)
        turn = max(served, self._last.get((job.priority, job.client), 0)) + 1
        if self._insert(job, turn):
            self._last[job.priority, job.client] = turn

    def push_back(self, job: Waiting) -> None:
        """One that was taken already, and comes before those that never were."""
        self._insert(job, self._served.get(job.priority, 0))

    def take(
        self, can_run: Callable[[Waiting], bool], *, loaded: Collection[str] = (), now_s: float = 0.0
    ) -> Waiting | None:
        """The first job that can run now, or one a little behind it whose model is `loaded`.

        Jobs that cannot run (their model is still downloading) keep their place. `now_s`: on a clock that only goes
        forward.
        """
        places = iter(self)
        first = next((job for job in places if can_run(job)), None)
        if first is None:
            return None
        job = first
        if loaded and first.model not in loaded:
            others = (other for other in islice(places, AFFINITY_PLACES) if can_run(other))
            job = self._loaded_one(first, others, loaded, now_s)
        # When another than the first is taken, the first one's round has not come yet, and newcomers may stand in it.
        turn = self._places[first.id].round - (job is not first)
        self._served[first.priority] = max(turn, self._served.get(first.priority, 0))
        self.remove(job.id)
        return job

    def _loaded_one(self, first: Waiting, others: Iterator[Waiting], loaded: Collection[str], now_s: float) -> Waiting:
        """The next of `others` with a loaded model, if all before it, `first` too, may be passed over; else `first`."""
        passed = [first]
        for job in others:
            waited_s = now_s - self._passed_over.get(passed[-1].id, now_s)
            if job.priority != first.priority or waited_s >= self._affinity_wait_s:
                break
            if job.model in loaded:
                for one in passed:
                    self._passed_over.setdefault(one.id, now_s)
                return job
            passed.append(job)
        return first

    def ahead(self, loaded: Collection[str]) -> Iterator[Waiting]:
        """In the order in which workers that hold these models will take them, more or less."""
        places = AFFINITY_PLACES if self._affinity_wait_s else 0
        first = next(iter(self), None)

        def goes_first(job: Waiting) -> bool:
            return first is not None and job.model in loaded and job.priority == first.priority

        yield from (job for job in islice(self, places) if goes_first(job))
        yield from (job for place, job in enumerate(self) if place >= places or not goes_first(job))

    def remove(self, job_id: JobId) -> Waiting | None:
        place = self._places.pop(job_id, None)
        if place is None:
            return None
        self._passed_over.pop(job_id, None)
        del self._order[bisect_left(self._order, place)]
        self._n_urls -= place.job.source_url is not None
        self._n_prepared -= place.job.audio is not None
        if not self._order:
            self._served.clear()
            self._last.clear()
        return place.job

    def get(self, job_id: JobId) -> Waiting | None:
        place = self._places.get(job_id)
        return None if place is None else place.job

    def position(self, job_id: JobId) -> int | None:
        """0: next. None: not waiting here."""
        place = self._places.get(job_id)
        return None if place is None else bisect_left(self._order, place)

    def _insert(self, job: Waiting, turn: int) -> bool:
        if job.id in self._places:
            return False
        place = self._places[job.id] = _Place(-job.priority, turn, job.seq, job.id, job)
        insort(self._order, place)
        self._n_urls += job.source_url is not None
        self._n_prepared += job.audio is not None
        return True
