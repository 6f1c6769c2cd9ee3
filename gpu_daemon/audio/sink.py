"""A file as it comes from outside: hashed on the way, in constant memory, with room left on the disk."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpu_daemon.audio.wave import START_BYTES
from gpu_daemon.durable import sync
from gpu_daemon.errors import DiskFull

BATCH_BYTES = 1 << 20
"""Worth a thread."""
FREE_CHECK_BYTES = 64 << 20
"""Free space is looked at once for so many bytes."""
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FileSink:
    """Writes and hashes; every method but `close` blocks and belongs in a thread.

    By system calls, and few of them: before and after each the thread waits for the event loop to let go of the GIL.
    """

    def __init__(self, target: Path, *, reserve_bytes: int) -> None:
        self._target = target
        self._reserve_bytes = reserve_bytes
        self._unchecked_bytes = FREE_CHECK_BYTES
        self._sha256 = hashlib.sha256()
        self._descriptor: int | None = None
        self.start = b""
        """The first START_BYTES of what was written."""
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, batch: bytes | bytearray) -> None:
        """Raises DiskFull."""
        with _room():
            if self._descriptor is None:
                with suppress(FileExistsError):
                    os.mkdir(self._target.parent)
                self._descriptor = os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._unchecked_bytes += len(batch)
            if self._unchecked_bytes >= FREE_CHECK_BYTES:
                self._unchecked_bytes = 0
                self._check_free()
            view = memoryview(batch)
            while view:
                view = view[os.write(self._descriptor, view) :]
        self._sha256.update(batch)
        self.size_bytes += len(batch)
        if len(self.start) < START_BYTES:
            self.start = (self.start + bytes(batch[:START_BYTES]))[:START_BYTES]

    def sync(self) -> None:
        """As `sync_file`, of what was written. Raises DiskFull."""
        assert self._descriptor is not None
        with _room():
            os.fsync(self._descriptor)
            _sync_names(self._target)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _check_free(self) -> None:
        if shutil.disk_usage(self._target.parent).free < self._reserve_bytes:
            raise _disk_full()


def _disk_full() -> DiskFull:
    return DiskFull("there is too little disk space for the file; try again later", retry_after_s=60)


@contextmanager
def _room() -> Iterator[None]:
    """Raises DiskFull when there is none."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise _disk_full() from error
        raise


def sync_file(target: Path) -> None:
    """The file, its name and its directory's name will survive a power cut. Blocks. Raises DiskFull."""
    with _room():
        sync(target)
        _sync_names(target)


def _sync_names(target: Path) -> None:
    sync(target.parent)
    sync(target.parent.parent)
