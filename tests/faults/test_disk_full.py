"""A file system of a few megabytes that is full: nothing half-made stays, nothing is lost, and it is said."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.scheduling import attempt
from tests.invariants import violations, watch
from tests.media import ffmpeg
from tests.receiver import Receiver
from tests.running import FAKE_ENGINE, running_daemon
from tests.serving import POLL_S, served_daemon, tone

SIZE = 12 << 20
SETTINGS = FAKE_ENGINE | {"DISK_RESERVE_MB": "2"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "data"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "tmpfs", directory], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a small file system here (needs root)")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


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
