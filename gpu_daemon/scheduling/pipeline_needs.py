"""The diarization pipeline is fetched while the jobs that need it wait in the queue: no GPU waits for a download."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import SecretStr

from gpu_daemon import clock
from gpu_daemon.catalogue.pipelines import Pipelines
from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import JobId

REFUSAL_HOLDS_S = 30.0
"""So long a job is told again what it was told; later it asks anew."""


@dataclass(slots=True)
class _Need:
    token: SecretStr | None
    """The job's own. It is in no other place, and goes with the job."""
    fetching: "asyncio.Task[JobError | None]"
    ended_s: float | None = None


class PipelineNeeds:
    def __init__(self, pipelines: Pipelines, on_change: Callable[[], None]) -> None:
        """`on_change`: a job may be taken now, as its pipeline has come or failed to."""
        self._pipelines = pipelines
        self._on_change = on_change
        self._needs: dict[JobId, _Need] = {}
        self._failures: dict[JobId, JobError] = {}

    @property
    def name(self) -> str:
        return self._pipelines.name

    @property
    def ready(self) -> PipelineSpec | None:
        """What is here already."""
        return self._pipelines.ready

    def begin(self, job_id: JobId, token: SecretStr | None = None) -> None:
        """A job that is to say who speaks waits from now on; nothing if its pipeline is here."""
        if self._pipelines.ready is None and job_id not in self._needs:
            fetching = asyncio.create_task(self._fetch(token), name=f"pipeline for {job_id}")
            self._needs[job_id] = _Need(token, fetching)
            fetching.add_done_callback(lambda _: self._ended(job_id))

    def is_fetching(self, job_id: JobId) -> bool:
        """No worker is to take it yet."""
        need = self._needs.get(job_id)
        return need is not None and need.ended_s is None

    async def spec(self, job_id: JobId) -> PipelineSpec:
        """Of a job that is being done. Raises PipelineGated, PipelineUnavailable, PipelineChanged."""
        need = self._needs.get(job_id)
        if need is None:
            return await self._pipelines.spec()
        await asyncio.wait({need.fetching})
        if not need.fetching.cancelled() and (refused := need.fetching.result()) is not None:
            fresh = need.ended_s is None or clock.monotonic() < need.ended_s + REFUSAL_HOLDS_S
            if fresh and self._pipelines.ready is None:
                raise refused
        return await self._pipelines.spec(need.token)

    def fail(self, job_id: JobId, error: JobError) -> None:
        """An attempt that was to say who speaks has ended so, in a runner: nobody knows whose fault it was."""
        self._failures[job_id] = error

    def failure(self, job_id: JobId) -> JobError | None:
        """Of the latest attempt since the daemon started."""
        return self._failures.get(job_id)

    def forget(self, job_id: JobId) -> None:
        """It has ended: a download that it alone waited for ends, too."""
        self._failures.pop(job_id, None)
        need = self._needs.pop(job_id, None)
        if need is not None:
            need.fetching.cancel()

    async def stop(self) -> None:
        needs, self._needs = self._needs, {}
        for need in needs.values():
            need.fetching.cancel()
        if needs:
            await asyncio.wait({need.fetching for need in needs.values()})

    async def _fetch(self, token: SecretStr | None) -> JobError | None:
        try:
            await self._pipelines.spec(token)
        except JobError as error:
            return error
        return None

    def _ended(self, job_id: JobId) -> None:
        need = self._needs.get(job_id)
        if need is not None:
            need.ended_s = clock.monotonic()
            self._on_change()
