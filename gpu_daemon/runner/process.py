"""The parent's side of a runner: start it, give it jobs, stop it whatever it does. No torch here."""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from pydantic import TypeAdapter

import gpu_daemon
from gpu_daemon import clock
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError, RunnerCrashed
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.gpu.detect import Device
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.logs import log
from gpu_daemon.runner.link import Link
from gpu_daemon.runner.protocol import (
    Cancel,
    Conclude,
    Done,
    Failed,
    FromRunner,
    Hello,
    JobProgress,
    JobSegments,
    Launch,
    Models,
    Pong,
    Run,
    Stop,
    Unload,
)
from gpu_daemon.settings import child_environment
from gpu_daemon.transcript.model import Segment

TERMINATE_GRACE_S = 1.0
STOP_GRACE_S = 2.0

OnProgress = Callable[[Stage, float], None]
OnSegments = Callable[[int, tuple[Segment, ...]], None]
"""Newly heard, and the number of the first of them."""
_SEGMENTS = TypeAdapter(tuple[Segment, ...])


def _unheard(first: int, segments: tuple[Segment, ...]) -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    done: Done
    transcript: bytes
    """JSON of a Transcript."""


@dataclass(slots=True)
class _Running:
    ended: "asyncio.Future[Completed]"
    on_progress: OnProgress
    on_segments: OnSegments
    cancelled: bool = False


