"""Is the device to blame, or the job? Pure: times are passed in."""

from gpu_daemon.jobs.model import JobId

WINDOW_S = 600.0
MOST_DEATHS = 3


class Deaths:
    """Of the runners on one device, since a job was last completed there.

    A job that kills every runner it is given is one death, however many attempts it has: it is the file that is bad.
    Different jobs that kill runners, and runners that end without a job or do not start any more, are the device's.
    """

    def __init__(self) -> None:
        self._deaths: list[tuple[float, JobId | None]] = []

    def died(self, now_s: float, job_id: JobId | None) -> bool:
        """`job_id`: what it was doing; None: nothing. Is the device to be quarantined?"""
        self._deaths = [death for death in self._deaths if death[0] > now_s - WINDOW_S]
        self._deaths.append((now_s, job_id))
        jobs = {job_id for _, job_id in self._deaths if job_id is not None}
        without_job = sum(job_id is None for _, job_id in self._deaths)
        return len(jobs) + without_job >= MOST_DEATHS

    def forget(self) -> None:
        """A job was completed, or somebody says that the device is good again."""
        self._deaths.clear()
