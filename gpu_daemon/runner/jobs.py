"""The engine thread of a runner: jobs in the order they came, and models put away when nobody wants them."""

import os
import queue
import threading
import traceback
from typing import Protocol

from gpu_daemon import clock
from gpu_daemon.engine.base import Engine
from gpu_daemon.engine.pipeline import transcribe_file
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.protocol import Done, Failed, FromRunner, JobProgress, Models, Run, Unload

REPORT_INTERVAL_S = 0.25
"""The daemon hears of progress no more often, and while the engine moves not much less often."""


class Send(Protocol):
    def __call__(self, message: FromRunner, body: bytes = b"") -> None: ...


class Reporter:
    """Tells the daemon where one job is, and the engine when it is to stop."""

    def __init__(self, job_id: JobId, cancelled: threading.Event, send: Send) -> None:
        self._job_id = job_id
        self._cancelled = cancelled
        self._send = send
        self._stage: Stage | None = None
        self._sent_at_s = 0.0

    def __call__(self, stage: Stage, fraction: float) -> None:
        if self._cancelled.is_set():
            raise JobCancelled("the job was cancelled")
        now_s = clock.monotonic()
        if stage is self._stage and now_s < self._sent_at_s + REPORT_INTERVAL_S:
            return
        self._stage, self._sent_at_s = stage, now_s
        self._send(JobProgress(job_id=self._job_id, stage=stage, fraction=fraction))


class JobThread(threading.Thread):
    def __init__(self, engine: Engine, send: Send, *, model_idle_s: float) -> None:
        super().__init__(name="engine", daemon=True)
        self._engine = engine
        self._send = send
        self._model_idle_s = model_idle_s
        self._waiting: queue.SimpleQueue[Run | Unload] = queue.SimpleQueue()
        self._cancelled: dict[JobId, threading.Event] = {}
        self._used_at_s: dict[str, float] = {}
        self._announced: dict[str, int] = {}

    def submit(self, message: Run | Unload) -> None:
        """From any thread."""
        if isinstance(message, Run):
            self._cancelled[message.job_id] = threading.Event()
        self._waiting.put(message)

    def cancel(self, job_id: JobId) -> None:
        """From any thread; nothing if the job is not here, or no more."""
        if (event := self._cancelled.get(job_id)) is not None:
            event.set()

    def run(self) -> None:
        try:
            while True:
                self._next()
        except BaseException:
            # Without this thread the process would go on answering pings, and do nothing.
            traceback.print_exc()
            os._exit(1)

    def _next(self) -> None:
        try:
            message = self._waiting.get(timeout=self._idle_left_s())
        except queue.Empty:
            self._unload_idle()
            return
        if isinstance(message, Unload):
            for model in self._engine.loaded():
                if message.model in (None, model.name):
                    self._engine.unload(model.name)
            self._announce()
        else:
            self._do(message)

    def _do(self, run: Run) -> None:
        report = Reporter(run.job_id, self._cancelled[run.job_id], self._send)

        def announce_then_report(stage: Stage, fraction: float) -> None:
            self._announce()
            report(stage, fraction)

        body = b""
        answer: Done | Failed
        lost = False
        try:
            transcript, timings = transcribe_file(self._engine, run, announce_then_report)
            body = transcript.model_dump_json().encode()
            answer = Done(
                job_id=run.job_id,
                timings=timings,
                duration_s=transcript.duration,
                token_count=transcript.token_count,
                language=transcript.language,
            )
        except JobError as error:
            lost = isinstance(error, DeviceLost)
            answer = Failed(job_id=run.job_id, code=error.code, message=error.message, retryable=error.retryable)
            if not isinstance(error, JobCancelled):
                traceback.print_exc()
        except Exception as error:
            traceback.print_exc()
            # Only its name: what a library says may hold paths, or the text that was heard.
            message = f"the engine failed in a way it should not ({type(error).__name__})"
            answer = Failed(job_id=run.job_id, code=JobError.code, message=message)
        del self._cancelled[run.job_id]
        self._used_at_s[run.model.name] = clock.monotonic()
        self._announce()
        self._send(answer, body)
        if lost:
            os._exit(1)

    def _announce(self) -> None:
        loaded = {model.name: model.size_bytes for model in self._engine.loaded()}
        if loaded != self._announced:
            self._announced = loaded
            self._send(Models(loaded=loaded))

    def _idle_left_s(self) -> float | None:
        """Until the next model has been idle for long enough; None: nothing is loaded."""
        used_at_s = [self._used_at_s[model.name] for model in self._engine.loaded()]
        return max(0.0, min(used_at_s) + self._model_idle_s - clock.monotonic()) if used_at_s else None

    def _unload_idle(self) -> None:
        for model in self._engine.loaded():
            if clock.monotonic() >= self._used_at_s[model.name] + self._model_idle_s:
                self._engine.unload(model.name)
        self._announce()
