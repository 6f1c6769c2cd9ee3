"""Keeps a runner alive on one device, and judges by how runners end there whether the device still works."""

import asyncio
import contextlib
import random
from collections.abc import Callable

from gpu_daemon import clock
from gpu_daemon.errors import Conflict, RunnerCrashed
from gpu_daemon.gpu.detect import Device
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.logs import log
from gpu_daemon.runner.process import Runner
from gpu_daemon.scheduling.duty import Duty
from gpu_daemon.scheduling.quarantine import MOST_DEATHS, WINDOW_S, Deaths
from gpu_daemon.scheduling.status import WorkerState

RUNNER_START_TIMEOUT_S = 180.0
RUNNER_SILENT_LIMIT_S = 15.0
"""An idle runner that has not answered a ping for so long is replaced before it gets a job."""


class Supervisor:
    def __init__(
        self, index: int, device: Device, runner: Runner, duty: Duty, move: Callable[[WorkerState], None]
    ) -> None:
        """`move` is told what the worker is at; after it `duty` may be over."""
        self._index = index
        self._device = device
        self._runner = runner
        self._duty = duty
        self._move = move
        self._deaths = Deaths()
        self._starts = 0
        self._was_ready = False  # any runner of it, ever
        self._unjudged = False  # whether the device is to blame for the end of the last one is still open
        self._excused = False
        self._suspects: set[JobId] = set()
        self._rng = random.Random()  # noqa: S311 - jitter
        self.error: str | None = None
        """Why the runner last died or did not start, or why the device is quarantined."""

    @property
    def ready(self) -> bool:
        return self._runner.ready and (self._runner.answered_s_ago or 0) < RUNNER_SILENT_LIMIT_S

    @property
    def restarts(self) -> int:
        return max(0, self._starts - 1)

    async def start(self) -> None:
        """Returns when a runner is ready, or the worker takes no jobs any more."""
        failures = 0
        while self._duty.is_on and not self.ready:
            self._move(WorkerState.STARTING if self._starts == 0 else WorkerState.RESTARTING)
            if self._runner.ready:
                self.error = f"the runner did not answer for {RUNNER_SILENT_LIMIT_S:.0f} s"
                log.error("runner.silent", worker=self._index, pid=self._runner.pid)
            await self._runner.kill()
            if self._is_bad():
                return
            self._starts += 1
            try:
                await self._runner.start()
                await self._runner.wait_ready(RUNNER_START_TIMEOUT_S)
                self._was_ready = self._unjudged = True
                log.info("runner.ready", worker=self._index, device=self._device.name, pid=self._runner.pid)
            except (RunnerCrashed, OSError) as error:
                failures += 1
                self.error = str(error)
                self._unjudged = self._was_ready  # where none ever got ready, the installation is at fault
                delay_s = backoff_s(failures, first_s=1, most_s=60, rng=self._rng)
                log.error("runner.start_failed", worker=self._index, error=str(error), retry_in_s=round(delay_s, 1))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._duty.ends()

    def gone(self) -> None:
        """All that is known of its end has been said: was it anybody's doing?"""
        if not self._suspects and not self._excused:
            self.error = "the runner died while it was idle"
            log.error("runner.died", worker=self._index)

    def died_of(self, job_id: JobId, message: str) -> None:
        """This job was in it. Judged when the next one is to be started."""
        self.error = message
        self._suspects.add(job_id)

    def excuse(self) -> None:
        """The runner was killed for what is no fault of the device: the job would not stop, or took too long."""
        self._excused = True

    def job_completed(self) -> None:
        self._deaths.forget()

    def resume(self) -> None:
        """Somebody says that the device is good again. Raises Conflict while a killed runner hangs in its driver."""
        if self._runner.abandoned:
            raise Conflict(
                f"a runner of worker {self._index} was killed and has not ended: the driver of its device hangs, and "
                "another runner would hang as well",
                code="wrong_state",
            )
        if self._duty.quarantined:
            self.error = None
        self._deaths.forget()
        self._duty.resume()

    def _is_bad(self) -> bool:
        """The last runner is gone, or cannot be killed: is it the device's fault, which is quarantined then?"""
        suspects, excused, unjudged = frozenset(self._suspects), self._excused, self._unjudged
        self._suspects, self._excused, self._unjudged = set(), False, False
        if self._runner.abandoned:
            self._quarantine("a runner was killed and does not end: the driver of its device hangs")
            return True
        if unjudged and not excused and self._deaths.died(clock.monotonic(), suspects):
            self._quarantine(
                f"{MOST_DEATHS} runners died within {WINDOW_S / 60:.0f} minutes and no job was completed in between; "
                f"the last one: {self.error}"
            )
            return True
        return False

    def _quarantine(self, reason: str) -> None:
        self.error = reason
        self._duty.quarantine()
        log.error("worker.quarantined", worker=self._index, device=self._device.name, reason=reason)
        self._move(WorkerState.RESTARTING)
