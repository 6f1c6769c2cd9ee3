"""The pipeline that finds out who speaks when: from its name to a directory whose every file was checked."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from gpu_daemon import clock
from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.download import Downloader
from gpu_daemon.catalogue.hub import Hub, Listing
from gpu_daemon.catalogue.hub_pipeline import HubPipeline, OnBytes
from gpu_daemon.catalogue.pins import PINS
from gpu_daemon.catalogue.pipeline_config import HUB_NAME
from gpu_daemon.catalogue.pipeline_directory import Checked, paths_in
from gpu_daemon.catalogue.rate import Rate
from gpu_daemon.catalogue.status import ModelState, ModelStatus
from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.errors import JobError, PipelineGated, PipelineUnavailable
from gpu_daemon.events import EventHub
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.logs import log

DEMO = "demo"
BUNDLED = Path(__file__).parent.parent / "demo" / "pipeline"
SOURCE = "pipeline"
FIRST_RETRY_S, MOST_RETRY_S = 10.0, 600.0
PROGRESS_EVERY_S = 1.0
NOT_FETCHED = (
    "HF_TOKEN is not set: the first job that needs it fetches it, with its own hf_token if there are conditions"
)

_rng = random.SystemRandom()


def _delay_s(failures: int) -> float:
    return backoff_s(failures, first_s=FIRST_RETRY_S, most_s=MOST_RETRY_S, rng=_rng)


class Source(Protocol):
    async def on_disk(self) -> Checked | None:
        """None: it is to be fetched. Raises JobError, OSError."""

    async def fetch(self, token: SecretStr | None, on_bytes: OnBytes) -> Checked:
        """Raises JobError, OSError."""


class LocalPipeline:
    """A directory of somebody's own: whatever is in it when it is looked at is right."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory.absolute()

    async def on_disk(self) -> Checked:
        if not self._directory.is_dir():
            raise PipelineUnavailable("DIARIZATION_MODEL is neither a directory here nor a name of the hub, owner/name")
        paths = await blocking(partial(paths_in, self._directory))
        return await Checked.of(self._name, self._directory, paths)

    async def fetch(self, token: SecretStr | None, on_bytes: OnBytes) -> Checked:  # noqa: ARG002
        return await self.on_disk()


@dataclass(slots=True)
class _Fetch:
    """One try, shared by all who wait for it; it ends when nobody does any more."""

    token: SecretStr | None
    only_look: bool
    task: "asyncio.Task[Checked | JobError | None]" = field(init=False)
    waiting: int = 0


