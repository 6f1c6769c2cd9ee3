"""The body of a submission straight to disk: hashed on the way, capped in every direction, in constant memory."""

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gpu_daemon import clock
from gpu_daemon.api.form import FormReader
from gpu_daemon.errors import DiskFull, TooSlow

BATCH_BYTES = 1 << 20
FREE_CHECK_BYTES = 64 << 20
"""Free space is looked at once for so many bytes."""
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadLimits:
    file_bytes: int
    reserve_bytes: int
    """So much of the disk stays free."""
    idle_s: float = 30.0
    """The longest that nothing may come."""
    least_bytes_per_s: int = 4096
    """On average, looked at after `idle_s`."""
    total_s: float = 4 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    fields: Mapping[str, list[str]]
    file_name: str
    size_bytes: int
    sha256: str


async def receive_upload(
    receive: Receive,
    content_type: str | None,
    target: Path,
    limits: UploadLimits,
    *,
    on_file: Callable[[dict[str, list[str]]], None],
) -> Upload:
    """The fields, and the file in `target`, whose directory is made here and is the caller's to remove. Not synced yet.

    Raises InvalidRequest and its like, DiskFull, ClientDisconnect.
    """
    form = FormReader(content_type, max_file_bytes=limits.file_bytes, on_file=on_file)
    sink = FileSink(target, reserve_bytes=limits.reserve_bytes)
    pace = _Pace(limits)
    try:
        more = True
        while more:
            body, more = await pace.next(receive)
            form.feed(body)
            if form.waiting_bytes >= BATCH_BYTES:
                await in_thread(partial(sink.write, form.take()))
        file_name = form.finish()
        await in_thread(partial(sink.write, form.take()))
    finally:
        sink.close()
    return Upload(fields=form.fields, file_name=file_name, size_bytes=form.file_size_bytes, sha256=sink.sha256)


class _Pace:
    """A client may be slow, but it must not stall, and must come to an end."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._began = clock.monotonic()
        self._bytes = 0

    async def next(self, receive: Receive) -> tuple[bytes, bool]:
        """A piece of the body, and whether there are more. Raises TooSlow, ClientDisconnect."""
        limits = self._limits
        left_s = self._began + limits.total_s - clock.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(limits.idle_s, left_s))):
                message = await receive()
        except TimeoutError:
            raise TooSlow("the upload stalled; send it again") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body: bytes = message.get("body", b"")
        self._bytes += len(body)
        took_s = clock.monotonic() - self._began
        if took_s > limits.idle_s and self._bytes < took_s * limits.least_bytes_per_s:
            raise TooSlow(f"the upload is slower than {limits.least_bytes_per_s} bytes per second")
        return body, bool(message.get("more_body", False))


class FileSink:
    """Writes and hashes; every method but `close` blocks and belongs in a thread."""

    def __init__(self, target: Path, *, reserve_bytes: int) -> None:
        self._target = target
        self._reserve_bytes = reserve_bytes
        self._unchecked_bytes = FREE_CHECK_BYTES
        self._sha256 = hashlib.sha256()
        self._file: BinaryIO | None = None

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, batch: bytes | bytearray) -> None:
        """Raises DiskFull."""
        try:
            if self._file is None:
                self._target.parent.mkdir()
                self._file = self._target.open("xb", buffering=0)
            self._unchecked_bytes += len(batch)
            if self._unchecked_bytes >= FREE_CHECK_BYTES:
                self._unchecked_bytes = 0
                self._check_free()
            view = memoryview(batch)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno in NO_SPACE:
                raise _disk_full() from error
            raise
        self._sha256.update(batch)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _check_free(self) -> None:
        if shutil.disk_usage(self._target.parent).free < self._reserve_bytes:
            raise _disk_full()


def _disk_full() -> DiskFull:
    return DiskFull("there is too little disk space for the file; try again later", retry_after_s=60)


def sync(target: Path) -> None:
    """The file, its name and its directory's name will survive a power cut. Blocks. Raises DiskFull."""
    try:
        for path in (target, target.parent, target.parent.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise _disk_full() from error
        raise


async def in_thread(work: Callable[[], None]) -> None:
    """`asyncio.to_thread`, but a caller that is cancelled meanwhile still waits: the files are its own afterwards."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        running.exception()  # seen: the cancellation is what matters
        raise
