"""A file system of a few megabytes that is full: nothing half-made stays, nothing is lost, and it is said."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest
from structlog.testing import capture_logs

from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.scheduling import attempt
from tests.invariants import violations, watch
from tests.media import ffmpeg
from tests.receiver import Receiver
from tests.running import FAKE_ENGINE, RunningDaemon, only_demo, running_daemon
from tests.serving import POLL_S, served_daemon, tone

SIZE = 12 << 20
DATABASE_SIZE = 128 << 20
SETTINGS = FAKE_ENGINE | {"DISK_RESERVE_MB": "2"}


@contextmanager
def mounted(directory: Path, size_bytes: int) -> Iterator[Path]:
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "tmpfs", directory],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("may not mount a small file system here (needs root)")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "data", SIZE) as directory:
        yield directory


@pytest.fixture
def database_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "outside", DATABASE_SIZE) as directory:
        yield directory


def fill(directory: Path, leave_bytes: int) -> Path:
    filler = directory / "filler"
    stat = os.statvfs(directory)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, stat.f_bavail * stat.f_frsize - leave_bytes))
    return filler


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1 << 16):
        yield content[start : start + (1 << 16)]


async def test_an_upload_that_fills_the_disk_leaves_nothing(
    small_disk: Path, tmp_path: Path, database: ConnectionParameters
) -> None:
    """Fault 9: full before, and full in the middle of the upload; then there is room again."""
    (tmp_path / "one.wav").write_bytes(tone(0.2))
    (tmp_path / "large.wav").write_bytes(tone(0.2) + bytes(SIZE))
    async with running_daemon(tmp_path, database, **SETTINGS) as daemon:

        async def refused(name: str, *, length_said: bool) -> None:
            files = {"file": (name, (tmp_path / name).read_bytes())}
            request = daemon.client.build_request("POST", "/transcribe", files=files)
            content = request.read()
            response = await daemon.client.post(
                "/transcribe",
                content=content if length_said else pieces(content),
                headers={"Content-Type": request.headers["content-type"]},
            )
            assert response.status_code == 507, response.text
            assert response.json()["error"]["code"] == "disk_full"
            assert int(response.headers["retry-after"]) > 0
            assert not list((small_disk / "jobs").iterdir())
            assert (await daemon.json("/jobs"))["jobs"] == []

        await daemon.line("runner.ready")
        await refused("large.wav", length_said=False)
        filler = fill(small_disk, leave_bytes=1 << 20)
        await refused("one.wav", length_said=True)
        assert "disk" in (await daemon.json("/health/ready", 503))["reason"]
        async with asyncio.timeout(30):  # the disk is looked at once a second
            while (health := await daemon.json("/health"))["status"] == "ready":
                await asyncio.sleep(0.05)
        assert (health["status"], "DISK_RESERVE_MB" in health["reason"]) == ("error", True)
        filler.unlink()
        job = await daemon.finished((await daemon.submit(tmp_path / "one.wav"))["job_id"])
        assert job["status"] == "completed"
        assert (await daemon.json("/health/ready"))["status"] == "ready"


async def test_a_job_that_cannot_be_decoded_for_lack_of_room_is_done_when_there_is_room(
    small_disk: Path,
    tmp_path: Path,
    database: ConnectionParameters,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault 9: two minutes that are a small file, and 4 MB when they are decoded."""
    monkeypatch.setattr(attempt, "DISK_FULL_PAUSE_S", 0.2)
    await watch(database)
    made = ("-f", "lavfi", "-i", "sine=440:sample_rate=16000", "-t", "120", "-c:a", "flac", "-f", "flac", "pipe:1")
    audio = ffmpeg(*made)
    async with served_daemon(tmp_path, database, monkeypatch, disk_reserve_mb=1) as served:
        filler = fill(small_disk, leave_bytes=len(audio) + (2 << 20))
        with capture_logs() as logs:
            response = await served.post(audio, callback_url=receiver.url)
            assert response.status_code == 202, response.text
            job_id = response.json()["job_id"]
            async with asyncio.timeout(30):
                while sum(line["event"] == "job.waits_for_disk" for line in logs) < 5:
                    await asyncio.sleep(POLL_S)
        assert [path.name for path in (small_disk / "jobs" / job_id).iterdir()] == ["source"]
        filler.unlink()
        job = await served.finished(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 1), "a full disk costs no attempt"
        await receiver.wait_for(1)
    assert await violations(database, small_disk / "jobs", receiver.requests, told={job_id}) == []


@pytest.mark.parametrize("cannot_grow", ["tables", "log"])
async def test_a_database_whose_disk_is_full_costs_nothing(
    database_disk: Path, tmp_path: Path, receiver: Receiver, cannot_grow: str
) -> None:
    """Fault 9. Over a log that cannot grow the server goes down, and comes up only when there is room."""
    (tmp_path / "one.wav").write_bytes(tone(0.2))
    go = tmp_path / "go"
    server = EmbeddedPostgres(database_disk / "postgres")
    database = await server.start()
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE)
    try:
        await daemon.start()
        await only_demo(database)
        await watch(database)
        running = (
            await daemon.submit(tmp_path / "one.wav", initial_prompt=f"fake:until={go}", callback_url=receiver.url)
        )["job_id"]
        await daemon.in_runner(running)
        filler = fill(database_disk, leave_bytes=0)
        if cannot_grow == "log":
            await execute(database, "SELECT pg_switch_wal()")
        told = {running}
        async with asyncio.timeout(60):
            while (refused := await post(daemon, tmp_path / "one.wav", receiver.url)).status_code == 202:
                told.add(refused.json()["job_id"])
        assert refused.status_code == 503, refused.text
        assert int(refused.headers["retry-after"]) > 0
        go.touch()
        await daemon.line("result.kept_on_disk", job_id=running)
        assert (await daemon.client.get("/health/live")).status_code == 200
        said = (database_disk / "postgres.log").read_text()
        assert "No space left on device" in said
        assert ("PANIC" in said) is (cannot_grow == "log")
        filler.unlink()
        for job_id in told:
            await daemon.line("job.ended", 60, job_id=job_id, state="completed")
            assert (await daemon.job(job_id))["attempt"] == 1
        await receiver.wait_for(len(told))
        assert await daemon.stop() == 0
        assert [line["event"] for line in daemon.lines].count("runner.ready") == 1, "nobody was restarted"
        assert await violations(database, daemon.data_dir / "jobs", receiver.requests, told=told) == []
    finally:
        await daemon.close()
        await server.stop()


async def execute(database: ConnectionParameters, sql: str) -> None:
    connection = await asyncpg.connect(**database.arguments())
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def post(daemon: RunningDaemon, audio: Path, callback_url: str) -> httpx2.Response:
    metadata = json.dumps({"filler": "x" * 3500})
    with audio.open("rb") as file:
        return await daemon.client.post(
            "/transcribe",
            files={"file": file},
            data={"callback_url": callback_url, "metadata": metadata},
        )
