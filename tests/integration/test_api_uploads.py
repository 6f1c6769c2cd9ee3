"""Receiving an upload: its pace, its disk, its memory."""

import asyncio
import hashlib
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from gpu_daemon.api.uploads import Upload, receive_upload
from gpu_daemon.audio.pace import FileLimits
from gpu_daemon.audio.probe import examine
from gpu_daemon.audio.sink import BATCH_BYTES, sync_file
from gpu_daemon.blocking import blocking
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.errors import DiskFull, InvalidRequest, TooSlow
from tests.running import FAKE_ENGINE, running_daemon
from tests.serving import tone

TYPE = "multipart/form-data; boundary=b"
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
END = b"\r\n--b--\r\n"
MIB = 1 << 20


class Wire:
    """What a server hands to the app, a piece at a time."""

    def __init__(
        self, *pieces: bytes, pause_s: float = 0.0, then_hang: bool = False, then_hang_up: bool = False
    ) -> None:
        self._pieces = list(pieces)
        self._pause_s = pause_s
        self._then_hang = then_hang
        self._then_hang_up = then_hang_up

    async def __call__(self) -> Message:
        await asyncio.sleep(self._pause_s)
        if self._pieces:
            piece = self._pieces.pop(0)
            more = bool(self._pieces) or self._then_hang or self._then_hang_up
            return {"type": "http.request", "body": piece, "more_body": more}
        if self._then_hang:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}


def limits(**changes: Any) -> FileLimits:
    return FileLimits(**{"file_bytes": 64 * MIB, "reserve_bytes": 0} | changes)


async def receive(wire: Wire, target: Path, **changes: Any) -> Upload:
    return await receive_upload(wire, TYPE, target, limits(**changes), on_file=lambda fields: None)


async def test_what_is_written_is_what_was_sent_and_its_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * (5 * BATCH_BYTES // 256) + b"tail"
    pieces = [content[i : i + 65536] for i in range(0, len(content), 65536)]
    target = tmp_path / "job" / "source"
    upload = await receive(Wire(HEAD, *pieces, END), target)
    await blocking(lambda: sync_file(target))
    assert target.read_bytes() == content
    assert upload == Upload(
        fields={}, file_name="a.wav", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


async def test_a_file_that_needs_no_ffmpeg_is_known_and_synced_at_once(tmp_path: Path) -> None:
    target = tmp_path / "job" / "source"
    upload = await receive(Wire(HEAD, tone(1.5), END), target)
    assert upload.plain == await examine(target, 10)
    assert (await receive(Wire(HEAD, tone(1.5)[:-1], END), tmp_path / "other" / "source")).plain is None


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    upload = await receive(Wire(HEAD, END), tmp_path / "job" / "source")
    assert upload.size_bytes == 0
    assert (tmp_path / "job" / "source").read_bytes() == b""


@pytest.mark.parametrize(
    ("wire", "changes", "said"),
    [
        (Wire(HEAD, b"x", then_hang=True), {"idle_s": 0.1}, "stalled"),
        (Wire(then_hang=True), {"idle_s": 0.1}, "stalled"),
        (Wire(HEAD, *[b"x"] * 100, pause_s=0.02), {"idle_s": 0.2, "least_bytes_per_s": 10_000}, "slower than"),
        (Wire(HEAD, *[b"x"] * 1000, pause_s=0.02), {"total_s": 0.3, "least_bytes_per_s": 0}, "stalled"),
    ],
    ids=["stalls", "never begins", "drips", "never ends"],
)
async def test_a_body_that_does_not_come_is_not_waited_for(
    tmp_path: Path, wire: Wire, changes: dict[str, float], said: str
) -> None:
    with pytest.raises(TooSlow, match=said):
        await receive(wire, tmp_path / "job" / "source", **changes)


async def test_a_slow_body_that_is_fast_enough_is_read(tmp_path: Path) -> None:
    wire = Wire(HEAD, *[b"x" * 2000] * 20, END, pause_s=0.02)
    upload = await receive(wire, tmp_path / "job" / "source", idle_s=0.2, least_bytes_per_s=10_000)
    assert upload.size_bytes == 40_000


async def test_a_client_that_goes_away_is_no_error_of_the_daemon(tmp_path: Path) -> None:
    with pytest.raises(ClientDisconnect):
        await receive(Wire(HEAD, b"x", then_hang_up=True), tmp_path / "job" / "source")


async def test_a_body_that_ends_early_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="ends before"):
        await receive(Wire(HEAD, b"x"), tmp_path / "job" / "source")


async def test_the_reserve_of_the_disk_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DiskFull):
        await receive(Wire(HEAD, b"x" * BATCH_BYTES, END), tmp_path / "job" / "source", reserve_bytes=1 << 60)


async def test_a_disk_that_fills_up_meanwhile_is_said(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        with pytest.raises(DiskFull, match="disk space"):
            await receive(Wire(HEAD, *[bytes(MIB)] * 4, END), tmp_path / "job" / "source")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_who_is_cancelled_waits_until_the_thread_lets_go_of_the_file() -> None:
    began, may_end, ended = asyncio.Event(), asyncio.Event(), False
    loop = asyncio.get_running_loop()

    def work() -> None:
        nonlocal ended
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(10)
        ended = True

    task = asyncio.create_task(blocking(work))
    await began.wait()
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_a_gigabyte_does_not_grow_the_daemon(tmp_path: Path, database: ConnectionParameters) -> None:
    """It lasts too long to become a job, which the daemon knows when all of it has come."""
    size_bytes = 1 << 30
    longest = tone()[:40] + (0xFFFF_FF00).to_bytes(4, "little")  # a WAV that says it goes on for hours

    async def body() -> AsyncIterator[bytes]:
        yield HEAD + longest
        for _ in range(size_bytes // (1 << 18)):
            yield bytes(1 << 18)
        yield END

    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        with (Path("/proc") / str(daemon.pid) / "clear_refs").open("w") as peak:
            warm = await daemon.client.post("/transcribe", files={"file": tone()}, data={"wait": "true"})
            assert warm.status_code == 200, warm.text
            peak.write("5")  # the peak counts from here
        before = memory_bytes(daemon.pid, "VmRSS")
        response = await daemon.client.post("/transcribe", content=body(), headers={"Content-Type": TYPE})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_long")
        grown = memory_bytes(daemon.pid, "VmHWM") - before
        print(f"1 GiB uploaded: the daemon grew by {grown / MIB:.1f} MiB")
        assert grown < 50 * MIB
        assert not list((daemon.data_dir / "jobs").iterdir())


def memory_bytes(pid: int, name: str) -> int:
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
