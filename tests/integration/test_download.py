import asyncio
import errno
import hashlib
import os
import resource
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from gpu_daemon.catalogue import download
from gpu_daemon.catalogue.download import Downloader, DownloadFailed
from gpu_daemon.catalogue.official import sha256_in
from gpu_daemon.catalogue.part import Busy, PartFile
from tests.origin import Origin, Reply, checkpoint

CONTENT = checkpoint()
SIZE = len(CONTENT)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    origin = Origin()
    await origin.start()
    yield origin
    await origin.stop()


@pytest.fixture
async def downloader() -> AsyncIterator[Downloader]:
    downloader = Downloader()
    yield downloader
    await downloader.close()


class Fetch:
    """One file of one origin, fetched as often as asked."""

    def __init__(self, downloader: Downloader, url: str, directory: Path) -> None:
        self.downloader, self.url = downloader, url
        self.target = directory / "tiny.pt"
        self.part = directory / "tiny.pt.part"
        self.progress: list[tuple[int, int | None]] = []

    async def __call__(self) -> bool:
        sha256 = sha256_in(self.url)
        return await self.downloader.fetch(self.url, sha256, self.target, lambda *p: self.progress.append(p))

    def leave(self, content: bytes) -> None:
        """As an earlier download would."""
        self.part.write_bytes(content)


@pytest.fixture
def fetch(downloader: Downloader, origin: Origin, tmp_path: Path) -> Fetch:
    return Fetch(downloader, origin.publish("tiny", CONTENT), tmp_path)


async def test_a_whole_file(fetch: Fetch, origin: Origin, tmp_path: Path) -> None:
    assert await fetch()
    assert fetch.target.read_bytes() == CONTENT
    assert fetch.progress[0] == (0, SIZE)
    assert fetch.progress[-1] == (SIZE, SIZE)
    assert origin.ranges == [None]
    assert os.listdir(tmp_path) == ["tiny.pt"]


async def test_it_takes_up_where_the_connection_was_cut(fetch: Fetch, origin: Origin) -> None:
    origin.plan(Reply(cut_after=123_457))
    with pytest.raises(DownloadFailed, match=r"the connection to 127\.0\.0\.1 was cut"):
        await fetch()
    assert not fetch.target.exists()
    assert fetch.part.read_bytes() == CONTENT[:123_457]
    assert await fetch()
    assert origin.ranges == [None, "123457"]
    assert fetch.target.read_bytes() == CONTENT
    assert (123_457, SIZE) in fetch.progress


async def test_a_server_without_ranges_starts_over(fetch: Fetch, origin: Origin) -> None:
    fetch.leave(CONTENT[:200_000])
    origin.plan(Reply(ignore_range=True))
    assert await fetch()
    assert origin.ranges == ["200000"]
    assert fetch.progress[0] == (0, SIZE)
    assert fetch.target.read_bytes() == CONTENT


async def test_a_server_that_sends_another_range_is_not_believed(fetch: Fetch, origin: Origin) -> None:
    fetch.leave(CONTENT[:200_000])
    origin.plan(Reply(wrong_range=True))
    with pytest.raises(DownloadFailed, match="starts over"):
        await fetch()
    assert fetch.part.stat().st_size == 0
    assert await fetch()
    assert fetch.target.read_bytes() == CONTENT


async def test_everything_had_come_but_was_not_put_in_place(fetch: Fetch, origin: Origin) -> None:
    fetch.leave(CONTENT)
    assert await fetch()
    assert origin.ranges == [str(SIZE)]
    assert fetch.target.read_bytes() == CONTENT


async def test_a_part_that_is_longer_than_the_file(fetch: Fetch) -> None:
    fetch.leave(CONTENT + b"?")
    with pytest.raises(DownloadFailed, match="starts over"):
        await fetch()
    assert await fetch()
    assert fetch.target.read_bytes() == CONTENT


async def test_a_part_with_holes_is_thrown_away(fetch: Fetch) -> None:
    fetch.leave(bytes(200_000))  # what a power cut may leave
    with pytest.raises(DownloadFailed, match="not what was published"):
        await fetch()
    assert not fetch.part.exists()
    assert await fetch()
    assert fetch.target.read_bytes() == CONTENT


async def test_a_wrong_hash(fetch: Fetch, origin: Origin, tmp_path: Path) -> None:
    origin.plan(Reply(corrupt=True))
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1 sent is not what was published.*thrown away"):
        await fetch()
    assert os.listdir(tmp_path) == []
    assert fetch.progress[-1] == (0, None)


async def test_a_body_whose_length_is_not_said(fetch: Fetch, origin: Origin) -> None:
    origin.plan(Reply(chunked=True))
    assert await fetch()
    assert fetch.target.read_bytes() == CONTENT
    assert fetch.progress[-1] == (SIZE, None)


