"""Audio by URL from servers that mean harm or are broken. Row 18 of the fault matrix in docs/faults.md."""

import asyncio
import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.audio.fetch import Fetched, Fetcher, FetchLimits
from gpu_daemon.audio.sink import BATCH_BYTES
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.errors import DiskFull, FetchFailed, GpuDaemonError, TooLarge
from gpu_daemon.outgoing.target import AddressPolicy
from tests.running import RunningDaemon, only_demo
from tests.speech import conversation, word_error_rate, write
from tests.web import Held, Page, Site, answer, endless, hang_up, redirect, silence

LOOPBACK = AddressPolicy.parse(("loopback",))
MIB = 1 << 20


async def fetch(url: str, target: Path, **limits: Any) -> Fetched:
    made = FetchLimits(**{"file_bytes": 4 * MIB, "reserve_bytes": 0} | limits)
    fetcher = Fetcher(LOOPBACK, made)
    try:
        return await fetcher.fetch(url, target)
    finally:
        await fetcher.close()


async def failure(url: str, target: Path, **limits: Any) -> GpuDaemonError:
    with pytest.raises(GpuDaemonError) as caught:
        await fetch(url, target, **limits)
    assert not target.parent.exists() or list(target.parent.iterdir()) == []
    assert "127.0.0.1" not in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None
    return caught.value


async def test_what_is_fetched_is_what_was_sent_and_its_hash(tmp_path: Path, site: Site) -> None:
    content = bytes(range(256)) * (3 * BATCH_BYTES // 256) + b"tail"
    target = tmp_path / "job" / "source"
    url = site.put("/a.wav", answer(body=content, headers={"Content-Disposition": "attachment; filename=talk.wav"}))
    fetched = await fetch(f"{url}?signature=secret#part", target)
    assert fetched == Fetched(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), file_name="talk.wav")
    assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["source"]
    (request,) = site.requests
    assert (request.path, request.headers["accept-encoding"]) == ("/a.wav?signature=secret", "identity")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (None, None),
        ("inline", None),
        ('attachment; filename="../../etc/pass\u202ewd"', "passwd"),
        ("attachment; filename*=UTF-8''%D1%80%D0%B5%D1%87%D1%8C.mp3", "речь.mp3"),
        ("attachment; filename*=nonsense'%FF", "nonsense'\ufffd"),
        ("attachment; filename=речь.mp3", "речь.mp3"),
    ],
)
async def test_the_server_may_say_what_the_file_is_called(
    tmp_path: Path, site: Site, said: str | None, name: str | None
) -> None:
    headers = {} if said is None else {"Content-Disposition": said}
    assert (await fetch(site.put("/x", answer(body=b"x", headers=headers)), tmp_path / "source")).file_name == name


SLOW: dict[str, tuple[Page, dict[str, float]]] = {
    "nothing is answered": (silence, {"answer_s": 0.2}),
    "the head drips": (endless(b"X: y\r\n", 0.02, head=b"HTTP/1.1 200 OK\r\n"), {"answer_s": 0.3}),
    "the body stalls": (answer(body=b"x", headers={"Content-Length": "2"}), {}),
    "the body drips": (endless(b"x", 0.02), {"idle_s": 0.2, "least_bytes_per_s": 10_000}),
    "the body never ends": (endless(b"x" * 100, 0.02), {"total_s": 0.4, "least_bytes_per_s": 0}),
}


@pytest.mark.parametrize("case", SLOW)
async def test_a_server_must_come_to_an_end(tmp_path: Path, site: Site, case: str) -> None:
    page, limits = SLOW[case]
    error = await failure(site.put("/x", page) + "?secret", tmp_path / "job" / "source", **limits)
    assert (type(error), error.code) == (FetchFailed, "fetch_failed")
    assert isinstance(error, FetchFailed)
    assert error.retryable


CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
TOO_LARGE = {
    "it says so": answer(body=b"", headers={"Content-Length": str(10 << 30)}),
    "it lies": endless(b"x" * 65536, head=b"HTTP/1.1 200 OK\r\nContent-Length: 4194305\r\n\r\n"),
    "it does not say": endless(b"x" * 65536),
    "in chunks": endless(CHUNK, head=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
async def test_more_than_the_limit_is_not_kept(tmp_path: Path, site: Site, case: str) -> None:
    error = await failure(site.put("/x", TOO_LARGE[case]), tmp_path / "job" / "source")
    assert (type(error), error.code) == (TooLarge, "too_large")


async def test_a_file_just_as_large_as_the_limit_is_fetched(tmp_path: Path, site: Site) -> None:
    assert (await fetch(site.put("/x", answer(body=b"x" * 4 * MIB)), tmp_path / "source")).size_bytes == 4 * MIB


BROKEN: dict[str, tuple[Page, bool]] = {
    "not found": (answer(404, b"secret"), False),
    "forbidden": (answer(403, b"secret"), False),
    "part of it": (answer(206, b"x"), False),
    "nothing": (answer(204), False),
    "a redirect to nowhere": (answer(302), False),
    "busy": (answer(503, b"secret"), True),
    "too many": (answer(429), True),
    "broken": (answer(500), True),
    "hung up": (hang_up, True),
    "no HTTP": (endless(b"\0" * 100, head=b"SSH-2.0-secret\r\n"), True),
    "cut off": (answer(body=b"x", headers={"Content-Length": "100"}), True),
    "compressed": (answer(body=gzip.compress(b"x" * 10_000_000), headers={"Content-Encoding": "gzip"}), False),
    "long headers": (answer(body=b"x", headers={"X": "y" * 1_000_000}), True),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_an_answer_without_a_file_says_little_and_leaves_nothing(tmp_path: Path, site: Site, case: str) -> None:
    page, retryable = BROKEN[case]
    error = await failure(site.put("/x", page), tmp_path / "job" / "source")
    assert isinstance(error, FetchFailed)
    assert (error.code, error.retryable) == ("fetch_failed", retryable)


async def test_nobody_there_says_no_more_than_somebody_who_hangs_up(tmp_path: Path, site: Site) -> None:
    here = await failure(site.put("/x", hang_up), tmp_path / "job" / "source")
    there = await failure("http://127.0.0.1:9/x", tmp_path / "job" / "source")
    nowhere = await failure("http://name.invalid/x", tmp_path / "job" / "source")
    assert here.message == there.message == nowhere.message
    assert isinstance(there, FetchFailed)
    assert there.retryable


async def test_a_full_disk_ends_the_fetch(tmp_path: Path, site: Site) -> None:
    assert isinstance(
        await failure(site.put("/x", answer(body=b"x")), tmp_path / "job" / "source", reserve_bytes=1 << 60), DiskFull
    )


async def test_cancelled_it_leaves_nothing(tmp_path: Path, site: Site) -> None:
    page = Held(b"x" * (2 * BATCH_BYTES), after=BATCH_BYTES + 1)
    fetcher = Fetcher(LOOPBACK, FetchLimits(file_bytes=1 << 40, reserve_bytes=0))
    fetching = asyncio.create_task(fetcher.fetch(site.put("/x", page), tmp_path / "job" / "source"))
    async with asyncio.timeout(10):
        while not (tmp_path / "job" / "source.part").exists():
            await asyncio.sleep(0.01)
    fetching.cancel()
    await asyncio.wait({fetching})
    await fetcher.close()
    assert fetching.cancelled()
    assert list((tmp_path / "job").iterdir()) == []


async def test_redirects_are_followed_without_what_was_said_before(tmp_path: Path, site: Site) -> None:
    site.put("/file", answer(body=b"audio"))
    site.put("/b", redirect("file?x=1"))
    url = site.put("/a", redirect("/b", 307, {"Set-Cookie": "session=secret; Path=/"}))
    assert (await fetch(url, tmp_path / "source")).size_bytes == 5
    assert [request.path for request in site.requests] == ["/a", "/b", "/file?x=1"]
    assert not any({"cookie", "authorization", "referer"} & set(request.headers) for request in site.requests)


async def test_redirects_come_to_an_end(tmp_path: Path, site: Site) -> None:
    error = await failure(site.put("/x", redirect("/x")), tmp_path / "job" / "source")
    assert isinstance(error, FetchFailed)
    assert not error.retryable
    assert len(site.requests) == 6


async def test_a_daemon_that_is_killed_while_it_fetches_fetches_again(
    tmp_path: Path, database: ConnectionParameters, site: Site
) -> None:
    """With the real engine. The secret in the URL is in no log, and in no row once the job has ended."""
    spoken = conversation("en", 500_030, 12)
    write(spoken, tmp_path / "long.wav", "wav")
    content = (tmp_path / "long.wav").read_bytes()
    page = Held(content, after=BATCH_BYTES + 1)
    assert len(content) > page.after
    await only_demo(database)
    daemon = RunningDaemon(tmp_path / "data", database, {"FETCH_ALLOWED_NETWORKS": "loopback"})
    try:
        await daemon.start()
        url = site.put("/long.wav", page) + "?signature=secret"
        response = await daemon.client.post("/transcribe", json={"url": url, "language": "en"})
        assert response.status_code == 202
        job_id = response.json()["job_id"]
        part = tmp_path / "data" / "jobs" / job_id / "source.part"
        async with asyncio.timeout(20):
            while not part.exists():
                await asyncio.sleep(0.02)
        assert (await daemon.job(job_id))["stage"] == "fetching"
        await daemon.kill()
        said = daemon.raw.copy()
        assert part.exists()
        await daemon.start()
        job = await daemon.finished(job_id, timeout_s=90)
        assert (job["status"], job["attempt"], job["file_size_bytes"]) == ("completed", 1, len(content)), job
        assert word_error_rate(spoken.text, job["result"]["text"]) < 0.1
        assert len(site.requests) == 2
        assert not list((tmp_path / "data" / "jobs").iterdir())
        assert "secret" not in str(job)
        assert await daemon.stop() == 0
        assert "secret" not in "\n".join([*said, *daemon.raw])
    finally:
        await daemon.close()
