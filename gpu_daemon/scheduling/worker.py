"""One worker per device: takes jobs, has its runner do them, several at once, and keeps it alive.

The worker is a task in the daemon, and so is each attempt at a job; the runner is its child process. A crash, a hang or
a kill of the runner costs the jobs in it an attempt and the worker a restart of the child, and nobody else anything. A
job that was tried before runs alone (`dispatch.py`), so that one which kills its runners takes others with it once at
most. A device on which one runner after the other dies is quarantined: it takes no jobs until somebody resumes it.
"""

import asyncio
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Protocol

from gpu_daemon import clock
from gpu_daemon.catalogue.catalogue import Catalogue
from gpu_daemon.errors import Conflict, DeviceLost, GpuDaemonError, RunnerCrashed, Unavailable
from gpu_daemon.events import EventHub
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.telemetry import Telemetry
from gpu_daemon.jobs.model import Claim, Job, JobId
from gpu_daemon.jobs.state import JobState
from gpu_daemon.logs import about, log
from gpu_daemon.metrics import Metrics
from gpu_daemon.runner.process import Runner
from gpu_daemon.scheduling.attempt import HAND_BACK_TIMEOUT_S, Attempt, Means, NoRunner
from gpu_daemon.scheduling.duty import Duty
from gpu_daemon.scheduling.estimate import DeviceTime, Paces
from gpu_daemon.scheduling.limits import StalledJob
from gpu_daemon.scheduling.pipeline_needs import PipelineNeeds
from gpu_daemon.scheduling.preparation import Preparer
from gpu_daemon.scheduling.queue import Waiting
from gpu_daemon.scheduling.recording import Recorder
from gpu_daemon.scheduling.status import Live, WorkerJob, WorkerState, WorkerStatus
from gpu_daemon.scheduling.supervisor import Supervisor
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore

UNLOAD_TIMEOUT_S = 10.0
OUT_OF_MEMORY = "gpu_oom"
STILL_S = 15.0
"""A runner that has jobs and says nothing of them for so long gets no others: it may hang."""
LOOK_AGAIN_S = 1.0
INCIDENTS = {WorkerState.RESTARTING: "worker_restarted", WorkerState.QUARANTINED: "worker_quarantined"}


class JobSource(Protocol):
    """Where a worker's jobs come from, and whom it tells how they went: the scheduler."""

    def job_at_hand(self, worker_index: int) -> Waiting | None:
        """One that the worker can begin now."""

    async def next_job(self, worker_index: int) -> Waiting | None:
        """None: the worker has no room any more."""

    def give_back(self, job: Waiting) -> None: ...

    def look_again(self) -> None:
        """A worker has more room than before, or takes no jobs any more."""

    def measured(self, worker_index: int, model: str, *, duration_s: float, took_s: float) -> None:
        """So much time of the device a job took whose audio lasts so long."""

    async def ended(self, job: Job, state: JobState | None, result: bytes | None = None) -> None:
        """An attempt is over and recorded. `state`: None when the job was no longer this worker's to move."""

    def moved(self, job_id: JobId) -> None:
        """A job that the worker was given was no longer waiting."""


@dataclass(slots=True)
class _Place:
    """A job that the worker has taken."""

    waiting: Waiting
    alone: bool
    began_at: float
    """On the device's time."""
    cancel: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    attempt: Attempt | None = None
    """None: it is being claimed."""
    over: bool = False
    """The runner is through with it; how it ended is being recorded."""
    task: "asyncio.Task[None] | None" = None

    def stop(self) -> None:
        if not self.cancel.done():
            self.cancel.set_result(None)

    def stage(self) -> str | None:
        return None if self.attempt is None else self.attempt.live.stage.value


