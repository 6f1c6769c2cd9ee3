"""Owns the queue and the workers: submit, cancel, wait, drain."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pydantic import SecretStr

from gpu_daemon import clock
from gpu_daemon.audio.decode import Decoded
from gpu_daemon.audio.fetch import Fetcher, FetchLimits
from gpu_daemon.blocking import Gathered
from gpu_daemon.callbacks.outbox import Outbox
from gpu_daemon.catalogue.catalogue import Catalogue, ModelState
from gpu_daemon.catalogue.pipelines import Pipelines
from gpu_daemon.errors import Conflict, DiskFull, NotFound, OutcomeUnknown, Unavailable
from gpu_daemon.events import EventHub
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.telemetry import Telemetry
from gpu_daemon.jobs.model import IdempotencyKey, Job, JobId, JobOptions, NewJob
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.jobs.state import TERMINAL, JobState, Stage
from gpu_daemon.logs import log
from gpu_daemon.metrics import Metrics
from gpu_daemon.outgoing.target import AddressPolicy
from gpu_daemon.runner.process import Runner
from gpu_daemon.scheduling.admission import check_disk, check_queue, check_size
from gpu_daemon.scheduling.dispatch import Dispatch
from gpu_daemon.scheduling.estimate import FreeS, Paces, Waits
from gpu_daemon.scheduling.fetching import SourceFetcher
from gpu_daemon.scheduling.pipeline_needs import PipelineNeeds
from gpu_daemon.scheduling.preparation import Preparer
from gpu_daemon.scheduling.queue import JobQueue, Waiting
from gpu_daemon.scheduling.readiness import Readiness, of_models, of_workers
from gpu_daemon.scheduling.recovery import recover, remove, remove_files
from gpu_daemon.scheduling.retention import Retention
from gpu_daemon.scheduling.reuse import reused_result, source_of
from gpu_daemon.scheduling.status import Live, WorkerStatus
from gpu_daemon.scheduling.worker import LOOK_AGAIN_S, Worker, runs_alone
from gpu_daemon.settings import Settings
from gpu_daemon.store.jobs import Inserted, JobStore

BROKEN_PAUSE_S = 1.0
SHORT_BYTES = 1 << 20
DISK_CHECKED_FOR_S = 0.1
PUSHED_AT_ONCE = 1000
T = TypeVar("T")


class Scheduler:
    def __init__(
        self,
        settings: Settings,
        devices: tuple[Device, ...],
        *,
        jobs: JobStore,
        catalogue: Catalogue,
        outbox: Outbox,
        pipelines: Pipelines,
        hub: EventHub,
        fetch_policy: AddressPolicy,
        telemetry: Telemetry,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._catalogue = catalogue
        self._outbox = outbox
        self._pipelines = PipelineNeeds(pipelines, self._go_on)
        self._hub = hub
        self._metrics = metrics
        self._queue = JobQueue(affinity_wait_s=settings.affinity_max_wait_s)
        self._changed = asyncio.Event()
        self._started = False
        self._draining = False  # takes no new jobs and finishes the others
        self._stopping = False  # takes no new jobs and begins no others
        self._paces = Paces()
        self._waits = Waits(self._paces)
        limits = FetchLimits(
            file_bytes=settings.max_file_size_bytes, reserve_bytes=settings.disk_reserve_mb * 1024 * 1024
        )
        self._preparer = Preparer(
            settings.jobs_dir,
            SourceFetcher(Fetcher(fetch_policy, limits), jobs, max_duration_s=settings.max_duration_s),
            max_duration_s=settings.max_duration_s,
            at_once=max(2, len(devices)),
            on_change=self._go_on,
            on_progress=self._fetch_advanced,
            is_done=self._has_earlier_result,
        )
        self._retention = Retention(settings, jobs)
        self._workers = [
            Worker(
                index,
                device,
                Runner(
                    device,
                    model_idle_s=settings.model_idle_s,
                    vram_reserve_mb=settings.vram_reserve_mb,
                    pyannote_device=settings.pyannote_device,
                ),
                settings=settings,
                jobs=jobs,
                catalogue=catalogue,
                preparer=self._preparer,
                pipelines=self._pipelines,
                source=self,
                hub=hub,
                telemetry=telemetry,
                metrics=metrics,
            )
            for index, device in enumerate(devices)
        ]
        self._dispatch = Dispatch(self._queue)
        self._cancelling: Counter[JobId] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._rng = random.Random()  # noqa: S311 - jitter
        self._disk_checked_s = -DISK_CHECKED_FOR_S
        self._removals = Gathered(partial(remove, settings.jobs_dir))
        self._open: set[JobId] = set()  # whose end is still to be announced
        self._waiting_for_result: dict[JobId, set[asyncio.Future[bytes | None]]] = {}
        self._waiting_for_end: dict[JobId, set[asyncio.Event]] = {}

    # Life.

    async def start(self) -> None:
        for job in await recover(self._jobs, self._settings):
            self._queue.push(Waiting.of(job))
            self._open.add(job.id)
            if job.options.diarize:
                self._pipelines.begin(job.id)
            if len(self._queue) % PUSHED_AT_ONCE == 0:
                await asyncio.sleep(0)  # somebody may be asking for our health
        self._outbox.wake()  # recovery may have ended some
        self._started = True
        self._look_ahead()
        loops = {f"worker {worker.index}": worker.run for worker in self._workers}
        loops |= {"follow models": self._follow_models, "retention": self._retention.run}
        self._tasks = [asyncio.create_task(_keep_running(name, run), name=name) for name, run in loops.items()]

    async def drain(self, timeout_s: float) -> bool:
        """The daemon is to stop: refuse new work, begin none, and wait for what runs. False: some still runs."""
        self._stopping = True
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
        self._stopping = True
        tasks, self._tasks = [*self._tasks, *self._background], []
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("scheduler.task_failed", error=repr(outcome))
        await self._preparer.stop()
        await self._pipelines.stop()

    # What the API asks for.

    def admit(self, *, size_bytes: int | None) -> None:
        """May another job enter? Asked before its body is read. Raises Unavailable, DiskFull, TooLarge."""
        self._check_open()
        check_size(self._settings, size_bytes)
        queued = len(self._queue)
        check_queue(self._settings, queued, None if queued < self._settings.max_queue else self._wait_behind(queued))
        now_s, is_short = clock.monotonic(), size_bytes is not None and size_bytes <= SHORT_BYTES
        if is_short and now_s < self._disk_checked_s + DISK_CHECKED_FOR_S:
            return  # hundreds of these may come in a second; who writes them looks as well
        try:
            check_disk(self._settings, size_bytes)
        except DiskFull:
            self._hub.publish("incident", "disk", what="disk_low")
            raise
        self._disk_checked_s = now_s

    async def submit(
        self,
        new: NewJob,
        idempotency: IdempotencyKey | None = None,
        *,
        reuse_result: bool = False,
        audio: Decoded | None = None,
        hf_token: SecretStr | None = None,
    ) -> Job:
        """Its files are synced already. `audio`: what the engine is to hear, if nothing is to be prepared.
        `hf_token`: for the fetch of the pipeline, in memory alone; a job that outlives the daemon goes on without.

        When this returns the job cannot be lost; it has another id than `new` when the
        client's key has made one before. Raises Conflict, Unavailable.
        """
        self._check_open()
        takes_earlier_result = reuse_result and self._settings.reuse_results
        source = self._source_of(new.options) if takes_earlier_result else None
        try:
            job = await self._jobs.insert(new, idempotency, model_sha256=source)
        except OutcomeUnknown:
            self._in_background(self._settle(new.id, hf_token), name=f"settle {new.id}")
            raise
        if job.id != new.id:
            return job
        log.info("job.queued", job_id=job.id, model=job.options.model, duration_s=job.duration_s, client=job.client)
        earlier_result = job.earlier_result if isinstance(job, Inserted) else None
        if source is not None and earlier_result is not None and await self._reused(job, earlier_result, source):
            return await self._known(job)
        self._enter(job, audio, hf_token, takes_earlier_result=takes_earlier_result)
        return job

    async def cancel(self, job_id: JobId) -> Job:
        """The job as it is once it has stopped. Raises NotFound, Conflict when it had ended already."""
        self._cancelling[job_id] += 1
        try:
            while True:
                waiting = self._queue.remove(job_id)
                try:
                    if waiting is not None:
                        await self._preparer.discard(job_id)
                    reach(FaultPoint.CANCELLING_QUEUED)
                    if await self._jobs.cancel_queued(job_id):
                        reach(FaultPoint.QUEUED_CANCELLED)
                        await self._announce_end(job_id, JobState.CANCELLED)
                        return await self._present(job_id)
                    runs = await self._jobs.request_cancel(job_id)
                except BaseException:
                    if waiting is not None:
                        self.give_back(waiting)
                    raise
                if runs:
                    reach(FaultPoint.CANCEL_NOTED)
                    if waiting is not None:  # a claim was made that its worker could not hear of: it is to look again
                        self.give_back(waiting)
                    for worker in self._workers:
                        worker.cancel(job_id)
                    return await self.wait(job_id, timeout_s=30)
                job = await self._present(job_id)
                if job.state in TERMINAL:
                    raise Conflict(f"the job is already {job.state}", code="wrong_state")
        finally:
            self._cancelling[job_id] -= 1
            self._cancelling += Counter()  # without those that are 0

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

    async def outcome(self, job: Job, timeout_s: float) -> tuple[Job, bytes | None]:
        """As `wait`, of a job just submitted; with its result, if the database need not be asked for it."""
        if job.id in self._open:
            coming = asyncio.get_running_loop().create_future()
            waiting = self._waiting_for_result.setdefault(job.id, set())
            waiting.add(coming)
            result = None
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        result = await coming
            finally:
                waiting.discard(coming)
                if not waiting:
                    self._waiting_for_result.pop(job.id, None)
            if result is not None:
                return replace(job, state=JobState.COMPLETED), result
        elif job.state not in TERMINAL:
            return await self.wait(job.id, timeout_s), None
        return await self._present(job.id), None

    def drain_all(self) -> None:
        """Refuse new jobs and finish those that wait or run, until `resume_all`."""
        self._draining = True
        self._hub.publish("incident", "daemon", what="drained")
        log.info("daemon.drained", queued=len(self._queue), running=len(self.running_ids()))

    def resume_all(self) -> None:
        """Raises Conflict when the daemon is stopping."""
        if self._stopping:
            raise Conflict("the daemon is stopping", code="wrong_state")
        self._draining = False
        self._hub.publish("incident", "daemon", what="resumed")
        log.info("daemon.resumed")

    def worker(self, index: int) -> Worker:
        """Raises NotFound."""
        if not 0 <= index < len(self._workers):
            raise NotFound(f"there is no worker {index}; there are {len(self._workers)}", param="index")
        return self._workers[index]

    def position(self, job_id: JobId) -> int | None:
        return self._queue.position(job_id)

    def estimated_wait_s(self, job_id: JobId) -> float | None:
        """None: not waiting, or nothing measured yet."""
        position = self._queue.position(job_id)
        return None if position is None else self._wait_behind(position)

    def estimated_end_s(self, job: Job) -> float | None:
        """Until a job that waits will have ended. None as above."""
        wait_s, pace = self.estimated_wait_s(job.id), self._paces.of(0, job.options.model)
        return None if wait_s is None or pace is None else wait_s + pace.expected_s(job.duration_s)

    def is_fetching(self, job_id: JobId) -> bool:
        """It waits for the server of its `url`, or for the pipeline that tells who speaks."""
        return self._preparer.is_fetching(job_id) or self._pipelines.is_fetching(job_id)

    def fetched_percent(self, job_id: JobId) -> float:
        """Of the whole job, as far as it came with a `url` and waits for its turn."""
        return self._preparer.percent(job_id)

    def live(self, job_id: JobId) -> Live | None:
        return next((live for worker in self._workers if (live := worker.live(job_id)) is not None), None)

    def running_job(self, job_id: JobId) -> Job | None:
        """As it was claimed; None: it does not run."""
        return next((job for worker in self._workers if (job := worker.job(job_id)) is not None), None)

    def queued_ids(self) -> list[JobId]:
        return [job.id for job in self._queue]

    def queued(self) -> Iterator[Waiting]:
        """In the order in which they will run; to be read without waiting in between."""
        return iter(self._queue)

    @property
    def queued_count(self) -> int:
        return len(self._queue)

    @property
    def drained(self) -> bool:
        """New jobs are refused until `resume_all`."""
        return self._draining

    def newcomer_waits_s(self) -> float | None:
        """In how many seconds a job that came now would start. None: nothing measured yet, or nobody takes jobs."""
        return self._wait_behind(len(self._queue))

    def running_ids(self) -> list[JobId]:
        return [job_id for worker in self._workers for job_id in worker.job_ids]

    def client_of(self, job_id: JobId) -> str | None:
        """Of a job that waits or runs."""
        waiting = self._queue.get(job_id)
        if waiting is not None:
            return waiting.client
        return next((worker.client(job_id) for worker in self._workers if job_id in worker.job_ids), None)

    def runner_pids(self) -> frozenset[int]:
        return frozenset(worker.pid for worker in self._workers if worker.pid is not None)

    def workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(worker.status() for worker in self._workers)

    def readiness(self) -> Readiness:
        if self._stopping:
            return Readiness(status="draining", reason="the daemon is stopping")
        if self._draining:
            return Readiness(status="draining", reason=f"new jobs are refused; {self._left()}")
        return of_workers(self._workers) or of_models(self._catalogue.statuses())

    # What the workers ask for.

    def job_at_hand(self, worker_index: int) -> Waiting | None:
        job = None if self._stopping else self._take_for(worker_index)
        if job is not None:
            self._look_ahead()
        return job

    async def next_job(self, worker_index: int) -> Waiting | None:
        while self._workers[worker_index].has_room:
            if (job := self.job_at_hand(worker_index)) is not None:
                return job
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):  # whether another worker's runner answers gives no signal
                    await self._changed.wait()
        return None

    def look_again(self) -> None:
        self._changed.set()

    def give_back(self, job: Waiting) -> None:
        self._queue.push_back(job)
        self._queued(job.id)

    def measured(self, worker_index: int, model: str, *, duration_s: float, took_s: float) -> None:
        self._paces.measured(worker_index, model, duration_s=duration_s, took_s=took_s)

    async def ended(self, job: Job, state: JobState | None, result: bytes | None = None) -> None:
        if state is JobState.QUEUED and job.id in self._cancelling and await self._cancel_queued(job.id):
            state = JobState.CANCELLED
        if state is JobState.QUEUED:
            self.give_back(Waiting.of(job))
        elif state is None:
            self.moved(job.id)
        else:
            await self._announce_end(job.id, state, result, owes_callback=job.callback_url is not None)

    def moved(self, job_id: JobId) -> None:
        self._pipelines.forget(job_id)
        if job_id in self._open:
            self._in_background(self._learn_of_end(job_id), name=f"what became of {job_id}")

    # Inside.

    def _check_open(self) -> None:
        """Raises Unavailable."""
        if self._stopping:
            raise Unavailable("the daemon is stopping and takes no new jobs", retry_after_s=30, code="draining")
        if self._draining:
            raise Unavailable("the daemon is drained and takes no new jobs", retry_after_s=60, code="draining")
        if not self._started:
            raise Unavailable("the daemon is starting; try again in a moment", retry_after_s=5, code="starting")

    async def _present(self, job_id: JobId) -> Job:
        """Raises NotFound."""
        job = await self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        return job

    async def _cancel_queued(self, job_id: JobId) -> bool:
        """False as well when the database is away: whoever claims the job sees that it is to be cancelled."""
        try:
            return await self._jobs.cancel_queued(job_id)
        except (Unavailable, OSError) as error:
            log.warning("job.cancel_waits", job_id=job_id, error=str(error))
            return False

    def _left(self) -> str:
        queued, running = len(self._queue), len(self.running_ids())
        return f"waiting: {queued}, running: {running}" if queued or running else "nothing waits or runs any more"

    def _take_for(self, worker_index: int) -> Waiting | None:
        """Jobs without their file wait for it, and those without their model or their pipeline."""
        usable: dict[str, bool] = {}  # by model: queues are long

        def can_run(job: Waiting) -> bool:
            if job.model not in usable:
                usable[job.model] = self._catalogue.spec(job.model) is not None
            return usable[job.model] and self._preparer.has_file(job) and not self._pipelines.is_fetching(job.id)

        return self._dispatch.take(
            self._workers[worker_index],
            (worker for worker in self._workers if worker.index != worker_index),
            can_run=can_run,
            alone=lambda job: runs_alone(job, self._preparer),
            now_s=clock.monotonic(),
        )

    def _source_of(self, options: JobOptions) -> str | None:
        spec = self._catalogue.spec(options.model)
        return None if spec is None else source_of(options, spec, self._pipelines.ready)

    async def _reused(self, job: Job, earlier_result: str, model_sha256: str) -> bool:
        """Is it completed with the result of an earlier one? Otherwise it must run."""
        try:
            result = await asyncio.to_thread(reused_result, earlier_result)
            if not await self._jobs.complete_queued(job, result, model_sha256=model_sha256):
                return False
        except Unavailable:
            return False
        self._metrics.job_reused()
        self._queue.remove(job.id)
        await self._announce_end(job.id, JobState.COMPLETED, owes_callback=job.callback_url is not None)
        return True

    async def _known(self, job: Job) -> Job:
        """One that is completed, as it is stored, if the database says so."""
        with contextlib.suppress(Unavailable):
            if (stored := await self._jobs.get(job.id)) is not None:
                return stored
        return replace(job, state=JobState.COMPLETED)

    async def _has_earlier_result(self, waiting: Waiting) -> bool:
        """Of a job whose file has been fetched: it is completed then. Once begun it is not cut off: what is stored must
        be told of, too."""
        if not waiting.takes_earlier_result:
            return False
        ending = self._in_background(self._end_with_earlier_result(waiting), name=f"earlier result of {waiting.id}")
        try:
            return await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait({ending})
            raise

    async def _end_with_earlier_result(self, waiting: Waiting) -> bool:
        try:
            job = await self._jobs.get(waiting.id)
            source = None if job is None else self._source_of(job.options)
            if job is None or source is None:
                return False
            earlier_result = await self._jobs.reusable_result(job, source)
        except Unavailable:
            return False
        return earlier_result is not None and await self._reused(job, earlier_result, source)

    def _fetch_advanced(self, job_id: JobId, percent: float) -> None:
        self._hub.publish("job", job_id, state=JobState.QUEUED, stage=Stage.FETCHING, progress=percent)

    def _enter(
        self,
        job: Job,
        audio: Decoded | None = None,
        hf_token: SecretStr | None = None,
        *,
        takes_earlier_result: bool = False,
    ) -> None:
        if job.options.diarize:
            self._pipelines.begin(job.id, hf_token)
        self._queue.push(Waiting.of(job, audio, takes_earlier_result=takes_earlier_result))
        self._open.add(job.id)
        self._queued(job.id)

    def _in_background(self, work: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _learn_of_end(self, job_id: JobId) -> None:
        """One whose answer was lost, and that nobody has asked for again: it was made, and its files are still here."""
        failures = 0
        while True:
            try:
                job = await self._jobs.get(job_id)
            except Unavailable:
                failures += 1
                await asyncio.sleep(backoff_s(failures, first_s=0.5, most_s=15, rng=self._rng))
                continue
            if job_id in self._open and (job is None or job.state in TERMINAL):
                await self._announce_end(job_id, JobState.CANCELLED if job is None else job.state)
            return

    async def _settle(self, job_id: JobId, hf_token: SecretStr | None) -> None:
        """Was it stored after all? Its client does not know either: the job runs if it was, its files go if not."""
        failures = 0
        while True:
            failures += 1
            await asyncio.sleep(backoff_s(failures, first_s=0.5, most_s=15, rng=self._rng))
            try:
                job = await self._jobs.inserted(job_id)
            except Unavailable:
                continue
            log.warning("job.settled", job_id=job_id, stored=job is not None)
            if job is None:
                await remove_files(self._settings.jobs_dir, job_id)
            else:
                self._enter(job, hf_token=hf_token)
            return

    def _queued(self, job_id: JobId) -> None:
        self._hub.publish("job", job_id, state=JobState.QUEUED, stage=None, progress=0.0)
        self._look_ahead()
        self._changed.set()

    async def _announce_end(
        self, job_id: JobId, state: JobState, result: bytes | None = None, *, owes_callback: bool = True
    ) -> None:
        self._open.discard(job_id)
        self._metrics.job_ended(state.value)
        self._pipelines.forget(job_id)
        for coming in self._waiting_for_result.get(job_id, ()):
            if not coming.done():
                coming.set_result(result)
        if owes_callback:
            self._outbox.wake()
        if self._settings.audio_ttl_s == 0:
            reach(FaultPoint.REMOVING_FILES)
            await self._removals.do(job_id)
            reach(FaultPoint.FILES_REMOVED)
        log.info("job.ended", job_id=job_id, state=state)
        self._hub.publish(
            "job", job_id, state=state, stage=None, progress=100.0 if state == JobState.COMPLETED else None
        )
        for waiter in self._waiting_for_end.get(job_id, ()):
            waiter.set()

    async def _follow_models(self) -> None:
        """Jobs of a model that has come are started; jobs of one that was taken away are ended."""
        with self._hub.listen("model") as events:
            while True:
                try:
                    await self._end_jobs_without_model()
                except (Unavailable, OSError) as error:
                    log.warning("scheduler.models_wait", error=str(error))
                    await asyncio.sleep(BROKEN_PAUSE_S)
                    continue
                self._go_on()
                event = await events.next()
                while event.data.get("state") not in (ModelState.READY, ModelState.DISABLED):
                    event = await events.next()

    async def _end_jobs_without_model(self) -> None:
        for job in list(self._queue):
            model = self._catalogue.status(job.model)
            if model is None or not model.enabled:
                self._queue.remove(job.id)
                await self._preparer.discard(job.id)
                message = f"the model {job.model} was disabled while the job waited"
                try:
                    failed = await self._jobs.fail_queued(job.id, "model_unavailable", message)
                except BaseException:
                    self.give_back(job)
                    raise
                if failed:
                    self._hub.publish(
                        "incident", job.id, what="job_failed", code="model_unavailable", client=job.client
                    )
                    await self._announce_end(job.id, JobState.FAILED)

    def _go_on(self) -> None:
        self._look_ahead()
        self._changed.set()

    def _look_ahead(self) -> None:
        room = self._queue.has_unprepared and self._preparer.has_room(for_urls=self._queue.has_urls)
        if room and not self._stopping:
            # A job whose model is still downloading can wait for its file as well.
            loaded = {name for worker in self._workers for name in worker.loaded}
            jobs = (job for job in self._queue.ahead(loaded) if self._catalogue.spec(job.model) is not None)
            self._preparer.look_ahead(jobs, for_urls=self._queue.has_urls)

    def _wait_behind(self, position: int) -> float | None:
        """Seconds until a job behind `position` others starts, as far as is known."""
        return self._waits.behind(position, self._queue, self._free_s, now_s=clock.monotonic())

    def _free_s(self) -> FreeS:
        return {worker.index: worker.free_s(self._paces) for worker in self._workers}


async def _keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """A bug in one of the loops costs what it was doing, not the loop."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("scheduler.loop_broke", loop=name)
        await asyncio.sleep(BROKEN_PAUSE_S)
