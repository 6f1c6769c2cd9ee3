"""One worker per device: takes a job, has it prepared, has its runner do it, records how it ended.

The worker is a task in the daemon; the runner is its child process. A crash, a hang or a kill of the runner costs the
job an attempt and the worker a restart of the child, and nobody else anything. A device on which one runner after the
other dies is quarantined: it takes no jobs until somebody resumes it.
"""

import asyncio
from collections.abc import Awaitable, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from gpu_daemon import clock
from gpu_daemon.catalogue.catalogue import Catalogue
from gpu_daemon.errors import (
    Conflict,
    DeviceLost,
    DiskFull,
    GpuDaemonError,
    JobCancelled,
    JobError,
    RunnerCrashed,
    Unavailable,
)
from gpu_daemon.events import EventHub
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.sampler import UsageSampler
from gpu_daemon.jobs.model import Claim, Job, JobId
from gpu_daemon.jobs.state import JobState, Stage
from gpu_daemon.logs import log
from gpu_daemon.runner.process import Runner
from gpu_daemon.runner.protocol import Run
from gpu_daemon.scheduling.duty import Duty
from gpu_daemon.scheduling.estimate import Paces
from gpu_daemon.scheduling.limits import StalledJob, run_within_limits
from gpu_daemon.scheduling.preparation import Prepared, Preparer
from gpu_daemon.scheduling.queue import Waiting
from gpu_daemon.scheduling.recording import Recorder, result_of
from gpu_daemon.scheduling.spool import spool
from gpu_daemon.scheduling.status import Live, WorkerState, WorkerStatus
from gpu_daemon.scheduling.supervisor import Supervisor
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore
from gpu_daemon.transcript.model import Segment

HAND_BACK_TIMEOUT_S = 5.0
UNLOAD_TIMEOUT_S = 10.0
OUT_OF_MEMORY = "gpu_oom"
DISK_FULL_PAUSE_S = 20.0
STAGE_STORED_AFTER_S = 1.0
"""One that is over sooner is not worth a commit."""

STAGE_SPAN_PERCENT: dict[Stage, tuple[float, float]] = {
    Stage.PREPARING: (0, 5),
    Stage.LOADING: (5, 10),
    Stage.TRANSCRIBING: (10, 98),
    Stage.MERGING: (98, 100),
}


class JobSource(Protocol):
    """Where a worker's jobs come from, and whom it tells how they went: the scheduler."""

    async def next_job(self, worker_index: int) -> Waiting: ...

    def give_back(self, job: Waiting) -> None: ...

    def measured(self, worker_index: int, model: str, *, duration_s: float, took_s: float) -> None:
        """So long a job took whose audio lasts so long."""

    async def ended(self, job: Job, state: JobState | None) -> None:
        """An attempt is over and recorded. `state`: None when the job was no longer this worker's to move."""


