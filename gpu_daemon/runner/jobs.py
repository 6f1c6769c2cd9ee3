"""The engine thread of a runner: all jobs in flight, stepped together; models put away when nobody wants them."""

import os
import queue
import threading
import traceback
from typing import NoReturn, Protocol

from pydantic import TypeAdapter

from gpu_daemon import clock
from gpu_daemon.engine.base import Diarizer, Engine, LoadedModel, SpeakerRequest
from gpu_daemon.engine.pipeline import Hearing
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError, NoRoom
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.protocol import (
    PIPELINE,
    Done,
    Failed,
    FromRunner,
    JobProgress,
    JobSegments,
    Models,
    Run,
    Unload,
)
from gpu_daemon.transcript.model import Segment

REPORT_INTERVAL_S = 0.25
"""The daemon hears of each job no more often, and while the engine moves not much less often."""
_SEGMENTS = TypeAdapter(tuple[Segment, ...])


class Send(Protocol):
    def __call__(self, message: FromRunner, body: bytes = b"") -> None: ...


class _Job:
    """One that was asked for and has not been answered."""

    def __init__(self, run: Run, send: Send) -> None:
        self.id = run.job_id
        self.run = run
        self.cancelled = threading.Event()
        self.late: JobError | None = None
        """Why who speaks is not waited for."""
        self.answered = False
        self.hearing: Hearing | None = None
        self._send = send
        self.stage = Stage.LOADING
        self._fraction = 0.0
        self._reported_at_s = 0.0
        self._segments_sent = 0

    @property
    def models(self) -> tuple[str, ...]:
        """What it uses."""
        speakers = self.run.speakers
        pipelines = (_pipeline(speakers.pipeline.name),) if isinstance(speakers, SpeakerRequest) else ()
        return (self.run.model.name, *pipelines)

    @property
    def is_transcribed(self) -> bool:
        """Only its speakers are still missing, if anything is."""
        return self.stage is Stage.DIARIZING

    def report(self, stage: Stage, fraction: float) -> None:
        """Where it is, and what it has heard."""
        is_new, self.stage, self._fraction = stage is not self.stage, stage, fraction
        now_s = clock.monotonic()
        if not is_new and now_s < self._reported_at_s + REPORT_INTERVAL_S:
            return
        self._reported_at_s = now_s
        self._send(JobProgress(job_id=self.id, stage=stage, fraction=fraction))
        self.report_heard()

    def merging(self) -> None:
        """It takes no time worth a report, but for a very long file."""
        self.stage = Stage.MERGING
        self.report(Stage.MERGING, 0.0)
        self.report_heard()

    def report_heard(self) -> None:
        if self.hearing is not None and (new := self.hearing.heard(self._segments_sent)):
            self._send(JobSegments(job_id=self.id, first=self._segments_sent), _SEGMENTS.dump_json(new))
            self._segments_sent += len(new)

    def report_again(self) -> None:
        """It waits for others, and the engine moves."""
        self.report(self.stage, self._fraction)