class Runner:
    """One child at a time; a new one after each death, when `start` is called again."""

    def __init__(
        self,
        device: Device,
        *,
        model_idle_s: float,
        vram_reserve_mb: int,
        pyannote_device: Literal["auto", "cuda", "cpu"] = "auto",
    ) -> None:
        self._device = device
        self._pyannote_device = pyannote_device
        self._model_idle_s = model_idle_s
        self._vram_reserve_mb = vram_reserve_mb
        self._link: Link | None = None
        self._running: dict[JobId, _Running] = {}
        self._moved_at_s = 0.0
        self._unloading: list[tuple[str | None, asyncio.Event]] = []
        self.loaded: dict[str, int] = {}
        """Bytes by model name."""

    @property
    def alive(self) -> bool:
        return self._link is not None and not self._link.ended.is_set()

    @property
    def ready(self) -> bool:
        """It takes jobs; whether it still answers, `answered_s_ago` tells."""
        return self.alive and self.hello is not None and not self.abandoned

    @property
    def abandoned(self) -> bool:
        """SIGKILL did not end the child, which hangs in its driver: the device can have no other one."""
        return self._link is not None and self._link.abandoned and self.alive

    @property
    def hello(self) -> Hello | None:
        return None if self._link is None else self._link.hello

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link is not None and self.alive else None

    @property
    def answered_s_ago(self) -> float | None:
        if self._link is None or not self.alive or self._link.answered_at_s is None:
            return None
        return clock.monotonic() - self._link.answered_at_s

    def is_still(self, seconds: float) -> bool:
        """It has jobs and said nothing of any for so long."""
        return bool(self._running) and clock.monotonic() >= self._moved_at_s + seconds

    async def start(self) -> None:
        """Spawned when this returns, not ready; nothing if it is alive.

        Raises OSError, and RunnerCrashed while the last child still hangs in its driver.

        To be called from a thread that lives as long as the daemon: the kernel kills the child when that thread ends.
        """
        if self.abandoned:
            raise RunnerCrashed("the last runner was killed and has not ended: the driver of its device hangs")
        if not self.alive:
            self._link = await Link.open(self._launch, self._environment(), receive=self._receive, ended=self._end_jobs)

    async def wait_ready(self, timeout_s: float) -> None:
        """Raises RunnerCrashed when it ended instead, or takes too long (then it is killed)."""
        if self._link is None:
            raise RunnerCrashed("the runner was not started")
        link = self._link
        try:
            async with asyncio.timeout(timeout_s):
                await link.settled.wait()
        except TimeoutError:
            await link.kill()
            raise RunnerCrashed(f"the runner was not ready within {timeout_s:.0f} s", stderr=link.stderr) from None
        if link.ended.is_set():
            last_line = link.stderr.rsplit("\n", 1)[-1]
            reason = f": {last_line}" if last_line else ""
            raise RunnerCrashed(f"the runner {link.exit}{reason}", stderr=link.stderr)

    async def run(self, request: Run, on_progress: OnProgress, on_segments: OnSegments = _unheard) -> Completed:
        """Raises JobError, JobCancelled, RunnerCrashed."""
        if self._link is None or not self.ready:
            raise RunnerCrashed("the runner is not running")
        if not self._running:
            self._moved_at_s = clock.monotonic()
        running = _Running(asyncio.get_running_loop().create_future(), on_progress, on_segments)
        self._running[request.job_id] = running
        self._link.send(request)
        reach(FaultPoint.RUNNER_TOLD)
        try:
            return await running.ended
        except asyncio.CancelledError:
            self._link.send(Cancel(job_id=request.job_id))
            raise
        finally:
            del self._running[request.job_id]

    async def cancel(self, job_id: JobId, *, grace_s: float = 2.0) -> None:
        """Ask the child to drop the job; `run` has ended when this returns.

        A child that does not obey within `grace_s` is ended with all it does, unless it has other jobs that are wanted:
        those must not pay for a slow step. Then the job is left to it, to be dropped when it can, and what it may still
        say of the job is not heard. If it hangs, so do the others, and whoever watches them ends it.
        """
        running, link = self._running.get(job_id), self._link
        if running is None or link is None:
            return
        running.cancelled = True
        link.send(Cancel(job_id=job_id))
        await asyncio.wait({running.ended}, timeout=grace_s)
        if running.ended.done():
            return
        others = sum(not other.cancelled for other in self._running.values())
        log.warning("runner.ignores_cancel", pid=link.pid, job_id=job_id, others=others)
        if others:
            running.ended.set_exception(JobCancelled("the job was cancelled"))
        elif not await link.ends_within(TERMINATE_GRACE_S, signal.SIGTERM):
            await self.kill()

    def conclude(self, job_id: JobId, why: JobError) -> None:
        """Ask the child not to wait for who speaks, once that is all that is missing; `run` then ends with the rest."""
        if self._link is not None and job_id in self._running:
            self._link.send(Conclude(job_id=job_id, code=why.code, message=why.message))

    async def unload(self, model: str | None = None) -> None:
        """Returns when it is out of memory, or the child has ended. None: every model. Behind a job that runs."""
        if self._link is None or not (self.loaded if model is None else model in self.loaded):
            return
        gone = (model, asyncio.Event())
        self._unloading.append(gone)
        try:
            self._link.send(Unload(model=model))
            await gone[1].wait()
        finally:
            self._unloading.remove(gone)

    async def kill(self) -> None:
        """At once; nothing is left of it when this returns, unless it is `abandoned`."""
        if self._link is not None and self.alive and not self.abandoned:
            await self._link.kill()
            self._end_jobs()

    async def stop(self) -> None:
        """Jobs under way are lost: end or cancel them first."""
        if self._link is not None and self.alive:
            self._link.send(Stop())
            if not await self._link.ends_within(STOP_GRACE_S):
                await self.kill()

    async def died(self) -> None:
        """Returns when there is no child."""
        if self._link is not None:
            await self._link.ended.wait()

    def _launch(self, socket_fd: int) -> Launch:
        return Launch(
            socket_fd=socket_fd,
            parent_pid=os.getpid(),
            device=self._device.kind,
            model_idle_s=self._model_idle_s,
            vram_reserve_mb=self._vram_reserve_mb,
            pyannote_device=self._pyannote_device,
        )

    def _environment(self) -> dict[str, str]:
        # The child finds the package wherever the daemon was started from.
        root = str(Path(gpu_daemon.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # Threads of torch that wait by spinning make it ten times slower when the cores are shared with anybody.
        defaults = {"OMP_WAIT_POLICY": "PASSIVE"}
        return {**defaults, **child_environment(), **self._device.environment(), "PYTHONPATH": path}

    def _receive(self, message: FromRunner, body: bytes) -> None:
        if not isinstance(message, Models):
            self._moved_at_s = clock.monotonic()
        match message:
            case JobProgress():
                if (running := self._running.get(message.job_id)) is not None:
                    running.on_progress(message.stage, message.fraction)
            case JobSegments():
                if (running := self._running.get(message.job_id)) is not None:
                    running.on_segments(message.first, _SEGMENTS.validate_json(body))
            case Done():
                if (running := self._running.get(message.job_id)) is not None and not running.ended.done():
                    running.ended.set_result(Completed(done=message, transcript=body))
            case Failed():
                if (running := self._running.get(message.job_id)) is not None and not running.ended.done():
                    running.ended.set_exception(_error(message))
            case Models():
                self._now_loaded(message.loaded)
            case Hello() | Pong():
                pass  # the link's own
            case _:
                assert_never(message)

    def _now_loaded(self, loaded: dict[str, int]) -> None:
        self.loaded = loaded
        for model, gone in self._unloading:
            if not (loaded if model is None else model in loaded):
                gone.set()

    def _end_jobs(self) -> None:
        """The child is gone: so are its models, and every job it had."""
        self._now_loaded({})
        assert self._link is not None
        for job_id, running in self._running.items():
            if not running.ended.done():
                log.error(
                    "runner.died", pid=self._link.pid, job_id=job_id, how=self._link.exit, stderr=self._link.stderr
                )
                running.ended.set_exception(
                    JobCancelled("the job was cancelled")
                    if running.cancelled
                    else RunnerCrashed(f"the runner {self._link.exit} while the job ran", stderr=self._link.stderr)
                )


def _error(failed: Failed) -> JobError:
    if failed.code == JobCancelled.code:
        return JobCancelled(failed.message)
    if failed.code == DeviceLost.code:
        return DeviceLost(failed.message)
    return JobError(failed.message, code=failed.code, retryable=failed.retryable)