async def test_an_error_of_the_server(fetch: Fetch, origin: Origin) -> None:
    origin.plan(Reply(status=404), Reply(status=503))
    for status in (404, 503):
        with pytest.raises(DownloadFailed, match=rf"^127\.0\.0\.1 answered {status}"):
            await fetch()


async def test_a_server_that_is_down(fetch: Fetch, origin: Origin) -> None:
    await origin.stop()
    with pytest.raises(DownloadFailed, match=r"^could not reach 127\.0\.0\.1 \(.*[Cc]onnect.*\)$"):
        await fetch()


async def test_a_name_that_does_not_resolve(
    downloader: Downloader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    url = "https://openaipublic.azureedge.net/main/whisper/models/00/tiny.pt"
    with pytest.raises(DownloadFailed) as raised:
        await downloader.fetch(url, "00", tmp_path / "tiny.pt", lambda *_: None)
    assert str(raised.value) == "could not reach openaipublic.azureedge.net (Name or service not known)"


async def test_a_server_that_falls_silent(fetch: Fetch, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_TIMEOUT_S", 0.1)
    origin.plan(Reply(hold_after=100_000))
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1 sent nothing for 0\.1 s"):
        await fetch()
    assert fetch.part.read_bytes() == CONTENT[:100_000]
    origin.release()


async def test_cancelling_leaves_what_came(fetch: Fetch, origin: Origin) -> None:
    origin.plan(Reply(hold_after=100_000))
    fetching = asyncio.create_task(fetch())
    await origin.held()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    origin.release()
    assert not fetch.target.exists()
    assert await fetch(), "the lock was given back"


async def test_no_room_is_seen_before_anything_is_written(origin: Origin, tmp_path: Path) -> None:
    downloader = Downloader(free_bytes=lambda directory: 100_000)
    fetch = Fetch(downloader, origin.publish("tiny", checkpoint(3_000_000)), tmp_path)
    with pytest.raises(DownloadFailed, match="no room on the disk: 3 MB are to come, 0 MB are free"):
        await fetch()
    assert fetch.part.stat().st_size == 0
    await downloader.close()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
async def test_the_disk_is_full_in_the_middle(fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="the disk is full"):
        await fetch()
    assert os.listdir(tmp_path) == [], "the room is given back to the jobs"
    assert fetch.progress[-1] == (0, None)


async def test_a_directory_that_cannot_be_written_to(downloader: Downloader, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fetch = Fetch(downloader, origin.publish("tiny", CONTENT), tmp_path / "file")
    with pytest.raises(DownloadFailed) as raised:
        await fetch()
    assert str(raised.value) == f"cannot write to the models' directory: {os.strerror(errno.ENOTDIR)}"


async def test_two_at_once_do_not_mix(fetch: Fetch, origin: Origin) -> None:
    other = Downloader()
    origin.plan(Reply(hold_after=100_000))
    first = asyncio.create_task(fetch())
    await origin.held()
    with pytest.raises(Busy):
        await Fetch(other, fetch.url, fetch.target.parent)()
    origin.release()
    assert await first
    assert not await Fetch(other, fetch.url, fetch.target.parent)(), "the other finds that it is there"
    assert origin.ranges == [None]
    assert os.listdir(fetch.target.parent) == ["tiny.pt"]
    await other.close()


def test_the_lock_is_not_taken_on_a_file_that_has_moved(tmp_path: Path) -> None:
    """Between opening and locking, the one who held the lock may put the file in its place."""
    target = tmp_path / "tiny.pt"
    holder = PartFile(target)
    holder.open()
    holder.append(CONTENT)
    stale = os.open(tmp_path / "tiny.pt.part", os.O_RDWR)
    holder.publish()
    holder.close()
    next_one = PartFile(target)
    next_one.open()
    assert not next_one._is_still(stale)
    assert next_one.size_bytes == 0
    os.close(stale)
    next_one.close()
    assert target.read_bytes() == CONTENT


async def test_memory_does_not_grow_with_the_file(downloader: Downloader, origin: Origin, tmp_path: Path) -> None:
    content = bytes(48 << 20)
    fetch = Fetch(downloader, origin.publish("tiny", content), tmp_path)
    fetch.leave(content[: 20 << 20])
    await httpx2.AsyncClient(trust_env=False).aclose()  # what is made once is no growth
    tracemalloc.start()
    await fetch()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert hashlib.sha256(fetch.target.read_bytes()).hexdigest() == sha256_in(fetch.url)
    # The origin's own copy of the rest (28 MiB) is counted in.
    assert peak_bytes < (28 + 12) << 20
