"""The page's state for all who look at it: made once for all who may see the same, and sent to each at his own speed.

Nothing is made while nobody looks. Who looks by WebSocket gets a snapshot, then numbered deltas with the top-level
members that have changed; who reads too slowly for his few frames gets a new snapshot instead of what he missed.
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from gpu_daemon import clock
from gpu_daemon.api.context import Context
from gpu_daemon.api.journal import Journal
from gpu_daemon.api.schemas import DashboardState
from gpu_daemon.api.state import Queued, Stored, dashboard_state, queued
from gpu_daemon.errors import Unavailable
from gpu_daemon.logs import log

TICK_S = 0.25
"""The state is made no more often, whatever happens."""
LOOK_S = 1.0
"""It is made as often even if nothing is said to have happened: times pass, and GPUs get warm."""
BEAT_S = 15.0
STORED_S = 1.0
"""The database is asked no more often."""
STORED_SHARE = 0.05
"""And is kept busy by it for no greater part of the time."""
STORED_TIMEOUT_S = 2.0
FORGET_S = 10.0
"""A group that nobody watches or has asked for in so long is gone."""
QUEUE_S_PER_JOB = 1e-4
"""The queue is gone through once in so many seconds for each job in it: a hundredth of the event loop's time."""
MOST_FRAMES = 8
"""That wait for one viewer."""
SLICE = 16
"""Viewers are served so many at a time, and others in between."""
AGING = frozenset({"workers", "telemetry", "database"})
AGES = re.compile(r'"(?:answered_s_ago|read_s_ago)":\d(?:\.\d+)?(?=[,}])|"latency_ms":[\d.]+')
"""In these members, what is another number each time while all is well: no reason to send anything."""
CARRIED = "uptime_s"
"""As this is; it goes along with what is sent."""
OWN = frozenset({"workers", "queue", "events"})
"""Members that are not the same for all groups."""

_MEMBERS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(field.annotation)
    for name, field in DashboardState.model_fields.items()
    if field.annotation is not None
}


class Viewer:
    """Of one WebSocket: what is to be sent to it next."""

    def __init__(self, group: "Group") -> None:
        self._group = group
        self._frames: deque[str] = deque()
        self._waiting = asyncio.Event()
        self._behind = False  # a snapshot comes next, whatever the frames say
        self._seq = 0  # of the last that was sent, or will be
        self.resync()

    def resync(self) -> None:
        self._frames.clear()
        self._behind = True
        self._waiting.set()

    def offer(self, seq: int, frame: str) -> None:
        if self._behind or seq <= self._seq:
            return
        if len(self._frames) == MOST_FRAMES:
            self.resync()
        else:
            self._seq = seq
            self._frames.append(frame)
            self._waiting.set()

    async def frames(self) -> AsyncGenerator[str]:
        """Without end. What is not taken in time is replaced by a newer snapshot."""
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._waiting.wait()
            except TimeoutError:
                yield f'{{"type":"beat","seq":{self._seq}}}'
                continue
            if self._behind:
                self._behind, self._seq = False, self._group.seq
                frame = self._group.snapshot
            else:
                frame = self._frames.popleft()
            if not self._frames:
                self._waiting.clear()
            yield frame


class Group:
    """Those who may see the same: the state as they see it, and who of them watches."""

    def __init__(self, client: str | None) -> None:
        self.client = client
        self.seq = 0
        self.viewers: set[Viewer] = set()
        self.made_s = float("-inf")
        self._members: dict[str, str] = {}  # as JSON
        self._compared: dict[str, str] = {}
        self._document: str | None = None

    @property
    def document(self) -> str:
        if self._document is None:
            self._document = _object(self._members)
        return self._document

    @property
    def snapshot(self) -> str:
        return f'{{"type":"snapshot","seq":{self.seq},"state":{self.document}}}'

    def update(self, members: dict[str, str], now_s: float) -> str | None:
        """The delta to send; None: nothing has changed that matters."""
        compared = {name: AGES.sub("", text) if name in AGING else text for name, text in members.items()}
        changed = [name for name, text in compared.items() if self._compared.get(name) != text]
        self.made_s, self._members, self._document = now_s, members, None
        if changed == [CARRIED] or not changed:
            return None
        self._compared = compared
        self.seq += 1
        return f'{{"type":"delta","seq":{self.seq},"state":{_object({name: members[name] for name in changed})}}}'