class JobThread(threading.Thread):
    """Jobs begin in the order they came, and end when they end.

    An error of a job is its own. What a step raises is the fault of none in particular: all in flight may be tried
    again, and who tries them one by one finds out whose it was.
    """

    def __init__(self, engine: Engine, diarizer: Diarizer, send: Send, *, model_idle_s: float) -> None:
        super().__init__(name="engine", daemon=True)
        self._engine = engine
        self._diarizer = diarizer
        self._send = send
        self._model_idle_s = model_idle_s
        self._messages: queue.SimpleQueue[_Job | Unload | None] = (
            queue.SimpleQueue()
        )  # None: look, something has changed
        self._jobs: dict[JobId, _Job] = {}  # unanswered
        self._waiting: list[_Job] = []  # not begun yet
        self._flight: list[_Job] = []
        self._no_room = False  # for the model of the first that waits, before another job has ended
        self._unwanted: set[str] = set()
        self._used_at_s: dict[str, float] = {}
        self._announced: dict[str, int] = {}
        self._beats = 0  # of the diarizer, when it was last looked at

    def submit(self, message: Run | Unload) -> None:
        """From any thread."""
        if isinstance(message, Run):
            job = self._jobs[message.job_id] = _Job(message, self._send)
            self._messages.put(job)
        else:
            self._messages.put(message)

    def cancel(self, job_id: JobId) -> None:
        """From any thread; nothing if the job is not here, or no more."""
        if (job := self._jobs.get(job_id)) is not None:
            job.cancelled.set()

    def conclude(self, job_id: JobId, why: JobError) -> None:
        """From any thread; nothing if the job is not here, or no more."""
        if (job := self._jobs.get(job_id)) is not None:
            job.late = why
            self._messages.put(None)

    def run(self) -> None:
        try:
            while True:
                self._receive()
                self._begin_waiting()
                self._drop_cancelled()
                self._step()
                self._conclude_late()
                self._answer_ended()
                self._put_away()
                self._announce()
        except BaseException:
            # Without this thread the process would go on answering pings, and do nothing.
            traceback.print_exc()
            os._exit(1)

    def _receive(self) -> None:
        """When there is nothing to do, waits for a message, or until a model has been idle for long enough."""
        idle, limit_s = self._idle()
        try:
            while True:
                message = self._messages.get(block=idle, timeout=limit_s)
                idle, limit_s = False, None
                if isinstance(message, Unload):
                    loaded = {model.name for model in self._loaded()}
                    self._unwanted |= loaded if message.model is None else loaded & {message.model}
                elif message is not None:
                    self._waiting.append(message)
        except queue.Empty:
            pass

    def _drop_cancelled(self) -> None:
        dropped = [job for job in (*self._flight, *self._waiting) if job.cancelled.is_set()]
        for job in dropped:
            if job.hearing is not None:
                job.hearing.drop()
            self._answer_cancelled(job)
        if dropped:
            self._flight = [job for job in self._flight if not job.answered]
            self._waiting = [job for job in self._waiting if not job.answered]
            self._no_room = False

    def _answer_cancelled(self, job: _Job) -> None:
        if not job.answered:
            self._fail(job, JobCancelled("the job was cancelled"))

    def _begin_waiting(self) -> None:
        while self._waiting and not self._no_room:
            job = self._waiting.pop(0)
            if job.cancelled.is_set():
                self._answer_cancelled(job)
                continue
            try:
                self._begin(job)
            except NoRoom as error:
                if self._flight:
                    # Nobody overtakes it: those in flight could be joined by others of their model for ever.
                    self._waiting.insert(0, job)
                    self._no_room = True
                else:
                    self._fail(job, error)
            except DeviceLost as error:
                self._lose(error)
            except JobError as error:
                self._fail(job, error)
            except Exception as error:
                self._fail(job, _bug(error))
            self._announce()

    def _begin(self, job: _Job) -> None:
        def loading(fraction: float) -> None:
            if job.cancelled.is_set():
                raise JobCancelled("the job was cancelled")
            self._announce()
            job.report(Stage.LOADING, fraction)
            for other in (*self._flight, *self._waiting):
                if other.cancelled.is_set():
                    self._answer_cancelled(other)  # and dropped once the model is there
                elif not other.answered:
                    other.report_again()

        hearing = job.hearing = job.hearing or Hearing(
            self._engine, self._diarizer, job.run, lambda: self._messages.put(None)
        )
        if hearing.transcribes:
            if job.run.model.name not in self._announced:
                job.report(Stage.LOADING, 0.0)
            hearing.load(loading)
        if not hearing.is_empty:
            hearing.begin()
            job.report(*hearing.progress())
        self._flight.append(job)

    def _step(self) -> None:
        try:
            self._engine.step()
        except DeviceLost as error:
            self._lose(error)
        except JobError as error:
            self._fail_flight(error)
        except Exception as error:
            self._fail_flight(_bug(error))
        beats = sum(job.hearing.beats for job in self._flight if job.hearing is not None)
        for job in self._flight:
            if job.hearing is not None and not job.hearing.ended:
                stage, fraction = job.hearing.progress()
                # One diarizer serves all in turn: while it moves, all of them do.
                if stage is not Stage.DIARIZING or beats != self._beats or stage is not job.stage:
                    job.report(stage, fraction)
        self._beats = beats
        for job in self._waiting:
            job.report_again()

    def _conclude_late(self) -> None:
        for job in self._flight:
            if job.hearing is not None and job.late is not None and job.is_transcribed:
                job.hearing.conclude(job.late)

    def _answer_ended(self) -> None:
        for job in self._flight:
            if job.hearing is not None and job.hearing.ended:
                self._answer(job, job.hearing)
                self._no_room = False
        self._flight = [job for job in self._flight if not job.answered]

    def _answer(self, job: _Job, hearing: Hearing) -> None:
        try:
            job.merging()
            transcript, timings = hearing.result()
            body = transcript.model_dump_json().encode()
        except DeviceLost as error:
            self._lose(error)
        except JobError as error:
            self._fail(job, error)
            return
        except Exception as error:
            self._fail(job, _bug(error))
            return
        done = Done(
            job_id=job.id,
            timings=timings,
            duration_s=transcript.duration,
            token_count=transcript.token_count,
            language=transcript.language,
            without_speakers=transcript.diarization is not None and transcript.diarization.error is not None,
        )
        self._end(job, done, body)

    def _fail_flight(self, error: JobError) -> None:
        retryable = error.retryable or len(self._flight) > 1
        for job in self._flight:
            if job.hearing is not None and not job.hearing.ended and not job.is_transcribed:
                job.hearing.drop()
                self._fail(job, error, retryable=retryable)
        self._flight = [job for job in self._flight if not job.answered]
        self._no_room = False

    def _lose(self, error: DeviceLost) -> NoReturn:
        for job in list(self._jobs.values()):
            self._fail(job, error)
        os._exit(1)

    def _fail(self, job: _Job, error: JobError, *, retryable: bool | None = None) -> None:
        if not isinstance(error, JobCancelled):
            traceback.print_exception(error)
        may_cure = error.retryable if retryable is None else retryable
        self._end(job, Failed(job_id=job.id, code=error.code, message=error.message, retryable=may_cure))

    def _end(self, job: _Job, answer: Done | Failed, body: bytes = b"") -> None:
        job.answered = True
        del self._jobs[job.id]
        self._used_at_s |= dict.fromkeys(job.models, clock.monotonic())
        self._announce()
        self._send(answer, body)

    def _announce(self) -> None:
        loaded = {model.name: model.size_bytes for model in self._loaded()}
        if loaded != self._announced:
            self._announced = loaded
            self._send(Models(loaded=loaded))

    def _idle(self) -> tuple[bool, float | None]:
        """Whether there is nothing to step, and for how long at most that may be waited out; None: for ever."""
        if any(not job.is_transcribed for job in self._flight):
            return False, None
        if self._flight or self._waiting:
            return not self._waiting or self._no_room, REPORT_INTERVAL_S
        used_at_s = [self._used_at_s[model.name] for model in self._loaded()]
        return True, max(0.0, min(used_at_s) + self._model_idle_s - clock.monotonic()) if used_at_s else None

    def _loaded(self) -> tuple[LoadedModel, ...]:
        """A pipeline and a model may have the same name."""
        pipelines = (LoadedModel(_pipeline(model.name), model.size_bytes) for model in self._diarizer.loaded())
        return (*self._engine.loaded(), *pipelines)

    def _put_away(self) -> None:
        """The models that nobody uses, when they have been idle for long enough or are not wanted."""
        used = {name for job in (*self._flight, *self._waiting) for name in job.models}
        now_s = clock.monotonic()
        for name in [model.name for model in self._loaded()]:
            if name not in used and (name in self._unwanted or now_s >= self._used_at_s[name] + self._model_idle_s):
                if name.startswith(PIPELINE):
                    self._diarizer.unload()
                else:
                    self._engine.unload(name)
        self._unwanted &= used


def _pipeline(name: str) -> str:
    return PIPELINE + name


def _bug(error: Exception) -> JobError:
    """Only its name is told: what a library says may hold paths, or the text that was heard."""
    told = JobError(f"the engine failed in a way it should not ({type(error).__name__})")
    told.__cause__ = error
    return told
