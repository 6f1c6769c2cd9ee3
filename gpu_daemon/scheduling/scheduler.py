"""Owns the queue and the workers: submit, cancel, wait, drain."""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import Literal

from gpu_daemon import clock
from gpu_daemon.callbacks.outbox import Outbox
from gpu_daemon.catalogue.catalogue import Catalogue, ModelState
from gpu_daemon.errors import Conflict, NotFound, OutcomeUnknown, Unavailable
from gpu_daemon.events import EventHub
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.gpu.detect import Device
from gpu_daemon.jobs.model import IdempotencyKey, Job, JobId, NewJob
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.jobs.state import TERMINAL, JobState
from gpu_daemon.logs import log
from gpu_daemon.runner.process import Runner
from gpu_daemon.scheduling.admission import check_disk, check_queue, check_size
from gpu_daemon.scheduling.preparation import Preparer
from gpu_daemon.scheduling.queue import JobQueue, Waiting
from gpu_daemon.scheduling.recovery import recover, remove_files
from gpu_daemon.scheduling.retention import Retention
from gpu_daemon.scheduling.reuse import reused_result
from gpu_daemon.scheduling.status import Live, WorkerState, WorkerStatus
from gpu_daemon.scheduling.worker import Worker
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import JobStore

SPEED_MEMORY = 0.7
"""Weight of the past in the running mean of speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    status: Literal["starting", "ready", "draining", "error"]
    reason: str | None


class Scheduler:
    def __init__(
        self,
        settings: Settings,
        devices: tuple[Device, ...],
        *,
        jobs: JobStore,
        catalogue: Catalogue,
        outbox: Outbox,
        hub: EventHub,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._catalogue = catalogue
        self._outbox = outbox
        self._hub = hub
        self._queue = JobQueue()
        self._changed = asyncio.Event()
        self._accepting = False
        self._draining = False
        self._speed: float | None = None  # seconds of audio per second of one worker
        self._preparer = Preparer(
            settings.jobs_dir, max_duration_s=settings.max_duration_s, at_once=max(2, len(devices))
        )
        self._retention = Retention(settings, jobs)
        self._workers = [
            Worker(
                index,
                device,
                Runner(device, model_idle_s=settings.model_idle_s, vram_reserve_mb=settings.vram_reserve_mb),
                settings=settings,
                jobs=jobs,
                catalogue=catalogue,
                preparer=self._preparer,
                source=self,
                hub=hub,
            )
            for index, device in enumerate(devices)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._settling: set[asyncio.Task[None]] = set()
        self._rng = random.Random()  # noqa: S311 - jitter
        self._waiting_for_end: dict[JobId, set[asyncio.Event]] = {}

    # Life.

    async def start(self) -> None:
        for job in await recover(self._jobs, self._settings):
            self._queue.push(Waiting.of(job))
        self._outbox.wake()  # recovery may have ended some
        self._accepting = True
        self._look_ahead()
        self._tasks = [asyncio.create_task(worker.run(), name=f"worker {worker.index}") for worker in self._workers]
        self._tasks.append(asyncio.create_task(self._follow_models(), name="follow models"))
        self._tasks.append(asyncio.create_task(self._retention.run(), name="retention"))

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new work and wait for what runs. False: some still runs."""
        self._accepting, self._draining = False, True
        deadline = clock.monotonic() + timeout_s
        with self._hub.listen() as events:
            while self.running_ids():
                left_s = deadline - clock.monotonic()
                if left_s <= 0:
                    return False
                try:
                    async with asyncio.timeout(left_s):
                        await events.next()
                except TimeoutError:
                    return False
        return True

    async def stop(self) -> None:
        """Jobs that still run go back to the queue, uncharged."""
        self._accepting, self._draining = False, True
        tasks, self._tasks = [*self._tasks, *self._settling], []
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("scheduler.task_failed", error=repr(outcome))
        await self._preparer.stop()

    # What the API asks for.

    def admit(self, *, size_bytes: int | None) -> None:
        """May another job enter? Asked before its body is read. Raises Unavailable, DiskFull, TooLarge."""
        if self._draining:
            raise Unavailable("the daemon is stopping and takes no new jobs", retry_after_s=30, code="draining")
        if not self._accepting:
            raise Unavailable("the daemon is starting; try again in a moment", retry_after_s=5, code="starting")
        check_size(self._settings, size_bytes)
        check_queue(self._settings, len(self._queue), self._wait_behind(len(self._queue)))
        check_disk(self._settings, size_bytes)

    async def submit(
        self, new: NewJob, idempotency: IdempotencyKey | None = None, *, reuse_result: bool = False
    ) -> Job:
        """Its files are synced already. When this returns the job cannot be lost; it has another id than `new` when the
        client's key has made one before. Raises Conflict, Unavailable."""
        if not self._accepting:
            raise Unavailable("the daemon is stopping and takes no new jobs", retry_after_s=30, code="draining")
        try:
            job = await self._jobs.insert(new, idempotency)
        except OutcomeUnknown:
            settling = asyncio.create_task(self._settle(new.id), name=f"settle {new.id}")
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
            raise
        if job.id != new.id:
            return job
        log.info("job.queued", job_id=job.id, model=job.options.model, duration_s=job.duration_s, client=job.client)
        if reuse_result and self._settings.reuse_results and (done := await self._reused(job)) is not None:
            return done
        self._enter(job)
        return job

    async def cancel(self, job_id: JobId) -> Job:
        """The job as it is once it has stopped. Raises NotFound, Conflict when it had ended already."""
        if self._queue.remove(job_id) is not None:
            await self._preparer.discard(job_id)
        reach(FaultPoint.CANCELLING_QUEUED)
        if not await self._jobs.cancel_queued(job_id):
            if not await self._jobs.request_cancel(job_id):
                job = await self._jobs.get(job_id)
                if job is None:
                    raise NotFound(f"there is no job {job_id}")
                raise Conflict(f"the job is already {job.state}", code="wrong_state")
            reach(FaultPoint.CANCEL_NOTED)
            for worker in self._workers:
                await worker.cancel(job_id)
            return await self.wait(job_id, timeout_s=30)
        reach(FaultPoint.QUEUED_CANCELLED)
        await self._announce_end(job_id, JobState.CANCELLED)
        job = await self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        return job

    async def delete(self, job_id: JobId) -> None:
        """Row, result and files; cancelled first if it has not ended. Raises NotFound."""
        with contextlib.suppress(Conflict):
            await self.cancel(job_id)
        if not await self._jobs.delete(job_id):
            raise NotFound(f"there is no job {job_id}")
        reach(FaultPoint.DELETED)
        await remove_files(self._settings.jobs_dir, job_id)

    async def wait(self, job_id: JobId, timeout_s: float | None) -> Job:
        """The job when it has ended, or as it is when `timeout_s` is over. Raises NotFound."""
        ended = asyncio.Event()
        self._waiting_for_end.setdefault(job_id, set()).add(ended)
        try:
            job = await self._jobs.get(job_id)
            if job is not None and job.state not in TERMINAL:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await ended.wait()
                job = await self._jobs.get(job_id)
        finally:
            waiting = self._waiting_for_end.get(job_id, set())
            waiting.discard(ended)
            if not waiting:
                self._waiting_for_end.pop(job_id, None)
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        return job

    def position(self, job_id: JobId) -> int | None:
        return self._queue.position(job_id)

    def estimated_wait_s(self, job_id: JobId) -> float | None:
        """None: not waiting, or nothing measured yet."""
        position = self._queue.position(job_id)
        return None if position is None else self._wait_behind(position)

    def live(self, job_id: JobId) -> Live | None:
        return next((worker.live for worker in self._workers if worker.job_id == job_id), None)

    def queued_ids(self) -> list[JobId]:
        return [job.id for job in self._queue]

    def running_ids(self) -> list[JobId]:
        return [worker.job_id for worker in self._workers if worker.job_id is not None]

    def client_of(self, job_id: JobId) -> str | None:
        """Of a job that waits or runs."""
        waiting = self._queue.get(job_id)
        if waiting is not None:
            return waiting.client
        return next((worker.client for worker in self._workers if worker.job_id == job_id), None)

    def workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(worker.status() for worker in self._workers)

    def readiness(self) -> Readiness:
        if self._draining:
            return Readiness(status="draining", reason="the daemon is stopping")
        if not any(worker.ready for worker in self._workers):
            failing = [status.error for status in self.workers() if status.state is WorkerState.RESTARTING]
            if len(failing) == len(self._workers):
                return Readiness(status="error", reason=f"no runner starts: {failing[0]}")
            return Readiness(status="starting", reason="the runners are starting")
        enabled = [model for model in self._catalogue.statuses() if model.enabled]
        if any(model.state is ModelState.READY for model in enabled):
            return Readiness(status="ready", reason=None)
        if not enabled:
            return Readiness(status="error", reason="no model is enabled")
        if all(model.state is ModelState.FAILED for model in enabled):
            return Readiness(status="error", reason=f"no model is usable: {enabled[0].name}: {enabled[0].error}")
        return Readiness(status="starting", reason="the models are being downloaded")

    # What the workers ask for.

    async def next_job(self) -> Waiting:
        while True:
            job = None if self._draining else self._queue.take(self._can_run)
            if job is not None:
                self._look_ahead()
                return job
            self._changed.clear()
            await self._changed.wait()

    def give_back(self, job: Waiting) -> None:
        self._queue.push_back(job)
        self._queued(job.id)

    async def ended(self, job: Job, state: JobState | None, speed: float | None) -> None:
        if speed is not None:
            self._speed = speed if self._speed is None else SPEED_MEMORY * self._speed + (1 - SPEED_MEMORY) * speed
        if state is JobState.QUEUED:
            self.give_back(Waiting.of(job))
        elif state is not None:
            await self._announce_end(job.id, state)

    # Inside.

    async def _reused(self, job: Job) -> Job | None:
        """The job, completed with the result of an earlier one; None: it must run."""
        spec = self._catalogue.spec(job.options.model)
        if spec is None:
            return None
        try:
            earlier = await self._jobs.reusable_result(job, spec.sha256)
            if earlier is None:
                return None
            result = await asyncio.to_thread(reused_result, earlier)
            if await self._jobs.complete_queued(job, result, model_sha256=spec.sha256):
                await self._announce_end(job.id, JobState.COMPLETED)
            return await self._jobs.get(job.id)
        except Unavailable:
            return None

    def _enter(self, job: Job) -> None:
        self._queue.push(Waiting.of(job))
        self._queued(job.id)

    async def _settle(self, job_id: JobId) -> None:
        """Was it stored after all? Its client does not know either: the job runs if it was, its files go if not."""
        failures = 0
        while True:
            failures += 1
            await asyncio.sleep(backoff_s(failures, first_s=0.5, most_s=15, rng=self._rng))
            try:
                job = await self._jobs.get(job_id)
            except Unavailable:
                continue
            log.warning("job.settled", job_id=job_id, stored=job is not None)
            if job is None:
                await remove_files(self._settings.jobs_dir, job_id)
            else:
                self._enter(job)
            return

    def _queued(self, job_id: JobId) -> None:
        self._hub.publish("job", job_id, state=JobState.QUEUED, stage=None, progress=0.0)
        self._look_ahead()
        self._changed.set()

    async def _announce_end(self, job_id: JobId, state: JobState) -> None:
        if self._settings.audio_ttl_s == 0:
            reach(FaultPoint.REMOVING_FILES)
            await remove_files(self._settings.jobs_dir, job_id)
            reach(FaultPoint.FILES_REMOVED)
        log.info("job.ended", job_id=job_id, state=state)
        self._hub.publish(
            "job", job_id, state=state, stage=None, progress=100.0 if state == JobState.COMPLETED else None
        )
        self._outbox.wake()
        for waiter in self._waiting_for_end.get(job_id, ()):
            waiter.set()

    async def _follow_models(self) -> None:
        """Jobs of a model that has come are started; jobs of one that was taken away are ended."""
        with self._hub.listen() as events:
            while True:
                await self._end_jobs_without_model()
                self._changed.set()
                event = await events.next()
                while event.kind != "model" or event.data.get("state") not in (ModelState.READY, ModelState.DISABLED):
                    event = await events.next()

    async def _end_jobs_without_model(self) -> None:
        for job in list(self._queue):
            model = self._catalogue.status(job.model)
            if model is None or not model.enabled:
                self._queue.remove(job.id)
                await self._preparer.discard(job.id)
                message = f"the model {job.model} was disabled while the job waited"
                if await self._jobs.fail_queued(job.id, "model_unavailable", message):
                    await self._announce_end(job.id, JobState.FAILED)

    def _can_run(self, job: Waiting) -> bool:
        return self._catalogue.spec(job.model) is not None

    def _look_ahead(self) -> None:
        if not self._draining:
            self._preparer.look_ahead(self._queue)

    def _wait_behind(self, position: int) -> float | None:
        """Seconds until a job behind `position` others starts, as far as is known."""
        idle = sum(status.state is WorkerState.IDLE for status in self.workers())
        if position < idle:
            return 0.0
        if self._speed is None:
            return None
        ahead_s = sum(job.duration_s or 0.0 for job, _ in zip(self._queue, range(position), strict=False))
        return round(ahead_s / self._speed / len(self._workers), 1)
