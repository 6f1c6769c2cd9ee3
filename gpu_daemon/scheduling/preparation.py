"""Fetching and decoding, ahead of the GPUs.

The jobs at the head of the queue are decoded while others run, so that a GPU never waits for ffmpeg; a job that came
with a URL is fetched first, and no worker takes it before its file has come or failed to. They are still `queued` then:
ffmpeg is a child with limits of its own and cannot hurt the daemon, so no attempt is counted for it, and whatever goes
wrong is kept for the worker that claims the job.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from gpu_daemon import clock
from gpu_daemon.audio.decode import Decoded, decode
from gpu_daemon.blocking import blocking
from gpu_daemon.engine.base import KnownVoice
from gpu_daemon.errors import GpuDaemonError, JobCancelled, JobError
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import Job, JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.logs import about, log
from gpu_daemon.scheduling.fetching import SourceFetcher
from gpu_daemon.scheduling.queue import Waiting

SOURCE_NAME = "source"
DECODED_NAME = "audio.s16"
MAX_VOICE_S = 60
"""More than anybody may send of a known speaker: only a file whose length was not known before can be longer."""
FETCHED_AHEAD = 16
"""Jobs whose file is being fetched, or has come and waits for a worker."""
PREPARED_PERCENT = 5.0
"""Of the whole job. What was fetched counts; ffmpeg does not say how far it is."""
LOOKED_AT = 1000
"""Jobs at the head of the queue, at most."""


def voice_name(number: int) -> str:
    """Of the file in which a known speaker is heard, by the speaker's place in the list."""
    return f"voice-{number}"


@dataclass(frozen=True, slots=True)
class Prepared:
    audio: Decoded
    timings: dict[str, float]
    """Seconds by stage."""


Outcome = Prepared | GpuDaemonError


@dataclass(slots=True)
class _Begun:
    is_fetched: bool
    """By URL, rather than uploaded."""
    task: asyncio.Task[Outcome]
    has_file: bool = False
    """Or an error in place of it."""
    percent: float = 0.0


