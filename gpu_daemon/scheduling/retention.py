"""Forgets what has been kept long enough: results after RESULT_TTL_S, audio of ended jobs after AUDIO_TTL_S."""

import asyncio

from gpu_daemon.errors import Unavailable
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.logs import log
from gpu_daemon.scheduling.recovery import remove_files
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore

SWEEP_EVERY_S = 60.0


class Retention:
    def __init__(self, settings: Settings, jobs: JobStore) -> None:
        self._settings = settings
        self._jobs = jobs

    async def run(self) -> None:
        while True:
            try:
                await self.sweep()
            except (Unavailable, OSError) as error:
                log.warning("retention.postponed", error=str(error))
            await asyncio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> None:
        if self._settings.audio_ttl_s:
            for job_id in await self._jobs.expired(self._settings.audio_ttl_s):
                await remove_files(self._settings.jobs_dir, job_id)
        for job_id in await self._jobs.expired(self._settings.result_ttl_s):
            if await self._jobs.delete(job_id, unless_owing=True):  # it may have been asked for again meanwhile
                reach(FaultPoint.EXPIRED)
                await remove_files(self._settings.jobs_dir, job_id)
                log.info("job.expired", job_id=job_id)
