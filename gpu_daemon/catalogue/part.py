"""A file that is being downloaded."""

import fcntl
import os
from pathlib import Path

from gpu_daemon.catalogue.hashing import Digest
from gpu_daemon.durable import sync
from gpu_daemon.faultpoints import FaultPoint, reach


class Busy(Exception):
    """Another process, or another catalogue of this one, is downloading the same file."""


class PartFile:
    """`NAME.part` beside the file it is to become, locked while it is open. Everything but `close` and `stop` blocks.

    There is no file under the final name before every byte of it is on the disk and its hash was right.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(target.name + ".part")
        self._descriptor: int | None = None
        self._digest = Digest()
        self.size_bytes = 0

    def open(self) -> None:
        """Takes up what an earlier download left. Raises Busy, OSError, Stopped."""
        while self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_still(descriptor):
                    self._descriptor, descriptor = descriptor, -1
            except BlockingIOError as error:
                raise Busy from error
            finally:
                if descriptor != -1:
                    os.close(descriptor)
        self.size_bytes = self._digest.update_from(self._descriptor)

    def stop(self) -> None:
        """Ends a long `open` from another thread."""
        self._digest.stop()

    def append(self, data: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, self.size_bytes)
            self._digest.update(bytes(view[:written]))
            self.size_bytes += written
            view = view[written:]
        reach(FaultPoint.PART_WRITTEN)

    def restart(self) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        self._digest = Digest()
        self.size_bytes = 0

    def sha256(self) -> str:
        return self._digest.hex()

    def publish(self) -> None:
        """Makes it the final file, in a way that a power cut cannot halve."""
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        reach(FaultPoint.PART_SYNCED)
        self._path.rename(self._target)
        sync(self._target.parent)
        reach(FaultPoint.PUBLISHED)

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _is_still(self, descriptor: int) -> bool:
        """Whether the name still means the file we hold: its last owner may have renamed or removed it meanwhile."""
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))
