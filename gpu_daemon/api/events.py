"""GET /jobs/{id}/events: a job as it moves and is heard, for a browser's EventSource and for `curl -N`.

Events are made from what the job is when its reader is ready for one: a slow reader gets fewer of them, not a queue.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, Request, Security
from fastapi.security import APIKeyQuery
from pydantic import TypeAdapter
from starlette.responses import Response

from gpu_daemon import clock
from gpu_daemon.api.access import SCHEMES, Client, client_of, has_key, own_job
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.following import Look, all_segments, follow
from gpu_daemon.api.jobs import JobIdPath, summary
from gpu_daemon.api.line import Streamed
from gpu_daemon.api.schemas import EventsTicket
from gpu_daemon.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, MEDIA_TYPE, message, retry, written
from gpu_daemon.api.tickets import Tickets
from gpu_daemon.errors import NotFound, Unauthorized
from gpu_daemon.jobs.model import Job, JobId
from gpu_daemon.jobs.state import TERMINAL, JobState
from gpu_daemon.transcript.model import Segment

router = APIRouter(tags=["jobs"])
_TICKET = APIKeyQuery(
    auto_error=False,
    name="ticket",
    scheme_name="Ticket",
    description="for a browser's EventSource, which can send no key: of POST /jobs/{job_id}/events/ticket",
)
_SEGMENTS = TypeAdapter(tuple[Segment, ...])
COME_BACK_MS = 2000
AT_ONCE = 25
"""Segments in one event."""
PER_ATTEMPT = 1_000_000
"""An event's number: the attempt times this, plus the segments told of so far. The last event ends in nines."""
SHOWN = ("status", "stage", "progress", "attempt", "queue_position")
"""What makes a new `state` event."""


@dataclass(slots=True)
class Teller:
    """What one reader has been told (pure)."""

    attempt: int = 0
    count: int = 0
    """Segments of that attempt."""
    _told: tuple[Segment, ...] = ()
    """The last of them that were seen here."""
    _state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def after(cls, number: int | None) -> "Teller":
        """The reader has had the event of this number."""
        attempt, count = divmod(number or 0, PER_ATTEMPT)
        return cls(attempt=attempt, count=0 if count == PER_ATTEMPT - 1 else count)

    @property
    def number(self) -> int:
        return self.attempt * PER_ATTEMPT + self.count

    def state(self, summary: dict[str, Any]) -> bytes | None:
        shown = {name: summary[name] for name in SHOWN}
        if shown == self._state:
            return None
        self._state = shown
        return message(summary, event="state", id=self.number)

    def known(self, attempt: int, heard: tuple[Segment, ...]) -> int:
        """How many of them, from the first on, were told as they are now. Takes a while where they are other objects
        than those that were seen before."""
        if attempt != self.attempt:
            return 0
        return _first_difference(self._told, heard) if self._told else min(self.count, len(heard))

    def segments(self, attempt: int, heard: tuple[Segment, ...], known: int) -> Iterator[bytes]:
        """All after the first `known`: each event is made when its reader is ready for it."""
        fewer = attempt == self.attempt and len(heard) == known < self.count
        self.attempt = attempt
        for first in range(known, len(heard) + fewer, AT_ONCE):
            some = heard[first : first + AT_ONCE]
            self.count = first + len(some)
            said = f'{{"attempt": {attempt}, "first": {first}, "segments": {_SEGMENTS.dump_json(some).decode()}}}'
            yield written(said, event="segments", id=self.number)
        self.count, self._told = len(heard), heard


def end_number(job: Job) -> int:
    return job.attempt * PER_ATTEMPT + PER_ATTEMPT - 1


async def _reader(
    request: Request, job_id: JobIdPath, ticket: Annotated[str | None, Security(_TICKET)] = None
) -> str | None:
    """Whose jobs are seen; None: everybody's, or this one by its ticket. Raises Unauthorized."""
    if ticket is None or has_key(request) or not context_of(request).settings.api_keys:
        return client_of(request)
    if not _tickets_of(request).admits(ticket, JobId(job_id), clock.now()):
        raise Unauthorized(f"this ticket is not for {job_id[:50]!r}, or no longer; ask for another with your API key")
    return None


@router.post(
    "/jobs/{job_id}/events/ticket",
    summary="An address of the job's events that needs no key, for a browser's EventSource",
    responses=documented(401, 404, 503),
)
async def make_ticket(request: Request, client: Client, job_id: JobIdPath) -> EventsTicket:
    """Good for this job's events and nothing else, for an hour, and until the daemon is started anew."""
    job = await own_job(context_of(request), client, job_id)
    ticket, expires_at = _tickets_of(request).issue(job.id, clock.now())
    return EventsTicket(url=f"/jobs/{job.id}/events?ticket={ticket}", expires_at=str(clock.rfc3339(expires_at)))


def _tickets_of(request: Request) -> Tickets:
    return cast(Tickets, request.app.state.tickets)


@router.get(
    "/jobs/{job_id}/events",
    dependencies=[*SCHEMES],
    summary="Server-Sent Events: `state`, `segments` as they are decoded, and `end`",
    response_class=Response,
    responses={
        200: {
            "description": (
                "`state` and `end` hold the job as `GET /jobs` lists it, `segments` holds `attempt`, `first` and "
                "`segments`: they replace all from number `first` on"
            ),
            "content": {MEDIA_TYPE: {}},
        },
        204: {"description": "the reader has had the last event: no reason to come back"},
        **documented(400, 401, 404, 503),
    },
)
async def get_events(
    request: Request,
    client: Annotated[str | None, Depends(_reader)],
    job_id: JobIdPath,
    last_event_id: Annotated[
        str | None, Header(description="the `id` of the last event that was read: what came after it is told")
    ] = None,
) -> Response:
    context = context_of(request)
    job = await own_job(context, client, job_id)
    number = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 16 else None
    if job.state in TERMINAL and number == end_number(job):
        return Response(status_code=204)
    return Streamed(_events(context, job, Teller.after(number)), MEDIA_TYPE)


async def _events(context: Context, job: Job, teller: Teller) -> AsyncGenerator[bytes]:
    yield retry(COME_BACK_MS)
    last = summary(context, job)
    try:
        async with aclosing(follow(context, job, every_s=KEEP_ALIVE_S)) as looks:
            async for look in looks:
                if look is None:
                    yield KEEP_ALIVE
                    continue
                job, last = look.job, summary(context, look.job)
                for event in _of(teller, look, last) if job.state not in TERMINAL else ():
                    yield event
        if job.state is JobState.COMPLETED:
            heard = await all_segments(context, job.id)
            known = await asyncio.to_thread(teller.known, job.attempt, heard)
            for event in teller.segments(job.attempt, heard, known):
                yield event
    except NotFound:  # it was deleted, and cancelled before that
        last |= {"status": JobState.CANCELLED.value, "stage": None, "queue_position": None}
    yield message(last, event="end", id=end_number(job))


def _of(teller: Teller, look: Look, said: dict[str, Any]) -> Iterator[bytes]:
    if (state := teller.state(said)) is not None:  # first: its number must not count segments that come after it
        yield state
    if look.live is not None:
        yield from teller.segments(look.live.attempt, look.segments, teller.known(look.live.attempt, look.segments))


def _first_difference(one: tuple[Segment, ...], other: tuple[Segment, ...]) -> int:
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a is not b and a != b:
            return number
    return min(len(one), len(other))
