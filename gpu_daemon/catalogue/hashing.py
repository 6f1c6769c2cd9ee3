"""SHA-256 of checkpoints: gigabytes, in constant memory, in threads that stop when nobody waits any more."""

import hashlib
import os
import threading
from pathlib import Path

from gpu_daemon.blocking import blocking

BLOCK_BYTES = 1 << 20  # hashlib lets other threads run during blocks this large


class Stopped(Exception):
    """Nobody waits for the hash any more."""


class Digest:
    """A SHA-256 that grows. Blocks: call it in a thread."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._stop = threading.Event()

    def update(self, data: bytes | bytearray) -> None:
        self._sha256.update(data)

    def update_from(self, descriptor: int) -> int:
        """The file from its beginning to its end; its size in bytes. Raises Stopped, OSError."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        position = 0
        while got := os.preadv(descriptor, [buffer], position):
            if self._stop.is_set():
                raise Stopped
            self._sha256.update(buffer[:got])
            position += got
        return position

    def stop(self) -> None:
        """From any thread: `update_from` raises Stopped within a block."""
        self._stop.set()

    def hex(self) -> str:
        return self._sha256.hexdigest()


async def sha256_of(path: Path) -> str:
    """Raises OSError."""
    digest = Digest()

    def read() -> str:
        with path.open("rb") as file:
            digest.update_from(file.fileno())
        return digest.hex()

    return await blocking(read, on_cancel=digest.stop)
