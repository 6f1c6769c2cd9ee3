"""How long until a job starts, from how fast jobs like it were. Pure: no clock, no await."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpu_daemon.scheduling.queue import Waiting

MEMORY = 0.7
"""Weight of the past in a running mean."""
UNKNOWN = float("inf")
REFRESH_S_PER_JOB = 1e-4
"""The starts of a queue of n jobs are worked out once in n times this: a hundredth of the event loop's time at most."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Running means over attempts that succeeded, decoding and loading included: seconds of the device's time."""

    s_per_audio_s: float
    s_per_job: float
    """For audio whose container does not say how long it is."""

    def after(self, newer: "Pace") -> "Pace":
        return Pace(
            MEMORY * self.s_per_audio_s + (1 - MEMORY) * newer.s_per_audio_s,
            MEMORY * self.s_per_job + (1 - MEMORY) * newer.s_per_job,
        )

    def expected_s(self, duration_s: float | None) -> float:
        return self.s_per_job if duration_s is None else duration_s * self.s_per_audio_s


class Paces:
    """Of each worker with each model, and what is nearest to a pair that was never measured."""

    def __init__(self) -> None:
        self._paces: dict[tuple[int | None, str | None], Pace] = {}  # None: of any worker, of any model

    @property
    def known(self) -> bool:
        return bool(self._paces)

    def measured(self, worker: int, model: str, *, duration_s: float, took_s: float) -> None:
        if duration_s <= 0:
            return
        pace = Pace(took_s / duration_s, took_s)
        for key in ((worker, model), (None, model), (worker, None), (None, None)):
            before = self._paces.get(key)
            self._paces[key] = pace if before is None else before.after(pace)

    def of(self, worker: int, model: str) -> Pace | None:
        """None: nothing at all was measured yet. A model says more than a worker: those of one host are much alike."""
        keys = ((worker, model), (None, model), (worker, None), (None, None))
        return next((self._paces[key] for key in keys if key in self._paces), None)


class DeviceTime:
    """A clock that goes at an nth of the speed while n jobs share the device: on it, a job takes its share only."""

    def __init__(self) -> None:
        self._at = 0.0
        self._since_s = 0.0

    def at(self, now_s: float, *, load: int) -> float:
        """`load`: the jobs there were since it was last asked."""
        if load:
            self._at += (now_s - self._since_s) / load
        self._since_s = now_s
        return self._at


FreeS = Mapping[int, Sequence[float | None]]
"""By worker: when each of its places is free. 0: now; None: not known."""


def starts_s(paces: Paces, free_s: FreeS, queue: Iterable[Waiting]) -> Iterator[float | None]:
    """In how many seconds each job of the queue starts, and at last one that would come behind them all.

    A job that has waited shares its device with as many as there are places. None: not known, or nobody takes jobs.
    """
    free = [(UNKNOWN if at_s is None else at_s, worker) for worker, places in free_s.items() for at_s in places]
    free = free or [(UNKNOWN, 0)]
    heapq.heapify(free)
    known: dict[tuple[int, str], Pace | None] = {}  # `of` is asked once for each pair: queues are long
    for job in queue:
        at_s, worker = free[0]
        if at_s == UNKNOWN:
            yield None
            continue
        yield at_s
        pair = worker, job.model
        try:
            pace = known[pair]
        except KeyError:
            pace = known[pair] = paces.of(*pair)
        took_s = UNKNOWN if pace is None else pace.expected_s(job.duration_s) * len(free_s[worker])
        heapq.heapreplace(free, (at_s + took_s, worker))
    yield None if free[0][0] == UNKNOWN else free[0][0]


class Waits:
    """Asked for many places of a long queue at once, and worked out now and then."""

    def __init__(self, paces: Paces) -> None:
        self._paces = paces
        self._starts_s: list[float | None] = []
        self._until_s = -UNKNOWN

    def behind(
        self,
        position: int,
        queue: Iterable[Waiting],
        free_s: Callable[[], FreeS],
        *,
        now_s: float,
    ) -> float | None:
        """Seconds until a job with so many before it starts. `now_s`: on a clock that only goes forward."""
        if now_s >= self._until_s:
            self._starts_s = list(starts_s(self._paces, free_s(), queue))
            self._until_s = now_s + len(self._starts_s) * REFRESH_S_PER_JOB
        start_s = self._starts_s[min(position, len(self._starts_s) - 1)]
        return None if start_s is None else round(start_s, 1)
