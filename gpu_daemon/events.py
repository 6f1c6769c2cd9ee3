"""What happens inside, for those who watch.

Every listener has a bounded queue of its own; when it is full the oldest event is dropped, and counted.
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

QUEUE_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is `job` (state, stage or progress of `subject`), `segments` (newly heard), `model`, `worker`, `callback`
    or `incident` (what operators care about: `what` it is, and what api/journal.py makes a sentence of)."""

    kind: str
    subject: str
    data: dict[str, Any] = field(default_factory=dict)


class Listener:
    def __init__(self, kinds: Collection[str]) -> None:
        self._kinds = frozenset(kinds)
        self._queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_SIZE)
        self.dropped = 0

    def offer(self, event: Event) -> None:
        if self._kinds and event.kind not in self._kinds:
            return
        if self._queue.full():
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(event)

    async def next(self) -> Event:
        return await self._queue.get()


class EventHub:
    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._pulses: set[asyncio.Event] = set()

    def publish(self, kind: str, subject: str, **data: Any) -> None:
        event = Event(kind, subject, data)
        for listener in self._listeners:
            listener.offer(event)
        for changed in self._watchers.get(subject, ()):
            changed.set()
        for changed in self._pulses:
            changed.set()

    @contextmanager
    def listen(self, *kinds: str) -> Iterator[Listener]:
        """To everything, unless some kinds are named."""
        listener = Listener(kinds)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    @contextmanager
    def watch(self, subject: str) -> Iterator[asyncio.Event]:
        """Set when something happens to `subject`, for who looks for himself what it was: it takes no memory."""
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(subject, set())
        watchers.add(changed)
        try:
            yield changed
        finally:
            watchers.discard(changed)
            if not watchers and self._watchers.get(subject) is watchers:
                del self._watchers[subject]

    @contextmanager
    def pulse(self) -> Iterator[asyncio.Event]:
        """Set when anything happens, for who looks at everything and seldom: it takes no memory."""
        changed = asyncio.Event()
        self._pulses.add(changed)
        try:
            yield changed
        finally:
            self._pulses.discard(changed)
