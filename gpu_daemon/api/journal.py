"""The last things that operators care about, in memory: what the hub calls an `incident`, each as a sentence.

Nothing in it names a file, an address or what was said; a job is named to its own client only.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from gpu_daemon import clock
from gpu_daemon.api.schemas import JournalEvent
from gpu_daemon.events import Event, EventHub

KEPT = 50
SAME_FOR = timedelta(minutes=1)
"""What is said again within so long is not news."""

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    seq: int
    at: datetime
    level: Level
    kind: str
    about: str
    text: str
    to_others: str
    """The text without the job's id."""
    client: str | None
    """Whose job it is about; None: nobody's, or no keys are configured."""

    def seen_by(self, client: str | None) -> JournalEvent:
        named = client is None or client == self.client
        return JournalEvent(
            seq=self.seq,
            at=str(clock.rfc3339(self.at)),
            level=self.level,
            kind=self.kind,
            text=self.text if named else self.to_others,
        )


SENTENCES: Mapping[str, tuple[Level, str]] = {
    "job_failed": ("error", "{about} failed: {code}"),
    "worker_restarted": ("warning", "worker {about} starts its runner again"),
    "worker_quarantined": ("error", "worker {about} is quarantined: its runners die"),
    "worker_drained": ("info", "worker {about} was drained and takes no more jobs"),
    "worker_resumed": ("info", "worker {about} takes jobs again"),
    "model_ready": ("info", "the model {about} is ready"),
    "model_failed": ("error", "the model {about} cannot be used"),
    "pipeline_ready": ("info", "the diarization pipeline is ready"),
    "pipeline_failed": ("error", "the diarization pipeline cannot be used"),
    "callback_dead": ("error", "the callback of {about} was given up"),
    "database_lost": ("error", "the database does not answer"),
    "database_back": ("info", "the database answers again"),
    "drained": ("info", "the daemon was drained and takes no new jobs"),
    "resumed": ("info", "the daemon takes new jobs again"),
    "out_of_memory": ("warning", "worker {about} ran out of memory"),
    "disk_low": ("warning", "too little disk space is left"),
}
"""What an incident is called, and how it is said of its subject."""
OF_JOBS = frozenset({"job_failed", "callback_dead"})
"""Their subject is a job's id."""


class Journal:
    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._seq = 0
        self._following: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Entry]:
        """Newest first."""
        return reversed(self._entries)

    def start(self) -> None:
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name="journal")

    async def stop(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.wait({following})

    def add(self, incident: Event, at: datetime) -> None:
        data = dict(incident.data)
        kind, client, about = data.pop("what"), data.pop("client", None), incident.subject
        level, sentence = SENTENCES[kind]
        of_job = kind in OF_JOBS
        last = next((entry for entry in self if entry.about == about), None)
        if last is not None and last.kind == kind and at - last.at < SAME_FOR:
            return
        self._seq += 1
        self._entries.append(
            Entry(
                seq=self._seq,
                at=at,
                level=level,
                kind=kind,
                about=about,
                text=sentence.format(about=f"job {about}" if of_job else about, **data),
                to_others=sentence.format(about="a job" if of_job else about, **data),
                client=client,
            )
        )

    async def _follow(self) -> None:
        with self._hub.listen("incident") as incidents:
            while True:
                self.add(await incidents.next(), clock.now())
