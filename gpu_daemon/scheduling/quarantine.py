"""Is the device to blame, or a job? Pure: times are passed in."""

from collections.abc import Set

from gpu_daemon.jobs.model import JobId

WINDOW_S = 600.0
MOST_DEATHS = 3


class Deaths:
    """Of the runners on one device, since a job was last completed there.

    A job that kills every runner it is given is one death, however many attempts it has: it is the file that is bad.
    So is a death among several jobs when one of them, alone, killed another runner. Different jobs that kill runners,
    and runners that end without a job or do not start any more, are the device's.
    """

    def __init__(self) -> None:
        self._deaths: list[tuple[float, frozenset[JobId]]] = []

    def died(self, now_s: float, jobs: Set[JobId]) -> bool:
        """`jobs`: those it had; none: it was idle. Is the device to be quarantined?"""
        self._deaths = [death for death in self._deaths if death[0] > now_s - WINDOW_S]
        self._deaths.append((now_s, frozenset(jobs)))
        killers = {job_id for _, among in self._deaths if len(among) == 1 for job_id in among}
        others = sum(len(among) != 1 and not among & killers for _, among in self._deaths)
        return len(killers) + others >= MOST_DEATHS

    def forget(self) -> None:
        """A job was completed, or somebody says that the device is good again."""
        self._deaths.clear()
