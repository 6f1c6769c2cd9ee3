import asyncio
import hashlib
import tracemalloc
from pathlib import Path

import pytest

from gpu_daemon.catalogue.hashing import Digest, Stopped, sha256_of

MIB = 1 << 20


async def test_it_is_the_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert await sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


async def test_a_large_file_takes_no_memory_and_does_not_hold_the_loop(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(128 * MIB)
    tracemalloc.start()
    hashing = asyncio.create_task(sha256_of(tmp_path / "file"))
    turns = 0
    while not hashing.done():
        await asyncio.sleep(0.001)
        turns += 1
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert await hashing == "254bcc3fc4f27172636df4bf32de9f107f620d559b20d760197e452b97453917"
    assert peak_bytes < 4 * MIB
    assert turns > 10


async def test_nobody_waits_for_a_hash_that_is_not_wanted_any_more(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 38)  # takes minutes, were it read to its end
    hashing = asyncio.create_task(sha256_of(tmp_path / "file"))
    await asyncio.sleep(0)
    hashing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(hashing, 10)


def test_a_stopped_digest_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    digest = Digest()
    digest.stop()
    with (tmp_path / "file").open("rb") as file, pytest.raises(Stopped):
        digest.update_from(file.fileno())