@dataclass(slots=True)
class _Current:
    job: Job
    claim: Claim
    live: Live
    cancel: asyncio.Event = field(default_factory=asyncio.Event)


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
        source: JobSource,
        hub: EventHub,
    ) -> None:
        self.index = index
        self.device = device
        self._runner = runner
        self._settings = settings
        self._jobs = jobs
        self._catalogue = catalogue
        self._preparer = preparer
        self._source = source
        self._hub = hub
        self._current: _Current | None = None
        self._claiming: JobId | None = None
        self._cancel_claimed = False
        self._duty = Duty()
        self._phase = WorkerState.STOPPED  # what it would be on duty
        self._published = WorkerState.STOPPED
        self._supervisor = Supervisor(index, device, runner, self._duty, self._move)
        self._recorder = Recorder()

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
            return WorkerState.DRAINING if self._has_job else WorkerState.DRAINED
        return self._phase

    @property
    def on_duty(self) -> bool:
        return self._duty.is_on

    @property
    def loaded(self) -> Set[str]:
        """Names of the models that its runner holds."""
        return self._runner.loaded.keys()

    @property
    def job_id(self) -> JobId | None:
        return None if self._current is None else self._current.job.id

    @property
    def job(self) -> Job | None:
        """As it was claimed."""
        return None if self._current is None else self._current.job

    @property
    def client(self) -> str | None:
        return None if self._current is None else self._current.job.client

    @property
    def live(self) -> Live | None:
        return None if self._current is None else self._current.live

    def status(self) -> WorkerStatus:
        current, live = self._current, self.live
        return WorkerStatus(
            index=self.index,
            device=self.device,
            state=self.state,
            job_id=self.job_id,
            model=None if current is None else current.job.options.model,
            stage=None if live is None else live.stage,
            progress=None if live is None else live.progress,
            loaded=dict(self._runner.loaded),
            pid=self._runner.pid,
            answered_s_ago=self._runner.answered_s_ago,
            restarts=self._supervisor.restarts,
            error=self._supervisor.error,
        )

    async def run(self) -> None:
        """Until cancelled; a job under way goes back to the queue then, uncharged."""
        try:
            while True:
                await self._begin_duty()
                await self._supervisor.start()
                while self.ready and self.on_duty and (job := await self._next_job()) is not None:
                    await self._take(job)
        finally:
            self._move(WorkerState.STOPPED)
            self._supervisor.excuse()
            await self._runner.stop()

    def cancel(self, job_id: JobId) -> None:
        """Stop this job if it is the one that runs; the GPU is free within seconds."""
        if self._claiming == job_id:
            self._cancel_claimed = True
        elif self._current is not None and self._current.job.id == job_id:
            self._current.cancel.set()

    def drain(self) -> None:
        """Finish the job that runs and take no other; the runner and its models stay."""
        self._duty.drain()
        self._publish_state()
        log.info("worker.drained", worker=self.index, job_id=self.job_id)

    def resume(self) -> None:
        """Take jobs again. Raises Conflict while a runner that was killed still hangs in its driver."""
        self._supervisor.resume()
        self._publish_state()
        log.info("worker.resumed", worker=self.index)

    async def unload(self) -> None:
        """Raises Conflict while a job runs, Unavailable when the runner does not obey."""
        if self._has_job:
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

    def free_in_s(self, paces: Paces) -> float | None:
        """0: now. None: not known, or it takes no jobs."""
        if not self.on_duty:
            return None
        if self._current is None:
            return 0.0 if self._phase is WorkerState.IDLE or paces.known else None
        job, left = self._current.job, 1 - self._current.live.progress / 100
        pace = paces.of(self.index, job.options.model)
        return None if pace is None else left * pace.expected_s(job.duration_s)

    @property
    def _has_job(self) -> bool:
        return self._current is not None or self._claiming is not None

    async def _begin_duty(self) -> None:
        if not self.on_duty:
            self._move(WorkerState.IDLE if self.ready else WorkerState.RESTARTING)
            await self._duty.begins()

    async def _next_job(self) -> Waiting | None:
        """None: the runner died while idle, or the worker takes no jobs any more."""
        self._move(WorkerState.IDLE)
        job = asyncio.create_task(self._source.next_job(self.index))
        others = {asyncio.create_task(self._runner.died()), asyncio.create_task(self._duty.ends())}
        try:
            await asyncio.wait({job, *others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for other in others:
                other.cancel()
            if not job.done():
                job.cancel()
        if job.cancelled() or not job.done():
            if self.on_duty:
                self._supervisor.died_idle()
            return None
        if not self.ready or not self.on_duty:
            self._source.give_back(job.result())
            return None
        return job.result()

    async def _take(self, waiting: Waiting) -> None:
        current = await self._claim(waiting)
        if current is None:
            return
        job = current.job
        log.info(
            "job.started", job_id=job.id, worker=self.index, attempt=current.claim.attempt, model=job.options.model
        )
        try:
            state = await self._attempt(current, waiting)
        except asyncio.CancelledError:
            await asyncio.shield(self._hand_back(current))
            raise
        except GpuDaemonError as error:
            await self._spare_the_next(current, error)
            state = await self._settle(current, error)
        except Exception as error:
            log.exception("job.broke_the_worker", job_id=job.id)
            state = await self._settle(
                current, JobError(f"a bug in the daemon: {type(error).__name__}", code="internal_error")
            )
        finally:
            self._current = None
        if state is None:
            log.warning("job.stale_lease", job_id=job.id, attempt=current.claim.attempt)
        await self._source.ended(job, state)

    async def _claim(self, waiting: Waiting) -> _Current | None:
        """None: somebody else moved the job, or the database is away and the job waits again."""
        self._claiming, self._cancel_claimed = waiting.id, False
        claiming = asyncio.ensure_future(self._jobs.claim(waiting.id, self.index))
        try:
            claimed = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await asyncio.shield(self._unclaim(waiting.id, claiming))
            raise
        except (Unavailable, OSError) as error:
            log.warning("job.claim_failed", job_id=waiting.id, error=str(error))
            await asyncio.sleep(1)
            self._source.give_back(waiting)
            return None
        except Exception:
            self._source.give_back(waiting)  # the loop above says what it was, and waits before it goes on
            raise
        finally:
            self._claiming = None
        if claimed is None:
            await self._preparer.discard(waiting.id)
            return None
        claim, job = claimed
        live = Live(
            stage=Stage.PREPARING,
            progress=0.0,
            worker_index=self.index,
            attempt=claim.attempt,
            stage_since_s=clock.monotonic(),
        )
        current = self._current = _Current(job=job, claim=claim, live=live)
        if self._cancel_claimed or job.cancel_requested_at is not None:
            current.cancel.set()
        self._move(WorkerState.BUSY)
        self._publish(current)
        return current

    async def _unclaim(self, job_id: JobId, claiming: "asyncio.Future[tuple[Claim, Job] | None]") -> None:
        """The daemon stops while it claims a job: the claim that may have been made is taken back."""
        try:
            async with asyncio.timeout(HAND_BACK_TIMEOUT_S):
                claimed = await claiming
                if claimed is not None:
                    await self._jobs.requeue(claimed[0], charge=False)
        except (TimeoutError, Unavailable, OSError) as error:
            log.error("job.not_handed_back", job_id=job_id, reason=str(error) or "the database does not answer")

    async def _attempt(self, current: _Current, waiting: Waiting) -> JobState | None:
        """One attempt; when it succeeds, its state as recorded."""
        job, began = current.job, clock.monotonic()
        prepared = await self._until_cancelled(current, self._preparer.prepared(waiting))
        spec = self._catalogue.spec(job.options.model)
        if spec is None:
            raise JobError(f"the model {job.options.model} is no longer available", code="model_unavailable")
        request = Run(
            job_id=job.id,
            model=spec,
            audio_path=prepared.audio.path,
            channels=prepared.audio.channels,
            skip_samples=prepared.audio.skip_samples,
            options=job.options,
        )
        duration_s = prepared.audio.duration_s * prepared.audio.channels  # each is the work of a file
        async with UsageSampler(self.device) as usage:
            completed = await run_within_limits(
                self._runner,
                request,
                partial(self._advance, current),
                partial(self._heard, current),
                cancelled=current.cancel,
                limit_s=self._settings.job_timeout_for_s(duration_s),
                stall_s=self._settings.stall_timeout_s,
            )
        reach(FaultPoint.RESULT_RECEIVED)
        self._supervisor.job_completed()
        self._source.measured(self.index, job.options.model, duration_s=duration_s, took_s=clock.monotonic() - began)
        timings = {**prepared.timings, **completed.done.timings}
        result = result_of(completed, job, timings, usage.summary())
        recorded = await self._recorder.record(
            job.id,
            lambda: self._jobs.complete(current.claim, result, timings, model_sha256=spec.sha256),
            keep=partial(spool, self._settings.jobs_dir / job.id, current.claim, result, timings, spec.sha256),
        )
        return JobState.COMPLETED if recorded else None

    async def _spare_the_next(self, current: _Current, error: GpuDaemonError) -> None:
        """A runner that the job broke does not get another one; what broke it is kept for the judgement."""
        if isinstance(error, DeviceLost) or error.code == OUT_OF_MEMORY:
            await self._runner.kill()
        if isinstance(error, RunnerCrashed | StalledJob | DeviceLost):
            self._supervisor.died_of(current.job.id, error.message)
        elif not self._runner.ready:
            self._supervisor.excuse()

    async def _settle(self, current: _Current, error: GpuDaemonError) -> JobState | None:
        """Record an attempt that did not succeed; the state the job is in then."""
        job, claim = current.job, current.claim
        if isinstance(error, JobCancelled) or current.cancel.is_set():
            reach(FaultPoint.CANCELLED_STOPPED)
            return JobState.CANCELLED if await self._recorder.record(job.id, lambda: self._jobs.cancel(claim)) else None
        if error.code == DiskFull.code:
            return await self._wait_for_room(current, error)
        if isinstance(error, JobError) and error.retryable and claim.attempt < self._settings.max_attempts:
            log.warning("job.retried", job_id=job.id, attempt=claim.attempt, code=error.code, error=error.message)
            return (
                JobState.QUEUED
                if await self._recorder.record(job.id, lambda: self._jobs.requeue(claim, charge=True))
                else None
            )
        log.error("job.failed", job_id=job.id, attempt=claim.attempt, code=error.code, error=error.message)
        return (
            JobState.FAILED
            if await self._recorder.record(job.id, lambda: self._jobs.fail(claim, error.code, error.message))
            else None
        )

    async def _wait_for_room(self, current: _Current, error: GpuDaemonError) -> JobState | None:
        """No job's fault, and no other would be decoded either: it is tried again later, uncharged."""
        log.error("job.waits_for_disk", job_id=current.job.id, error=error.message, retry_in_s=DISK_FULL_PAUSE_S)
        if not await self._recorder.record(current.job.id, lambda: self._jobs.requeue(current.claim, charge=False)):
            return None
        await asyncio.sleep(DISK_FULL_PAUSE_S)
        return JobState.QUEUED

    async def _hand_back(self, current: _Current) -> None:
        """The daemon stops: the job goes back to the queue, uncharged."""
        await self._preparer.discard(current.job.id)
        await self._runner.kill()
        try:
            async with asyncio.timeout(HAND_BACK_TIMEOUT_S):
                await self._recorder.record(current.job.id, lambda: self._jobs.requeue(current.claim, charge=False))
        except TimeoutError:
            log.error("job.not_handed_back", job_id=current.job.id, reason="the database does not answer")

    async def _until_cancelled(self, current: _Current, prepared: Awaitable[Prepared]) -> Prepared:
        """The decoded audio. Raises JobCancelled if the job is cancelled first."""
        decoding = asyncio.ensure_future(prepared)
        cancelled = asyncio.ensure_future(current.cancel.wait())
        try:
            await asyncio.wait({decoding, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()
            if not decoding.done() or current.cancel.is_set():
                decoding.cancel()
                await asyncio.wait({decoding})
        if current.cancel.is_set():
            raise JobCancelled("the job was cancelled")
        return decoding.result()

    def _advance(self, current: _Current, stage: Stage, fraction: float) -> None:
        low, high = STAGE_SPAN_PERCENT[stage]
        progress = max(current.live.progress, round(low + (high - low) * min(1.0, max(0.0, fraction)), 1))
        changed_stage = stage is not current.live.stage
        if not changed_stage and progress == current.live.progress:
            return
        since_s = clock.monotonic() if changed_stage else current.live.stage_since_s
        current.live = replace(current.live, stage=stage, progress=progress, stage_since_s=since_s)
        self._publish(current)
        if changed_stage:
            self._recorder.in_background(self._store_stage(current))

    def _heard(self, current: _Current, first: int, segments: tuple[Segment, ...]) -> None:
        current.live = replace(current.live, segments=current.live.segments[:first] + segments)
        self._hub.publish(
            "segments",
            current.job.id,
            attempt=current.claim.attempt,
            first=first,
            segments=[segment.model_dump(mode="json") for segment in segments],
        )

    async def _store_stage(self, current: _Current) -> bool:
        """The row need not be fresher than this: who asks gets `live`; after a crash the job starts over anyway."""
        live = current.live
        await asyncio.sleep(STAGE_STORED_AFTER_S)
        if current is not self._current or current.live.stage is not live.stage:
            return False
        return await self._jobs.progress(current.claim, live.stage, live.progress)

    def _move(self, phase: WorkerState) -> None:
        self._phase = phase
        self._publish_state()

    def _publish_state(self) -> None:
        if (state := self.state) is not self._published:
            self._published = state
            self._hub.publish("worker", str(self.index), state=state, error=self._supervisor.error)

    def _publish(self, current: _Current) -> None:
        live = current.live
        self._hub.publish(
            "job",
            current.job.id,
            state=JobState.PROCESSING,
            stage=live.stage,
            progress=live.progress,
            worker=self.index,
        )