class Preparer:
    def __init__(
        self,
        jobs_dir: Path,
        sources: SourceFetcher,
        *,
        max_duration_s: int,
        at_once: int,
        on_change: Callable[[], None],
        on_progress: Callable[[JobId, float], None],
        is_done: Callable[[Waiting], Awaitable[bool]],
    ) -> None:
        """`on_change`: a job may be taken now, as its file has come or failed to, or there is room to begin another.
        `on_progress` is told what has been fetched, in percent of the whole job. `is_done` is asked when the file has
        come, before anybody may take the job: one that is done already needs nothing more.
        """
        self._jobs_dir = jobs_dir
        self._sources = sources
        self._max_duration_s = max_duration_s
        self._ffmpeg = asyncio.Semaphore(at_once)
        self._ahead_limit = at_once
        self._on_change = on_change
        self._on_progress = on_progress
        self._is_done = is_done
        self._begun: dict[JobId, _Begun] = {}

    def has_room(self, *, for_urls: bool) -> bool:
        """To begin another. `for_urls`: one with a URL would do. What is fetched counts by itself: a slow server must
        not keep ffmpeg from the files that are there."""
        return self._uploaded < self._ahead_limit or (for_urls and self._fetched < FETCHED_AHEAD)

    def look_ahead(self, jobs: Iterable[Waiting], *, for_urls: bool) -> None:
        """Start on the first few of `jobs`; those begun earlier go on, and count. `for_urls`: some have one."""
        for job in islice(jobs, LOOKED_AT):
            if not self.has_room(for_urls=for_urls):
                return
            is_fetched = job.source_url is not None
            if (
                job.audio is None
                and job.id not in self._begun
                and (self._fetched < FETCHED_AHEAD if is_fetched else self._uploaded < self._ahead_limit)
            ):
                self._begin(job)

    @property
    def _fetched(self) -> int:
        return sum(begun.is_fetched for begun in self._begun.values())

    @property
    def _uploaded(self) -> int:
        return len(self._begun) - self._fetched

    def has_file(self, job: Waiting) -> bool:
        """Or need not be waited for any longer: what went wrong is for the worker to record."""
        begun = self._begun.get(job.id)
        return job.source_url is None or (begun is not None and begun.has_file)

    def has_failed(self, job_id: JobId) -> bool:
        """What is known already: the job will never see a runner."""
        begun = self._begun.get(job_id)
        return begun is not None and begun.task.done() and isinstance(begun.task.result(), GpuDaemonError)

    def is_fetching(self, job_id: JobId) -> bool:
        begun = self._begun.get(job_id)
        return begun is not None and not begun.has_file

    def percent(self, job_id: JobId) -> float:
        """Of the whole job."""
        begun = self._begun.get(job_id)
        return 0.0 if begun is None else begun.percent

    async def prepared(self, job: Waiting) -> Prepared:
        """The decoded audio; whoever gets it owns the file. Raises NotMedia, TooLarge, JobError and its like."""
        if job.audio is not None:
            reach(FaultPoint.DECODED)
            return Prepared(job.audio, {Stage.PREPARING.value: 0.0})
        begun = self._begin(job)
        try:
            outcome = await asyncio.shield(begun.task)
        except asyncio.CancelledError:
            await self.discard(job.id)
            raise
        finally:
            if self._begun.get(job.id) is begun:
                del self._begun[job.id]
                self._on_change()
        if isinstance(outcome, GpuDaemonError):
            raise outcome
        return outcome

    async def voices(self, job: Job) -> tuple[KnownVoice, ...]:
        """Of the speakers that the client knows. Raises NotMedia, TooLarge, JobError and its like."""
        directory = self._jobs_dir / job.id
        voices = []
        for number, speaker in enumerate(job.options.known_speakers):
            source, samples = directory / voice_name(number), directory / f"{voice_name(number)}.s16"
            async with self._ffmpeg:
                voice = await decode(source, samples, max_duration_s=MAX_VOICE_S, trim_silence=False, split=False)
            if voice.path != samples:
                await blocking(partial(_copy, voice, samples))
            voices.append(KnownVoice(name=speaker.name, audio_path=samples))
        return tuple(voices)

    async def discard(self, job_id: JobId) -> None:
        """Stop ffmpeg or the fetch if they are at it, and forget the job."""
        begun = self._begun.pop(job_id, None)
        if begun is not None:
            begun.task.cancel()
            await asyncio.wait({begun.task})
            self._on_change()

    async def stop(self) -> None:
        for job_id in list(self._begun):
            await self.discard(job_id)
        await self._sources.close()

    def _begin(self, job: Waiting) -> _Begun:
        begun = self._begun.get(job.id)
        if begun is None:
            stage = Stage.PREPARING if job.source_url is None else Stage.FETCHING
            context = about(job_id=job.id, stage=stage.value)
            task = asyncio.create_task(self._prepare(job), name=f"prepare {job.id}", context=context)
            begun = self._begun[job.id] = _Begun(job.source_url is not None, task, has_file=job.source_url is None)
            task.add_done_callback(lambda _: self._file_came(job.id))
        return begun

    def _file_came(self, job_id: JobId) -> None:
        begun = self._begun.get(job_id)
        if begun is not None and not begun.has_file:
            begun.has_file = True
            self._on_change()

    def _bytes_came(self, job_id: JobId, came_bytes: int, of_bytes: int | None) -> None:
        begun = self._begun.get(job_id)
        if begun is not None and of_bytes:
            percent = round(PREPARED_PERCENT * min(1.0, came_bytes / of_bytes), 1)
            if percent > begun.percent:
                begun.percent = percent
                self._on_progress(job_id, percent)

    async def _prepare(self, job: Waiting) -> Outcome:
        directory, timings = self._jobs_dir / job.id, dict[str, float]()
        source = directory / SOURCE_NAME
        try:
            if job.source_url is not None and not source.is_file():
                since_s = clock.monotonic()
                await self._sources.fetch(
                    job.id,
                    job.source_url,
                    source,
                    attempt=job.attempt,
                    ffmpeg=self._ffmpeg,
                    on_bytes=partial(self._bytes_came, job.id),
                )
                timings[Stage.FETCHING.value] = round(clock.monotonic() - since_s, 3)
                if await self._is_done(job):
                    self._begun.pop(job.id, None)
                    self._on_change()
                    return JobCancelled("the job is done already")
            self._file_came(job.id)
            async with self._ffmpeg:
                since_s = clock.monotonic()
                audio = await decode(
                    source,
                    directory / DECODED_NAME,
                    max_duration_s=self._max_duration_s,
                    trim_silence=job.trim_silence,
                    split=job.split_channels,
                )
        except GpuDaemonError as error:
            return error
        except OSError as error:
            log.error("job.prepare_failed", job_id=job.id, error=str(error))
            return JobError("the audio could not be decoded: no disk space, or its file is gone", code="decode_failed")
        reach(FaultPoint.DECODED)
        timings[Stage.PREPARING.value] = round(clock.monotonic() - since_s, 3)
        return Prepared(audio, timings)


def _copy(voice: Decoded, samples: Path) -> None:
    """What needed no decoding, without its header."""
    samples.write_bytes(voice.path.read_bytes()[voice.first_byte :])