class Live:
    """Those who look at the state, by what they may see."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._journal = Journal(context.hub)
        self._groups: dict[str | None, Group] = {}
        self._stored = Stored()
        self._ask_again_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._queued = Queued(first={}, oldest_at=None)
        self._queued_until_s = float("-inf")
        self._watching: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """By WebSocket, at this moment."""
        return sum(len(group.viewers) for group in self._groups.values())

    def start(self) -> None:
        self._journal.start()

    async def stop(self) -> None:
        tasks = [task for task in (self._watching, self._asking) if task is not None]
        self._watching = self._asking = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._journal.stop()

    async def document(self, client: str | None) -> str:
        """The state as JSON, as it was less than TICK_S ago."""
        await self._asked()
        group = self._group(client)
        self._forget()
        return group.document

    async def stored(self) -> Stored:
        """What only the database knows, as fresh as the page has it."""
        await self._asked()
        return self._stored

    def queued(self) -> Queued:
        """As fresh as the page has it."""
        now_s = clock.monotonic()
        if now_s >= self._queued_until_s:
            self._queued = queued(self._context.scheduler.queued())
            self._queued_until_s = now_s + self._context.scheduler.queued_count * QUEUE_S_PER_JOB
        return self._queued

    @asynccontextmanager
    async def viewer(self, client: str | None) -> AsyncIterator[Viewer]:
        await self._asked()
        group = self._group(client)
        viewer = Viewer(group)
        group.viewers.add(viewer)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="dashboard")
        try:
            yield viewer
        finally:
            group.viewers.discard(viewer)

    def _group(self, client: str | None) -> Group:
        """With a state that is new, or that is kept so."""
        group = self._groups.setdefault(client, Group(client))
        if not group.viewers and clock.monotonic() - group.made_s >= TICK_S:
            self._make(group, {})
        return group

    def _forget(self) -> None:
        now_s = clock.monotonic()
        for client, group in list(self._groups.items()):
            if not group.viewers and now_s - group.made_s > FORGET_S:
                del self._groups[client]

    async def _watch(self) -> None:
        """While anybody watches."""
        with self._context.hub.pulse() as changed:
            while self.viewers:
                changed.clear()
                try:
                    self._ask_in_time()
                    await self._tell()
                except Exception:
                    log.exception("dashboard.broke")
                await asyncio.sleep(TICK_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S - TICK_S):
                        await changed.wait()
        self._watching = None  # and nothing is awaited between the last look at the viewers and this
        self._forget()

    async def _tell(self) -> None:
        """A new state for each group. Few at a time: what else there is to do is done in between."""
        shared: dict[str, str] = {}
        for group in list(self._groups.values()):
            if not group.viewers or clock.monotonic() - group.made_s < TICK_S:
                continue
            delta = self._make(group, shared)
            if delta is None:
                continue
            seq = group.seq
            for number, viewer in enumerate(tuple(group.viewers), start=1):
                viewer.offer(seq, delta)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _make(self, group: Group, shared: dict[str, str]) -> str | None:
        """`shared`: what others see as well, as JSON; it is filled here."""
        now_s = clock.monotonic()
        state = dashboard_state(self._context, group.client, self._stored, self.queued(), self._journal)
        members = {}
        for name, adapter in _MEMBERS.items():
            text = shared.get(name)
            if text is None:
                text = adapter.dump_json(getattr(state, name)).decode()
                if name not in OWN:
                    shared[name] = text
            members[name] = text
        return group.update(members, now_s)

    async def _asked(self) -> None:
        """Returns when the figures of the database are fresh, or it does not answer."""
        self._ask_in_time()
        if self._asking is not None:
            await asyncio.wait({self._asking})

    def _ask_in_time(self) -> None:
        if self._asking is None and clock.monotonic() >= self._ask_again_s:
            self._asking = asyncio.create_task(self._ask(), name="dashboard figures")

    async def _ask(self) -> None:
        context, began_s = self._context, clock.monotonic()
        stored = Stored()
        try:
            if await context.database_answers():
                stored = replace(stored, latency_ms=round((clock.monotonic() - began_s) * 1000, 1))
                async with asyncio.timeout(STORED_TIMEOUT_S):
                    stored = replace(stored, jobs=await context.jobs.counts())
                    stored = replace(stored, callbacks=await context.callbacks.counts())
        except (Unavailable, TimeoutError):
            pass
        except Exception:
            log.exception("dashboard.broke")
        finally:
            self._stored, self._asking = stored, None
            took_s = clock.monotonic() - began_s
            self._ask_again_s = clock.monotonic() + max(STORED_S, took_s / STORED_SHARE)


def _object(members: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}"
