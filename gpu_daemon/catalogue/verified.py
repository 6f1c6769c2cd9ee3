"""Which files were hashed, and to what: gigabytes are not read again at each start."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.hashing import sha256_of
from gpu_daemon.logs import log

FILE_NAME = "verified.json"


class VerifiedFiles:
    """A file that keeps its size and time of change keeps its hash. Remembered in a small JSON file."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE_NAME
        self._hashes: dict[str, dict[str, Any]] = {}
        self._writing = asyncio.Lock()

    async def load(self) -> None:
        try:
            text = await blocking(self._file.read_text)
            hashes = json.loads(text)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("catalogue.memo_unreadable", file=str(self._file), error=str(error))
            return
        if isinstance(hashes, dict):
            self._hashes = {path: entry for path, entry in hashes.items() if isinstance(entry, dict)}

    async def sha256(self, path: Path, on_hashing: Callable[[], None]) -> str:
        """`on_hashing` is called if it takes reading the file. Raises OSError."""
        state = await blocking(lambda: _state(path))
        known = self._hashes.get(str(path))
        if known is not None and {**state, "sha256": known.get("sha256")} == known:
            return str(known["sha256"])
        on_hashing()
        sha256 = await sha256_of(path)
        if await blocking(lambda: _state(path)) == state:
            await self._remember(path, state, sha256)
        return sha256

    async def remember(self, path: Path, sha256: str) -> None:
        """Of a file hashed by somebody else."""
        await self._remember(path, await blocking(lambda: _state(path)), sha256)

    async def unchanged(self, path: Path, sha256: str) -> bool:
        """Whether the file is still there as it was hashed."""
        try:
            state = await blocking(lambda: _state(path))
        except OSError:
            return False
        return self._hashes.get(str(path)) == {**state, "sha256": sha256}

    async def _remember(self, path: Path, state: dict[str, int], sha256: str) -> None:
        self._hashes[str(path)] = {**state, "sha256": sha256}
        async with self._writing:
            text = json.dumps(self._hashes, indent=1)
            try:
                await blocking(lambda: self._write(text))
            except OSError as error:  # the next start hashes again: slower, not wrong
                log.warning("catalogue.memo_not_written", file=str(self._file), error=str(error))

    def _write(self, text: str) -> None:
        new = self._file.with_name(f"{FILE_NAME}.{os.getpid()}")
        try:
            new.write_text(text)
            new.replace(self._file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
