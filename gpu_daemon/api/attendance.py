"""Jobs that are done for a client that stays on the line: when it hangs up, its job is cancelled.

OpenAI's clients hang up when their patience ends, and send the whole request again after a pause. The job is left
running for as long as that pause may take, and the request that comes again is joined to it.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpu_daemon.api.context import Context
from gpu_daemon.api.intake import Taken, Translation
from gpu_daemon.api.line import QUIET_S, Answer, Dripping, Streamed, ended
from gpu_daemon.api.submit import take
from gpu_daemon.errors import GpuDaemonError
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import TERMINAL
from gpu_daemon.logs import log

RETRY_COUNT = "x-stainless-retry-count"
"""OpenAI's clients send 0 with the first try."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
"""Of these clients, before they try again; doubled at each try."""
ARRIVAL_S = 2.5
"""In which the request that comes again has reached us, once it is sent."""


class Attendance:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._listeners: dict[JobId, int] = {}
        """Of each job that was made here and has not ended."""
        self._coming_again: Counter[str] = Counter()
        """By client: requests whose body is being read."""
        self._arrived = asyncio.Event()
        self._giving_up: dict[JobId, asyncio.Task[None]] = {}

    async def stop(self) -> None:
        tasks, self._giving_up = list(self._giving_up.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self, request: Request, client: str | None, translate: Translation | None = None) -> "Attended":
        """A submission whose client waits. What is made of it is to be answered with: it holds the job.

        Raises what refuses it, and ClientDisconnect.
        """
        retries = _retries(request)
        with self._coming(_who(request, client)) if retries else contextlib.nullcontext():
            taken = await take(request, client, translate, rejoin=retries > 0)
            if taken.replayed:
                log.info("job.rejoined", job_id=taken.job.id)
            counts = not taken.replayed or taken.job.id in self._listeners
            if counts:
                self._listeners[taken.job.id] = self._listeners.get(taken.job.id, 0) + 1
        patience_s = 0.0
        if RETRY_COUNT in request.headers:
            patience_s = ARRIVAL_S + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**retries)
        leave = partial(self._left, taken.job.id, _who(request, client), patience_s) if counts else None
        return Attended(self._context, taken, leave)

    def _left(self, job_id: JobId, who: str, patience_s: float, hung_up: bool) -> None:
        """A listener has gone: because it hung up, or with its answer."""
        self._listeners[job_id] -= 1
        if not hung_up:
            if self._listeners[job_id] == 0:
                del self._listeners[job_id]
        elif self._listeners[job_id] == 0:
            if (before := self._giving_up.get(job_id)) is not None:
                before.cancel()
            task = asyncio.create_task(self._give_up(job_id, who, patience_s), name=f"give up {job_id}")
            self._giving_up[job_id] = task
            task.add_done_callback(lambda ended: self._given_up(job_id, ended))

    async def _give_up(self, job_id: JobId, who: str, patience_s: float) -> None:
        await asyncio.sleep(patience_s)
        while self._coming_again[who]:
            self._arrived.clear()
            await self._arrived.wait()
        if self._listeners.get(job_id) != 0:
            return
        del self._listeners[job_id]
        log.info("job.given_up", job_id=job_id, reason="its client hung up")
        with contextlib.suppress(GpuDaemonError, OSError):  # it has ended; or the database is away, and it goes on
            await self._context.scheduler.cancel(job_id)

    def _given_up(self, job_id: JobId, task: "asyncio.Task[None]") -> None:
        if self._giving_up.get(job_id) is task:
            del self._giving_up[job_id]

    @contextmanager
    def _coming(self, who: str) -> Iterator[None]:
        self._coming_again[who] += 1
        try:
            yield
        finally:
            self._coming_again[who] -= 1
            self._coming_again += Counter()  # without those that are 0
            self._arrived.set()


class Attended:
    """A job and its client on the line; one of `answer` and `stream` is what the route answers with."""

    def __init__(self, context: Context, taken: Taken, leave: Callable[[bool], None] | None) -> None:
        """`leave`: True, the client hung up; None: the job is somebody else's, and goes on whatever happens here."""
        self._context = context
        self._leave = leave
        self.taken = taken
        self.headers = {"x-job-id": taken.job.id}

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Around all that is said to the client."""
        hung_up = False
        try:
            yield
        except ClientDisconnect:
            hung_up = True
            raise
        finally:
            if self._leave is not None:
                self._leave(hung_up)

    def answer(self, make: Answer, *, drips: bool = False) -> Response:
        """Made when the job has ended. `drips`: it is JSON, and blanks may go before it while the job takes long."""
        return _WhenEnded(self._context, self, make, drips=drips)

    def stream(self, pieces: AsyncGenerator[bytes], media_type: str) -> Response:
        """What comes as it comes; when the client hangs up, `pieces` is closed."""
        return _Stream(self, pieces, media_type)


class _WhenEnded(Response):
    def __init__(self, context: Context, attended: Attended, make: Answer, *, drips: bool) -> None:
        super().__init__()
        self._context = context
        self._attended = attended
        self._make = make
        self._drips = drips

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._attended.held():
            job = await ended(self._context, receive, self._attended.taken.job, QUIET_S if self._drips else None)
            if job.state in TERMINAL:
                response = await self._make(job)
                response.headers.update(self._attended.headers)
                await response(scope, receive, send)
            else:
                dripping = Dripping(self._context, job, self._make, self._attended.headers)
                await dripping(scope, receive, send)


class _Stream(Response):
    def __init__(self, attended: Attended, pieces: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__()
        self._attended = attended
        self._streamed = Streamed(pieces, media_type, attended.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._attended.held():
            await self._streamed(scope, receive, send)


def _retries(request: Request) -> int:
    said = request.headers.get(RETRY_COUNT, "")
    return int(said) if said.isdecimal() and len(said) < 4 else 0


def _who(request: Request, client: str | None) -> str:
    return client or (request.client.host if request.client is not None else "")
