"""The models that people may ask for: rows of the database on one side, checked files on the other."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.download import Downloader
from gpu_daemon.catalogue.official import OFFICIAL_URLS
from gpu_daemon.catalogue.status import ModelState, ModelStatus
from gpu_daemon.catalogue.supply import Shelf, Supply
from gpu_daemon.catalogue.verified import VerifiedFiles
from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.errors import InvalidRequest, JobError, StartupError, Unavailable
from gpu_daemon.events import EventHub
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.logs import log
from gpu_daemon.store.models import ModelStore

__all__ = ["Catalogue", "ModelState", "ModelStatus"]

DOWNLOADS_AT_ONCE = 2
FIRST_RETRY_S, MOST_RETRY_S = 10.0, 600.0
FOLLOW_AGAIN_S = 5.0
START_PATIENCE_S = 10.0
HOPELESS_RETRY_AFTER_S = 600
INCIDENTS = {ModelState.READY: "model_ready", ModelState.FAILED: "model_failed"}
USUAL_DEFAULT, DEMO = "base", "demo"
SHOWN_CHARACTERS = 100

_rng = random.SystemRandom()


def _delay_s(failures: int) -> float:
    return backoff_s(failures, first_s=FIRST_RETRY_S, most_s=MOST_RETRY_S, rng=_rng)


class Catalogue:
    def __init__(
        self,
        store: ModelStore,
        directory: Path,
        hub: EventHub,
        *,
        sources: Mapping[str, str] = OFFICIAL_URLS,
        downloader: Downloader | None = None,
        delay_s: Callable[[int], float] = _delay_s,
    ) -> None:
        self._store = store
        self._hub = hub
        self._supplies: dict[str, Supply] = {}
        self._shelf = Shelf(
            directory=directory.absolute(),
            sources=sources,
            verified=VerifiedFiles(directory.absolute()),
            downloader=downloader or Downloader(),
            slots=asyncio.Semaphore(DOWNLOADS_AT_ONCE),
            delay_s=delay_s,
        )
        self._published: dict[str, ModelState] = {}
        self._following: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()

    async def start(self) -> None:
        """Returns once the files that are already there are known, unless hashing them takes long; the rest goes on.

        Raises Unavailable when the database is away, StartupError when the directory cannot be made.
        """
        try:
            await blocking(self._make_directory)
            await self._shelf.verified.load()
            await self.refresh()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_PATIENCE_S):
                    for supply in tuple(self._supplies.values()):
                        await supply.looked()
            self._following = asyncio.create_task(self._follow(), name="models")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.wait({following})
        await asyncio.gather(*(supply.stop() for supply in self._supplies.values()))
        await self._shelf.downloader.close()

    async def refresh(self) -> None:
        """Reads the tables, and looks whether files are still there. Raises Unavailable when the database is away."""
        async with self._reading:
            supplies: dict[str, Supply] = {}
            for row in await self._store.rows():
                known = self._supplies.get(row.name)
                keep = known is not None and known.row == row and not await known.stale()
                supplies[row.name] = known if known and keep else Supply(row, self._shelf, self._publish)
            before, self._supplies = self._supplies, supplies
            for name, supply in before.items():
                if supplies.get(name) is not supply:
                    await supply.stop()
            for name, supply in supplies.items():
                if before.get(name) is not supply:
                    supply.start()
            for name in before.keys() - supplies.keys():
                self._hub.publish("model", name, state=ModelState.DISABLED, error="it was removed")

    async def enable(self, name: str, enabled: bool) -> bool:
        """Takes effect before it returns; one that had failed is tried again now. False: there is no such model.

        Raises Unavailable when the database is away.
        """
        if not await self._store.set_enabled(name, enabled):
            return False
        await self.refresh()
        if enabled:
            self.retry(name)
        return True

    def statuses(self) -> tuple[ModelStatus, ...]:
        return tuple(supply.status() for supply in self._supplies.values())

    def status(self, name: str) -> ModelStatus | None:
        supply = self._supplies.get(name)
        return None if supply is None else supply.status()

    @property
    def settled(self) -> bool:
        """Nothing is being downloaded, hashed, or in line for it."""
        still = {ModelState.READY, ModelState.FAILED, ModelState.DISABLED}
        return all(supply.state in still for supply in self._supplies.values())

    def default(self, setting: str | None) -> str:
        """`setting` is DEFAULT_MODEL, which `check` judges. Raises InvalidRequest when there is none to choose."""
        enabled = self._enabled()
        if setting is not None:
            return setting
        if USUAL_DEFAULT in enabled:
            return USUAL_DEFAULT
        candidates = [name for name in enabled if name != DEMO] or enabled
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise InvalidRequest("no model is enabled", param="model", code="model_not_found")
        raise InvalidRequest(f"say which model: one of {', '.join(enabled)}", param="model")

    def check(self, name: str) -> None:
        """Whether a job for it may be accepted: one that is still coming counts. Raises InvalidRequest, Unavailable."""
        supply = self._supplies.get(name)
        if supply is None or not supply.row.enabled:
            enabled = ", ".join(self._enabled()) or "none"
            raise InvalidRequest(
                f"there is no model {name[:SHOWN_CHARACTERS]!r} here; enabled: {enabled}",
                param="model",
                code="model_not_found",
            )
        if supply.state is ModelState.FAILED:
            raise Unavailable(
                f"the model {name} cannot be used: {supply.error}",
                retry_after_s=HOPELESS_RETRY_AFTER_S if supply.retry_in_s is None else max(1, supply.retry_in_s),
                code="model_unavailable",
                param="model",
            )

    def spec(self, name: str) -> ModelSpec | None:
        """Of a model that is ready."""
        supply = self._supplies.get(name)
        return None if supply is None else supply.spec

    async def wait(self, name: str) -> ModelSpec:
        """Waits while it is coming. Raises JobError once it has failed, or is disabled or removed."""
        with self._hub.listen() as events:
            while True:
                supply = self._supplies.get(name)
                if supply is None or not supply.row.enabled:
                    raise JobError(f"the model {name} is not enabled any more", code="model_unavailable")
                if supply.spec is not None:
                    return supply.spec
                if supply.state is ModelState.FAILED:
                    raise JobError(f"the model {name} cannot be used: {supply.error}", code="model_unavailable")
                await events.next()

    def retry(self, name: str) -> None:
        """Try a failed one again now; nothing if it has not failed."""
        supply = self._supplies.get(name)
        if supply is not None:
            supply.retry()

    def _enabled(self) -> list[str]:
        return [name for name, supply in self._supplies.items() if supply.row.enabled]

    async def _follow(self) -> None:
        while True:
            try:
                async with aclosing(self._store.changes()) as changes:
                    async for _ in changes:
                        with contextlib.suppress(Unavailable):  # the next notice or poll looks again
                            await self.refresh()
            except Exception:
                log.exception("catalogue.following_broke")
            await asyncio.sleep(FOLLOW_AGAIN_S)

    def _publish(self, supply: Supply) -> None:
        status = supply.status()
        if self._published.get(status.name) is not status.state:
            self._published[status.name] = status.state
            if (what := INCIDENTS.get(status.state)) is not None:
                self._hub.publish("incident", status.name, what=what)
        status.publish(self._hub)

    def _make_directory(self) -> None:
        directory = self._shelf.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(f"DATA_DIR: cannot make {directory}: {error.strerror}") from error
