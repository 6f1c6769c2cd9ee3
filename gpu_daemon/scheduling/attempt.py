"""One attempt at one job: its audio is prepared, a runner does it, how it ended is recorded."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from gpu_daemon import clock
from gpu_daemon.catalogue.catalogue import Catalogue
from gpu_daemon.engine.base import NoPipeline, SpeakerRequest
from gpu_daemon.errors import DiskFull, GpuDaemonError, JobCancelled, JobError, NoRoom
from gpu_daemon.events import EventHub
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.sampler import UsageSampler
from gpu_daemon.gpu.telemetry import Telemetry
from gpu_daemon.jobs.model import Claim, Job, JobId, JobOptions, Task
from gpu_daemon.jobs.state import JobState, Stage
from gpu_daemon.logs import log
from gpu_daemon.metrics import Metrics
from gpu_daemon.runner.process import Completed, Runner
from gpu_daemon.runner.protocol import Run
from gpu_daemon.scheduling.limits import run_within_limits
from gpu_daemon.scheduling.pipeline_needs import PipelineNeeds
from gpu_daemon.scheduling.preparation import PREPARED_PERCENT, Preparer
from gpu_daemon.scheduling.queue import Waiting
from gpu_daemon.scheduling.recording import Recorder, result_of
from gpu_daemon.scheduling.reuse import source_of
from gpu_daemon.scheduling.spool import spool
from gpu_daemon.scheduling.status import Live
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore
from gpu_daemon.transcript.model import Segment
from gpu_daemon.until import until

HAND_BACK_TIMEOUT_S = 5.0
DISK_FULL_PAUSE_S = 20.0
STAGE_STORED_AFTER_S = 1.0
"""One that is over sooner is not worth a commit."""

DIARIZING_FROM_PERCENT = 70
"""Its beginning is done by then, as it goes on beside the transcription."""


class NoRunner(Exception):
    """There is none to do the job, and none is to be started."""


class Turn(Protocol):
    """An attempt's way into its worker's runner."""

    async def enter(self, job_id: JobId) -> None:
        """Returns when the runner takes the job. Raises NoRunner."""

    async def leave(self, job_id: JobId, error: GpuDaemonError | None) -> None:
        """The runner is through with it, or it with the runner."""

    def over(self, job_id: JobId, *, duration_s: float | None) -> None:
        """Another job may come in its place. `duration_s`: of the audio that was done; None: it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What the attempts of one worker work with."""

    worker_index: int
    device: Device
    runner: Runner
    turn: Turn
    settings: Settings
    jobs: JobStore
    catalogue: Catalogue
    preparer: Preparer
    pipelines: PipelineNeeds
    recorder: Recorder
    hub: EventHub
    telemetry: Telemetry
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class _Done:
    completed: Completed
    duration_s: float
    timings: dict[str, float]
    source: str | None
    gpu: dict[str, float | int | None] | None


class Attempt:
    def __init__(self, waiting: Waiting, claim: Claim, job: Job, cancel: "asyncio.Future[None]", means: Means) -> None:
        """`cancel` is done when the job is to stop."""
        self.job = job
        self.live = Live(
            stage=Stage.PREPARING,
            span=span_percent(Stage.PREPARING, job.options),
            progress=means.preparer.percent(job.id),
            worker_index=means.worker_index,
            attempt=claim.attempt,
            stage_since_s=clock.monotonic(),
            moved_s=clock.monotonic(),
        )
        self.result: bytes | None = None
        """Once it is recorded."""
        self._waiting = waiting
        self._claim = claim
        self._claimed_s = clock.monotonic()
        self._cancel = cancel
        self._means = means
        self._storing_stage: asyncio.TimerHandle | None = None

    async def run(self) -> JobState | None:
        """How the job stands afterwards, as recorded; None: it was no longer this worker's to move.

        Cancelled when the daemon stops: the job goes back to the queue then, uncharged.
        """
        self._publish()
        if self._claim.attempt == 1 and self.job.queue_time_s is not None:
            self._means.metrics.job_waited(self.job.queue_time_s)
        try:
            state = await self._outcome()
        except asyncio.CancelledError:
            await asyncio.shield(self._hand_back())
            raise
        except Exception as error:
            log.exception("job.broke_the_worker", job_id=self.job.id)
            bug = JobError(f"a bug in the daemon: {type(error).__name__}", code="internal_error")
            state = await self._settle(bug)
        finally:
            if self._storing_stage is not None:
                self._storing_stage.cancel()
        if state is None:
            log.warning("job.stale_lease", job_id=self.job.id, attempt=self._claim.attempt)
        return state

    async def _outcome(self) -> JobState | None:
        try:
            done = await self._work()
        except NoRunner:
            return await self._give_back()
        except GpuDaemonError as error:
            return await self._settle(error)
        self._means.turn.over(self.job.id, duration_s=done.duration_s)
        return await self._complete(done)

    async def _work(self) -> _Done:
        """All but the record."""
        job, means = self.job, self._means
        async with self._until_cancelled():
            prepared = await means.preparer.prepared(self._waiting)
        spec = means.catalogue.spec(job.options.model)
        if spec is None:
            raise JobError(f"the model {job.options.model} is no longer available", code="model_unavailable")
        speakers = None
        if job.options.diarize:
            async with self._until_cancelled():
                speakers = await self._speakers()
        request = Run(
            job_id=job.id,
            model=spec,
            audio_path=prepared.audio.path,
            first_byte=prepared.audio.first_byte,
            channels=prepared.audio.channels,
            skip_samples=prepared.audio.skip_samples,
            options=job.options,
            speakers=speakers,
        )
        duration_s = prepared.audio.duration_s * prepared.audio.channels  # each is the work of a file
        async with UsageSampler(means.telemetry, means.worker_index) as usage:
            completed = await self._run(request, duration_s)
        reach(FaultPoint.RESULT_RECEIVED)
        pipeline = request.speakers.pipeline if isinstance(request.speakers, SpeakerRequest) else None
        return _Done(
            completed=completed,
            duration_s=duration_s,
            timings={**prepared.timings, **completed.done.timings},
            source=None if completed.done.without_speakers else source_of(job.options, spec, pipeline),
            gpu=usage.summary(),
        )

    @property
    def _is_last(self) -> bool:
        return self._claim.attempt >= self._means.settings.max_attempts

    async def _speakers(self) -> SpeakerRequest | NoPipeline:
        """Raises JobError when without a pipeline there is nothing to do."""
        options, pipelines = self.job.options, self._means.pipelines
        failure = pipelines.failure(self.job.id)
        if failure is not None and options.task is not Task.DIARIZE and self._is_last:
            # What took a runner away may lie in the search for speakers: the transcript is worth a try without it.
            log.warning("job.without_speakers", job_id=self.job.id, code=failure.code, error=failure.message)
            message = f"nobody looked for them in the last attempt, as the one before it ended so: {failure.message}"
            return NoPipeline(name=pipelines.name, code=failure.code, message=message)
        try:
            pipeline = await pipelines.spec(self.job.id)
            voices = await self._means.preparer.voices(self.job)
        except JobError as error:
            if options.task is Task.DIARIZE:
                raise
            log.warning("job.without_speakers", job_id=self.job.id, code=error.code, error=error.message)
            return NoPipeline(name=pipelines.name, code=error.code, message=error.message)
        return SpeakerRequest(
            pipeline=pipeline,
            num_speakers=options.num_speakers,
            min_speakers=options.min_speakers,
            max_speakers=options.max_speakers,
            known_voices=voices,
        )

    async def _run(self, request: Run, duration_s: float) -> Completed:
        means, error = self._means, None
        try:
            async with self._until_cancelled():
                await means.turn.enter(request.job_id)
            return await run_within_limits(
                means.runner,
                request,
                self._advance,
                self._hear,
                cancelled=self._cancel,
                limit_s=means.settings.job_timeout_for_s(duration_s),
                stall_s=means.settings.stall_timeout_s,
            )
        except GpuDaemonError as caught:
            error = caught
            if isinstance(error, JobError) and error.retryable and isinstance(request.speakers, SpeakerRequest):
                means.pipelines.fail(request.job_id, error)
            raise
        finally:
            await means.turn.leave(request.job_id, error)

    async def _complete(self, done: _Done) -> JobState | None:
        job, means, claim = self.job, self._means, self._claim
        took_s = claim.before_s + clock.monotonic() - self._claimed_s
        result = result_of(done.completed, job, took_s, done.timings, done.gpu)
        recorded = await means.recorder.record(
            job.id,
            lambda: means.jobs.complete(claim, result, done.timings, model_sha256=done.source),
            keep=partial(spool, means.settings.jobs_dir / job.id, claim, result, done.timings, done.source),
        )
        if not recorded:
            return None
        self.result = result
        means.metrics.job_completed(
            job.options.model,
            audio_s=done.duration_s,
            took_s=clock.monotonic() - self._claimed_s,
            timings=done.timings,
        )
        return JobState.COMPLETED

    async def _settle(self, error: GpuDaemonError) -> JobState | None:
        """Record an attempt that did not succeed; the state the job is in then."""
        job, claim, means = self.job, self._claim, self._means
        if error.code == DiskFull.code and not self._cancel.done():
            return await self._wait_for_room(error)
        if error.code == NoRoom.code:
            means.hub.publish("incident", str(means.worker_index), what="out_of_memory")
        means.turn.over(job.id, duration_s=None)
        if isinstance(error, JobCancelled) or self._cancel.done():
            reach(FaultPoint.CANCELLED_STOPPED)
            cancelled = await means.recorder.record(job.id, lambda: means.jobs.cancel(claim))
            return JobState.CANCELLED if cancelled else None
        if isinstance(error, JobError) and error.retryable and not self._is_last:
            log.warning("job.retried", job_id=job.id, attempt=claim.attempt, code=error.code, error=error.message)
            means.metrics.job_retried()
            requeued = await means.recorder.record(job.id, lambda: means.jobs.requeue(claim, charge=True))
            return JobState.QUEUED if requeued else None
        log.error("job.failed", job_id=job.id, attempt=claim.attempt, code=error.code, error=error.message)
        failed = await means.recorder.record(job.id, lambda: means.jobs.fail(claim, error.code, error.message))
        if not failed:
            return None
        means.hub.publish("incident", job.id, what="job_failed", code=error.code, client=job.client)
        return JobState.FAILED

    async def _wait_for_room(self, error: GpuDaemonError) -> JobState | None:
        """No job's fault, and no other would be decoded either: it is tried again later, uncharged."""
        self._means.hub.publish("incident", "disk", what="disk_low")
        log.error("job.waits_for_disk", job_id=self.job.id, error=error.message, retry_in_s=DISK_FULL_PAUSE_S)
        state = await self._give_back()
        await asyncio.sleep(DISK_FULL_PAUSE_S)
        return state

    async def _give_back(self) -> JobState | None:
        """To the queue, uncharged."""
        jobs, claim = self._means.jobs, self._claim
        if not await self._means.recorder.record(self.job.id, lambda: jobs.requeue(claim, charge=False)):
            return None
        self.job = replace(self.job, attempt=self.job.attempt - 1)
        return JobState.QUEUED

    async def _hand_back(self) -> None:
        """The daemon stops."""
        await self._means.preparer.discard(self.job.id)
        await self._means.runner.kill()
        try:
            async with asyncio.timeout(HAND_BACK_TIMEOUT_S):
                await self._give_back()
        except TimeoutError:
            log.error("job.not_handed_back", job_id=self.job.id, reason="the database does not answer")

    def _until_cancelled(self) -> AbstractAsyncContextManager[None]:
        return until(self._cancel, lambda: JobCancelled("the job was cancelled"))

    def _advance(self, stage: Stage, fraction: float) -> None:
        low, high = span_percent(stage, self.job.options)
        progress = max(self.live.progress, round(low + (high - low) * min(1.0, max(0.0, fraction)), 1))
        changed_stage = stage is not self.live.stage
        if not changed_stage and progress == self.live.progress:
            return
        now_s = clock.monotonic()
        since_s = now_s if changed_stage else self.live.stage_since_s
        self.live = replace(
            self.live, stage=stage, span=(low, high), progress=progress, stage_since_s=since_s, moved_s=now_s
        )
        self._publish()
        if changed_stage:
            if self._storing_stage is not None:
                self._storing_stage.cancel()
            self._storing_stage = asyncio.get_running_loop().call_later(STAGE_STORED_AFTER_S, self._store_stage)

    def _hear(self, first: int, segments: tuple[Segment, ...]) -> None:
        self.live = replace(self.live, segments=self.live.segments[:first] + segments)
        self._means.hub.publish(
            "segments",
            self.job.id,
            attempt=self._claim.attempt,
            first=first,
            segments=[segment.model_dump(mode="json") for segment in segments],
        )

    def _store_stage(self) -> None:
        """The row need not be fresher than this: who asks gets `live`; after a crash the job starts over anyway."""
        stored = self._means.jobs.progress(self._claim, self.live.stage, self.live.progress)
        self._means.recorder.in_background(stored)

    def _publish(self) -> None:
        live = self.live
        self._means.hub.publish(
            "job",
            self.job.id,
            state=JobState.PROCESSING,
            stage=live.stage,
            progress=live.progress,
            worker=live.worker_index,
        )


def span_percent(stage: Stage, options: JobOptions) -> tuple[float, float]:
    """The part of the whole job that a stage of it is."""
    match stage:
        case Stage.FETCHING | Stage.PREPARING:
            return 0, PREPARED_PERCENT
        case Stage.LOADING:
            return PREPARED_PERCENT, 10
        case Stage.TRANSCRIBING:
            return 10, DIARIZING_FROM_PERCENT if options.diarize else 98
        case Stage.DIARIZING:
            return 10 if options.task is Task.DIARIZE else DIARIZING_FROM_PERCENT, 98
        case Stage.MERGING:
            return 98, 100