class Pipelines:
    def __init__(
        self,
        name: str,
        directory: Path,
        events: EventHub,
        *,
        endpoint: str,
        token: SecretStr | None = None,
        pins: Mapping[str, Listing] = PINS,
        downloader: Downloader | None = None,
        delay_s: Callable[[int], float] = _delay_s,
    ) -> None:
        """`name`: DIARIZATION_MODEL. `directory`: where pipelines of the hub are kept. `token`: HF_TOKEN."""
        self.name = _shown(name)
        self._events = events
        self._token = token
        self._delay_s = delay_s
        self._downloader = downloader or Downloader()
        self._source = source_of(name, directory, Hub(endpoint, self._downloader), pins)
        self._checked: Checked | None = None
        self._fetch: _Fetch | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._came = asyncio.Event()
        self._stopped = False
        # What is said while nobody fetches: how the daemon's own tries stand, not those with a job's token.
        self._resting: tuple[ModelState, str | None, datetime | None] = (ModelState.VERIFYING, None, None)
        self._busy: ModelState | None = None
        self._done_bytes, self._all_bytes = 0, 0
        self._rate = Rate()
        self._published_s = 0.0

    async def start(self) -> None:
        """Returns at once: what is on the disk is hashed, and what is missing fetched, in the background."""
        self._keeping = asyncio.create_task(self._keep(), name="diarization pipeline")

    async def stop(self) -> None:
        """What was downloaded so far stays for the next start. May be called twice."""
        self._stopped = True
        tasks = [self._keeping, None if self._fetch is None else self._fetch.task]
        self._keeping = None
        running = {task for task in tasks if task is not None}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._downloader.close()

    @property
    def ready(self) -> PipelineSpec | None:
        """What was here when it was looked at last."""
        return None if self._checked is None else self._checked.spec

    @property
    def fetching(self) -> bool:
        """It is on its way: who needs it may wait for that."""
        return self._fetch is not None

    async def spec(self, token: SecretStr | None = None) -> PipelineSpec:
        """Fetched if it is not here: with this token, else with HF_TOKEN, else without one. Waits for one under way.

        Raises PipelineGated, PipelineUnavailable, PipelineChanged.
        """
        return (await self._present(token or self._token)).spec

    def status(self) -> ModelStatus:
        resting, reason, retry_at = self._resting
        state = self._busy or resting
        downloading = state is ModelState.DOWNLOADING
        if self._busy is not None:
            reason, retry_at = None, None
        size_bytes = self._all_bytes or None
        return ModelStatus(
            name=self.name,
            source=SOURCE,
            enabled=True,
            state=state,
            size_bytes=size_bytes,
            done_bytes=self._done_bytes,
            rate_bytes_per_s=self._rate.bytes_per_s(clock.monotonic()) if downloading else None,
            error=reason,
            retry_at=retry_at,
        )

    async def _keep(self) -> None:
        """Until it is here, with whatever token."""
        if isinstance(self._source, HubPipeline) and self._token is None and await self._look() is None:
            if self._checked is None:
                self._rest(ModelState.WAITING, NOT_FETCHED)
            return
        failures = 0
        while self._checked is None:
            self._came.clear()
            try:
                await self._present(self._token)
            except JobError as error:
                failures += 1
                delay_s = self._delay_s(failures)
                self._events.publish("incident", "pipeline", what="pipeline_failed")
                log.warning("pipeline.not_ready", pipeline=self.name, reason=error.message, retry_in_s=delay_s)
                self._rest(ModelState.FAILED, error.message, clock.now() + timedelta(seconds=delay_s))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._came.wait()

    async def _look(self) -> Checked | None:
        """What is on the disk, without asking anybody for more."""
        with contextlib.suppress(JobError):
            return await self._join(token=None, only_look=True)
        return None

    async def _present(self, token: SecretStr | None) -> Checked:
        """Raises JobError."""
        while True:
            if self._checked is not None:
                if await self._checked.unchanged():
                    return self._checked
                self._checked = None
                self._rest(ModelState.WAITING, "its files are no longer as they were")
            if (checked := await self._join(token=token)) is not None:
                return checked

    async def _join(self, *, token: SecretStr | None, only_look: bool = False) -> Checked | None:
        """The outcome of the try that is under way, else of one with this token; None: try again. Raises JobError."""
        if self._stopped:
            raise PipelineUnavailable("the daemon is stopping")
        fetch = self._fetch
        if fetch is None:
            fetch = self._fetch = _Fetch(token, only_look)
            fetch.task = asyncio.create_task(self._obtain(fetch), name=f"fetch {self.name}")
        fetch.waiting += 1
        try:
            await asyncio.wait({fetch.task})
        finally:
            fetch.waiting -= 1
            if not fetch.waiting:
                fetch.task.cancel()  # nothing if it has ended
        outcome = None if fetch.task.cancelled() else fetch.task.result()
        if isinstance(outcome, JobError):
            if isinstance(outcome, PipelineGated) and not _same(fetch.token, token):
                return None  # this one may open what that one did not
            raise outcome
        return outcome

    async def _obtain(self, fetch: _Fetch) -> Checked | JobError | None:
        try:
            self._move(ModelState.VERIFYING)
            checked = await self._source.on_disk()
            if checked is None and not fetch.only_look:
                self._rate = Rate()
                self._move(ModelState.DOWNLOADING)
                checked = await self._source.fetch(fetch.token, self._progress)
        except JobError as error:
            return error
        except OSError as error:
            return PipelineUnavailable(f"the pipeline cannot be read: {error.strerror}")
        except Exception:
            log.exception("pipeline.fetch_broke", pipeline=self.name)
            return PipelineUnavailable("something unexpected went wrong with the pipeline; the daemon's log says what")
        else:
            if checked is not None:
                self._arrived(checked)
            return checked
        finally:
            self._fetch = None
            self._move(None)

    def _arrived(self, checked: Checked) -> None:
        self._checked = checked
        self._done_bytes = self._all_bytes = checked.size_bytes
        self._events.publish("incident", "pipeline", what="pipeline_ready")
        log.info("pipeline.ready", pipeline=self.name, directory=str(checked.spec.directory))
        self._resting = (ModelState.READY, None, None)
        self._came.set()

    def _progress(self, done_bytes: int, all_bytes: int) -> None:
        now_s = clock.monotonic()
        self._done_bytes, self._all_bytes = done_bytes, all_bytes
        self._rate.mark(now_s, done_bytes)
        if now_s - self._published_s >= PROGRESS_EVERY_S:
            self._published_s = now_s
            self._publish()

    def _move(self, state: ModelState | None) -> None:
        """None: nobody is at it."""
        self._busy = state
        self._publish()

    def _rest(self, state: ModelState, reason: str, retry_at: datetime | None = None) -> None:
        self._resting = (state, reason, retry_at)
        self._publish()

    def _publish(self) -> None:
        self.status().publish(self._events)


def source_of(name: str, directory: Path, hub: Hub, pins: Mapping[str, Listing] = PINS) -> Source:
    """`name`: DIARIZATION_MODEL. A directory of that name goes before a repository of that name, as in pyannote."""
    if name == DEMO:
        return LocalPipeline(name, BUNDLED)
    if _is_local(name):
        return LocalPipeline(_shown(name), Path(name).expanduser())
    return HubPipeline(name, directory, hub, pins)


def _is_local(name: str) -> bool:
    return HUB_NAME.fullmatch(name) is None or Path(name).is_dir()


def _shown(name: str) -> str:
    """To clients: where a directory of this machine lies is none of their business."""
    return Path(name).name if name != DEMO and _is_local(name) else name


def _same(one: SecretStr | None, other: SecretStr | None) -> bool:
    return (one and one.get_secret_value()) == (other and other.get_secret_value())
