"""One model's way from its row to a file that may be loaded."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gpu_daemon import clock
from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.download import Downloader, DownloadFailed
from gpu_daemon.catalogue.official import ALIASES, NAME_BY_SHA256, file_name_in, sha256_in
from gpu_daemon.catalogue.part import Busy
from gpu_daemon.catalogue.rate import Rate
from gpu_daemon.catalogue.status import ModelState, ModelStatus
from gpu_daemon.catalogue.verified import VerifiedFiles
from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.logs import log
from gpu_daemon.store.models import ModelRow

BUNDLED = "bundled:"
BUNDLED_DIRECTORY = Path(__file__).parent.parent / "demo"
PROGRESS_EVERY_S = 1.0


class Unusable(Exception):
    """Why a row gives no file. `hopeless`: nothing but another row can help, so there is no second try."""

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """What all supplies of a catalogue share."""

    directory: Path
    """Absolute: the runner works elsewhere."""
    sources: Mapping[str, str]
    verified: VerifiedFiles
    downloader: Downloader
    slots: asyncio.Semaphore
    delay_s: Callable[[int], float]
    """Seconds to wait after that many failures in a row."""


class Supply:
    def __init__(self, row: ModelRow, shelf: Shelf, publish: Callable[["Supply"], None]) -> None:
        self.row = row
        self.spec: ModelSpec | None = None
        self.state = ModelState.WAITING if row.enabled else ModelState.DISABLED
        self._shelf = shelf
        self._publish = publish
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._retry = asyncio.Event()
        self._size_bytes: int | None = None
        self._done_bytes = 0
        self._first_bytes: int | None = None
        """On the disk when the last download began."""
        self._rate = Rate()
        self._published_s = 0.0
        self._reason: str | None = None
        self._retry_at: datetime | None = None

    def start(self) -> None:
        if self.row.enabled and self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supply of {self.row.name}")
        elif not self.row.enabled:
            self._looked.set()
        self._publish(self)

    async def stop(self) -> None:
        """What was downloaded so far stays for the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def looked(self) -> None:
        """Returns once it is known whether a usable file is already on the disk."""
        await self._looked.wait()

    def retry(self) -> None:
        """Ends a wait for the next try."""
        self._retry.set()

    async def stale(self) -> bool:
        """Whether the file it calls ready has gone or changed since."""
        if self.spec is None or self._sha256 is None:
            return False
        return not await self._shelf.verified.unchanged(self.spec.path, self._sha256)

    @property
    def retry_in_s(self) -> int | None:
        if self._retry_at is None:
            return None
        return max(0, math.ceil((self._retry_at - clock.now()).total_seconds()))

    @property
    def error(self) -> str | None:
        if self._reason is None or self.retry_in_s is None:
            return self._reason
        return f"{self._reason}; next try in {self.retry_in_s} s"

    def status(self) -> ModelStatus:
        downloading = self.state is ModelState.DOWNLOADING
        return ModelStatus(
            name=self.row.name,
            source=self.row.source,
            enabled=self.row.enabled,
            state=self.state,
            size_bytes=self._size_bytes,
            done_bytes=self._done_bytes,
            rate_bytes_per_s=self._rate.bytes_per_s(clock.monotonic()) if downloading else None,
            error=self.error,
            retry_at=self._retry_at,
        )

    @property
    def _sha256(self) -> str | None:
        if self.row.source == "file":
            return None if self.row.sha256 is None else self.row.sha256.strip().lower()
        url = self._shelf.sources.get(self.row.name)
        return None if url is None else sha256_in(url)

    async def _run(self) -> None:
        failures = 0
        while True:
            hopeless, state = False, ModelState.FAILED
            try:
                await self._obtain()
                return
            except Busy:
                reason, state = "it is already being downloaded by another process", ModelState.WAITING
            except (Unusable, DownloadFailed) as error:
                reason, hopeless = str(error), isinstance(error, Unusable) and error.hopeless
            except Exception:
                log.exception("model.supply_broke", model=self.row.name)
                reason = "something unexpected went wrong; the daemon's log says what"
            finally:
                self._looked.set()
            # Whoever gets a little further each time is not failing: a cut line of a long download is taken up soon.
            gained = self._first_bytes is not None and self._done_bytes > self._first_bytes
            failures = 1 if gained or state is ModelState.WAITING else failures + 1
            await self._pause(state, reason, None if hopeless else self._shelf.delay_s(failures))

    async def _pause(self, state: ModelState, reason: str, delay_s: float | None) -> None:
        log.warning("model.not_ready", model=self.row.name, state=state.value, reason=reason, retry_in_s=delay_s)
        self._retry.clear()
        self._move(state, reason, None if delay_s is None else clock.now() + timedelta(seconds=delay_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._retry.wait()
        self._move(ModelState.WAITING)

    async def _obtain(self) -> None:
        """Raises Unusable, DownloadFailed, Busy."""
        if self.row.source == "file":
            path, official = await self._local(), NAME_BY_SHA256.get(self._sha256 or "")
        else:
            path, official = await self._downloaded(), ALIASES.get(self.row.name, self.row.name)
        self._size_bytes = self._done_bytes = (await blocking(path.stat)).st_size
        self.spec = ModelSpec(name=self.row.name, path=path, sha256=self._sha256 or "", official=official)
        log.info("model.ready", model=self.row.name, size_bytes=self._size_bytes)
        self._move(ModelState.READY)

    async def _local(self) -> Path:
        path, sha256 = _local_path(self.row.path), self._sha256
        if not sha256:
            raise Unusable("its row has no sha256", hopeless=True)
        found = await self._hash(path)
        if found is None:
            raise Unusable("its file does not exist")
        if found != sha256:
            raise Unusable(f"its file is not the one that its row means (SHA-256 {found[:12]}…, not {sha256[:12]}…)")
        return path

    async def _downloaded(self) -> Path:
        url = self._shelf.sources.get(self.row.name)
        if url is None:
            names = ", ".join(self._shelf.sources)
            raise Unusable(f"openai has no model of this name; it has {names}", hopeless=True)
        target, sha256 = self._shelf.directory / file_name_in(url), sha256_in(url)
        while (found := await self._hash(target)) != sha256:
            if found is not None:
                log.warning("model.damaged", model=self.row.name, file=str(target), sha256=found)
                await blocking(lambda: target.unlink(missing_ok=True))
            self._looked.set()
            self._move(ModelState.WAITING)
            async with self._shelf.slots:
                self._rate, self._first_bytes = Rate(), None
                self._move(ModelState.DOWNLOADING)
                if await self._shelf.downloader.fetch(url, sha256, target, self._progress):
                    await self._shelf.verified.remember(target, sha256)
        return target

    async def _hash(self, path: Path) -> str | None:
        """None: there is no file. Raises Unusable."""
        try:
            return await self._shelf.verified.sha256(path, lambda: self._move(ModelState.VERIFYING))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(f"its file cannot be read: {error.strerror}") from error

    def _progress(self, done_bytes: int, size_bytes: int | None) -> None:
        now_s = clock.monotonic()
        if self._first_bytes is None:
            self._first_bytes = done_bytes
        self._done_bytes = done_bytes
        self._size_bytes = size_bytes or self._size_bytes
        self._rate.mark(now_s, done_bytes)
        if now_s - self._published_s >= PROGRESS_EVERY_S:
            self._published_s = now_s
            self._publish(self)

    def _move(self, state: ModelState, reason: str | None = None, retry_at: datetime | None = None) -> None:
        if (state, reason, retry_at) != (self.state, self._reason, self._retry_at):
            self.state, self._reason, self._retry_at = state, reason, retry_at
            self._publish(self)


def _local_path(path: str | None) -> Path:
    if path is not None and path.startswith(BUNDLED):
        name = path.removeprefix(BUNDLED)
        if name and Path(name).name == name:
            return BUNDLED_DIRECTORY / name
    elif path is not None and Path(path).is_absolute():
        return Path(path)
    raise Unusable("the path in its row must be absolute, or bundled:NAME", hopeless=True)