class Worker:
    def __init__(
        self,
        index: int,
        device: Device,
        runner: Runner,
        *,
        settings: Settings,
        jobs: JobStore,
        catalogue: Catalogue,
        preparer: Preparer,
        pipelines: PipelineNeeds,
        source: JobSource,
        hub: EventHub,
        telemetry: Telemetry,
        metrics: Metrics,
    ) -> None:
        self.index = index
        self.device = device
        self._gpu = None if device.kind == "cpu" else f"{device.kind}:{device.index}"
        self._runner = runner
        self._jobs = jobs
        self._preparer = preparer
        self._source = source
        self._hub = hub
        self._most = settings.jobs_per(device.kind)
        self._places: dict[JobId, _Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_runner: set[JobId] = set()
        self._changed = asyncio.Event()
        self._worn = False  # the runner ran out of memory: the next one is to be a fresh one
        self._claim_failed = False
        self._time = DeviceTime()
        self._duty = Duty()
        self._phase = WorkerState.STOPPED  # what it would be on duty and without a job
        self._published = WorkerState.STOPPED
        self._supervisor = Supervisor(index, device, runner, self._duty, self._move)
        self._means = Means(
            worker_index=index,
            device=device,
            runner=runner,
            turn=self,
            settings=settings,
            jobs=jobs,
            catalogue=catalogue,
            preparer=preparer,
            pipelines=pipelines,
            recorder=Recorder(),
            hub=hub,
            telemetry=telemetry,
            metrics=metrics,
        )

    @property
    def ready(self) -> bool:
        return self._supervisor.ready

    @property
    def state(self) -> WorkerState:
        if self._phase is WorkerState.STOPPED:
            return WorkerState.STOPPED
        if self._duty.quarantined:
            return WorkerState.QUARANTINED
        if self._duty.drained:
            return WorkerState.DRAINING if self._places else WorkerState.DRAINED
        return WorkerState.BUSY if self._phase is WorkerState.IDLE and self._places else self._phase

    @property
    def on_duty(self) -> bool:
        return self._duty.is_on

    @property
    def loaded(self) -> Set[str]:
        """Names of the models that its runner holds."""
        return self._runner.loaded.keys()

    @property
    def pid(self) -> int | None:
        """Its runner's."""
        return self._runner.pid

    @property
    def load(self) -> int:
        """Jobs it has, without those whose end is being recorded."""
        return sum(not place.over for place in self._places.values())

    @property
    def has_room(self) -> bool:
        """It would take another job now."""
        return (
            self.ready
            and self.on_duty
            and not self._worn
            and self.load < self._most
            and not any(place.alone and not place.over for place in self._places.values())
            and not self._runner.is_still(STILL_S)
        )

    @property
    def job_ids(self) -> list[JobId]:
        return [job_id for job_id, place in self._places.items() if place.attempt is not None]

    def job(self, job_id: JobId) -> Job | None:
        """As it was claimed."""
        place = self._places.get(job_id)
        return None if place is None or place.attempt is None else place.attempt.job

    def client(self, job_id: JobId) -> str | None:
        place = self._places.get(job_id)
        return None if place is None else place.waiting.client

    def live(self, job_id: JobId) -> Live | None:
        place = self._places.get(job_id)
        return None if place is None or place.attempt is None else place.attempt.live

    def status(self) -> WorkerStatus:
        attempts = [place.attempt for place in self._places.values() if place.attempt is not None]
        return WorkerStatus(
            index=self.index,
            device=self.device,
            state=self.state,
            jobs=tuple(WorkerJob.of(attempt.job, attempt.live) for attempt in attempts),
            loaded=dict(self._runner.loaded),
            pid=self._runner.pid,
            answered_s_ago=self._runner.answered_s_ago,
            restarts=self._supervisor.restarts,
            error=self._supervisor.error,
        )

    async def run(self) -> None:
        """Until cancelled; jobs under way go back to the queue then, uncharged."""
        try:
            while True:
                await self._begin_duty()
                await self._supervisor.start()
                self._look_again()
                if self.ready:
                    await self._feed()
                    await self._runner_judged()
        finally:
            for place in self._places.values():  # not those whose end is recorded and being announced
                if place.task is not None:
                    place.task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._move(WorkerState.STOPPED)
            self._supervisor.excuse()
            await self._runner.stop()

    def cancel(self, job_id: JobId) -> None:
        """Stop this job if it is one of those that run; it has ended within seconds."""
        if (place := self._places.get(job_id)) is not None:
            log.info("job.cancelling", job_id=job_id, worker=self.index)
            place.stop()

    def drain(self) -> None:
        """Finish the jobs that run and take no other; the runner and its models stay."""
        self._duty.drain()
        self._look_again()
        self._hub.publish("incident", str(self.index), what="worker_drained")
        log.info("worker.drained", worker=self.index, jobs=self.job_ids)

    def resume(self) -> None:
        """Take jobs again. Raises Conflict while a runner that was killed still hangs in its driver."""
        self._supervisor.resume()
        self._look_again()
        self._hub.publish("incident", str(self.index), what="worker_resumed")
        log.info("worker.resumed", worker=self.index)

    async def unload(self) -> None:
        """Raises Conflict while a job runs, Unavailable when the runner does not obey."""
        if self._places:
            raise Conflict(
                f"worker {self.index} runs a job, which needs its model; drain the worker first, or wait",
                code="wrong_state",
            )
        try:
            async with asyncio.timeout(UNLOAD_TIMEOUT_S):
                await self._runner.unload()
        except TimeoutError:
            raise Unavailable(
                f"the runner of worker {self.index} did not put its models away within {UNLOAD_TIMEOUT_S:.0f} s",
                code="runner_silent",
            ) from None
        log.info("worker.unloaded", worker=self.index)

    def free_s(self, paces: Paces) -> tuple[float | None, ...]:
        """In how many seconds each of its places is free; 0: now; None: not known. Empty: it takes no jobs."""
        if not self.on_duty:
            return ()
        taken = [self._left_s(place, paces) for place in self._places.values() if not place.over]
        if any(place.alone and not place.over for place in self._places.values()):
            return (taken[0],) * self._most
        empty = 0.0 if self._phase is WorkerState.IDLE or paces.known else None
        return (*taken, *[empty] * (self._most - len(taken)))

    # What its attempts ask for.

    async def enter(self, job_id: JobId) -> None:
        while self._worn or not self._runner.ready:
            if not self.on_duty and not self._worn:
                raise NoRunner
            await self._change()
        self._in_runner.add(job_id)

    async def leave(self, job_id: JobId, error: GpuDaemonError | None) -> None:
        """A runner that the job broke does not get another one; what broke it is kept for the judgement."""
        if job_id not in self._in_runner:
            return
        if isinstance(error, DeviceLost):
            await self._runner.kill()
        if isinstance(error, RunnerCrashed | StalledJob | DeviceLost):
            self._supervisor.died_of(job_id, error.message)
        elif not self._runner.ready:
            self._supervisor.excuse()
        self._worn = self._worn or (error is not None and error.code == OUT_OF_MEMORY)
        if self._worn and self._in_runner == {job_id}:
            self._supervisor.excuse()
            await self._runner.kill()
            self._worn = False
        self._in_runner.discard(job_id)
        self._look_again()

    def over(self, job_id: JobId, *, duration_s: float | None) -> None:
        place = self._places[job_id]
        if place.over:
            return
        took_s = self._time.at(clock.monotonic(), load=self.load) - place.began_at
        place.over = True
        if duration_s is not None:
            self._supervisor.job_completed()
            self._source.measured(self.index, place.waiting.model, duration_s=duration_s, took_s=took_s)
        self._look_again()

    # Inside.

    async def _begin_duty(self) -> None:
        if not self.on_duty:
            self._move(WorkerState.IDLE if self.ready else WorkerState.RESTARTING)
            await self._duty.begins()

    async def _feed(self) -> None:
        """Take jobs until the runner is gone or the worker takes no jobs any more."""
        self._move(WorkerState.IDLE)
        died, ends = asyncio.create_task(self._runner.died()), asyncio.create_task(self._duty.ends())
        try:
            while self.on_duty and (self.ready or (self._runner.ready and self._in_runner)):
                if self._claim_failed:
                    self._claim_failed = False
                    await asyncio.wait({died, ends}, timeout=LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
                elif self.has_room:
                    await self._next_job(died, ends)
                else:
                    await self._room(died, ends)
        finally:
            died.cancel()
            ends.cancel()
            self._source.look_again()

    async def _room(self, *ends: "asyncio.Task[None]") -> None:
        """Returns when there may be room, or one of these has ended. Whether the runner moves gives no signal."""
        changed = asyncio.create_task(self._change())
        await asyncio.wait({changed, *ends}, timeout=LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()

    async def _next_job(self, *ends: "asyncio.Task[None]") -> None:
        if (at_hand := self._source.job_at_hand(self.index)) is not None:
            self._take(at_hand)
            return
        asking = asyncio.create_task(self._source.next_job(self.index))
        try:
            await asyncio.wait({asking, *ends}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not asking.done():
                asking.cancel()
        if asking.cancelled() or not asking.done():
            return
        if (waiting := asking.result()) is None:
            return
        if self.has_room:
            self._take(waiting)
        else:
            self._source.give_back(waiting)

    async def _runner_judged(self) -> None:
        """When the runner is gone: each job that it had has said what it knows of its end."""
        while self._in_runner and not self._runner.ready:
            await self._change()
        if not self._runner.ready:
            self._supervisor.gone()

    def _take(self, waiting: Waiting) -> None:
        began_at = self._time.at(clock.monotonic(), load=self.load)
        place = _Place(waiting, alone=runs_alone(waiting, self._preparer), began_at=began_at)
        self._places[waiting.id] = place
        context = about(job_id=waiting.id, worker=self.index, gpu=self._gpu, stage=place.stage)
        place.task = asyncio.create_task(self._do(place), name=f"job {waiting.id}", context=context)
        self._tasks.add(place.task)
        place.task.add_done_callback(self._tasks.discard)
        self._look_again()

    async def _do(self, place: _Place) -> None:
        waiting, claimed = place.waiting, False
        state: JobState | None = None
        try:
            if (found := await self._claim(waiting.id)) is not None:
                claim, job = found
                if job.cancel_requested_at is not None:
                    place.stop()
                log.info("job.started", job_id=job.id, worker=self.index, attempt=claim.attempt, model=waiting.model)
                place.attempt = Attempt(waiting, claim, job, place.cancel, self._means)
                state = await place.attempt.run()
            claimed = True
        except (Unavailable, OSError) as error:
            log.warning("job.claim_failed", job_id=waiting.id, error=str(error))
        except Exception:
            log.exception("job.broke_the_worker", job_id=waiting.id)
        finally:
            self._time.at(clock.monotonic(), load=self.load)
            del self._places[waiting.id]
            self._look_again()
        if place.attempt is not None:
            await self._source.ended(place.attempt.job, state, place.attempt.result)
        elif claimed:
            await self._preparer.discard(waiting.id)  # somebody else has moved it
            self._source.moved(waiting.id)
        else:
            self._claim_failed = True
            self._source.give_back(waiting)

    async def _claim(self, job_id: JobId) -> tuple[Claim, Job] | None:
        claiming = asyncio.ensure_future(self._jobs.claim(job_id, self.index))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await asyncio.shield(self._unclaim(job_id, claiming))
            raise

    async def _unclaim(self, job_id: JobId, claiming: "asyncio.Future[tuple[Claim, Job] | None]") -> None:
        """The daemon stops while it claims a job: the claim that may have been made is taken back."""
        try:
            async with asyncio.timeout(HAND_BACK_TIMEOUT_S):
                claimed = await claiming
                if claimed is not None:
                    await self._jobs.requeue(claimed[0], charge=False)
        except (TimeoutError, Unavailable, OSError) as error:
            log.error("job.not_handed_back", job_id=job_id, reason=str(error) or "the database does not answer")

    def _left_s(self, place: _Place, paces: Paces) -> float | None:
        pace = paces.of(self.index, place.waiting.model)
        if pace is None:
            return None
        progress = 0.0 if place.attempt is None else place.attempt.live.progress
        return (1 - progress / 100) * pace.expected_s(place.waiting.duration_s) * self.load

    def _look_again(self) -> None:
        self._changed.set()
        self._source.look_again()
        self._publish_state()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _move(self, phase: WorkerState) -> None:
        self._phase = phase
        self._publish_state()

    def _publish_state(self) -> None:
        if (state := self.state) is not self._published:
            self._published = state
            if state is WorkerState.QUARANTINED:
                self._means.metrics.quarantined(self.index)
            self._hub.publish("worker", str(self.index), state=state, error=self._supervisor.error)
            if (what := INCIDENTS.get(state)) is not None:
                self._hub.publish("incident", str(self.index), what=what)


def runs_alone(job: Waiting, preparer: Preparer) -> bool:
    """It was tried before, and will get as far as the runner."""
    return job.attempt > 0 and not preparer.has_failed(job.id)
