"""ffmpeg as a process: it ends in time, with its caller and with the daemon, and has no more than it needs."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

import gpu_daemon
from gpu_daemon.audio.decode import decode
from gpu_daemon.audio.ffmpeg import MAX_MEMORY_BYTES, FfmpegTimeout, find_ffmpeg, run_ffmpeg
from gpu_daemon.audio.launcher import NICE, OPEN_FILES
from gpu_daemon.audio.probe import probe
from gpu_daemon.errors import JobError, Unavailable
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.media import BOTH, ffmpeg, noise, use_ffmpeg, wav
from tests.runners import gone, until
from tests.running import descendants

ENDLESS = ["-re", "-f", "lavfi", "-i", "anullsrc", "-f", "null", "-"]


@pytest.fixture(params=BOTH, autouse=True)
def _ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_ffmpeg(request.param, monkeypatch, tmp_path)


def program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def running() -> set[int]:
    """The ffmpegs among our children, past the launcher."""
    return {pid for pid in descendants(os.getpid()) if program(pid).startswith("ffmpeg")}


async def one_running() -> int:
    await until(lambda: bool(running()))
    (pid,) = running()
    return pid


async def test_one_that_takes_too_long_is_killed() -> None:
    with pytest.raises(FfmpegTimeout):
        await run_ffmpeg(ENDLESS, timeout_s=1)
    assert not running()


async def test_one_whose_caller_is_cancelled_is_killed_first() -> None:
    task = asyncio.create_task(run_ffmpeg(ENDLESS, timeout_s=60))
    await one_running()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not running()


def test_the_same_holds_on_the_loop_of_the_daemon(tmp_path: Path) -> None:
    """uvloop starts processes in a way of its own."""
    (tmp_path / "source").write_bytes(wav(noise(2000).tobytes(), channels=2))

    async def main() -> None:
        decoded = await decode(tmp_path / "source", tmp_path / "target", max_duration_s=1, trim_silence=True)
        assert decoded.n_samples == 1000
        await test_one_that_takes_too_long_is_killed()
        await test_one_whose_caller_is_cancelled_is_killed_first()

    uvloop.run(main())


async def test_a_cancelled_decode_leaves_neither_process_nor_file(tmp_path: Path) -> None:
    quiet = ("-f", "lavfi", "-i", "anullsrc=sample_rate=8000:channel_layout=mono", "-t", "3600")
    ffmpeg(*quiet, "-frame_size", "16384", "-f", "flac", tmp_path / "source")
    target = tmp_path / "target"
    task = asyncio.create_task(decode(tmp_path / "source", target, max_duration_s=3600, trim_silence=True))
    await until(lambda: target.exists() and target.stat().st_size > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not running()
    assert not target.exists()


async def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(wav(noise(1000).tobytes(), channels=2))
    with pytest.raises(Unavailable, match="could not be examined in time"):
        await probe(tmp_path / "source", timeout_s=0.001)
    monkeypatch.setattr("gpu_daemon.audio.decode.TIMEOUT_BASE_S", 0.001)
    monkeypatch.setattr("gpu_daemon.audio.decode.TIMEOUT_PER_AUDIO_S", 0.0)
    with pytest.raises(JobError, match="given up") as error:
        await decode(tmp_path / "source", tmp_path / "target", max_duration_s=1, trim_silence=True)
    assert error.value.code == "decode_timeout"
    assert not running()
    assert not (tmp_path / "target").exists()


async def test_it_has_limits_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("DB_PASS", "canary")
    task = asyncio.create_task(run_ffmpeg(ENDLESS, timeout_s=30, max_file_bytes=12_345))
    pid = await one_running()
    limits = {which: resource.prlimit(pid, which) for which in LIMITS}
    nice = os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, 0)
    session = os.getsid(pid)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    status = Path(f"/proc/{pid}/status").read_text()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limits == {which: (most, most) for which, most in LIMITS.items()}
    assert nice == NICE
    assert session == pid
    assert b"canary" not in environment
    assert "NoNewPrivs:\t1" in status


LIMITS = {
    resource.RLIMIT_AS: MAX_MEMORY_BYTES,
    resource.RLIMIT_CPU: 61,
    resource.RLIMIT_FSIZE: 12_345,
    resource.RLIMIT_NOFILE: OPEN_FILES,
    resource.RLIMIT_CORE: 0,
}


async def test_it_writes_no_more_than_it_may(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        quiet = ["-f", "lavfi", "-i", "anullsrc=sample_rate=16000:channel_layout=mono", "-t", "60"]
        finished = await run_ffmpeg(
            [*quiet, "-f", "s16le", f"pipe:{out.fileno()}"],
            timeout_s=30,
            max_file_bytes=SAMPLE_RATE_HZ,
            output_fd=out.fileno(),
        )
    assert finished.status != 0
    assert (tmp_path / "out").stat().st_size == SAMPLE_RATE_HZ


async def test_of_long_complaints_beginning_and_end_are_kept() -> None:
    metadata = [part for number in range(20) for part in ("-metadata", f"comment{number}={'x' * 100_000}")]
    arguments = ["-f", "lavfi", "-i", "anullsrc", "-t", "0.1", *metadata, "-f", "ffmetadata", "-y", "/dev/stderr"]
    finished = await run_ffmpeg(["-loglevel", "info", *arguments], timeout_s=30)
    assert finished.stderr.startswith("Input #0")
    assert 300_000 < len(finished.stderr) < 400_000


async def test_it_dies_with_the_daemon() -> None:
    """Even when the daemon is killed and can do nothing any more."""
    root = str(Path(gpu_daemon.__file__).parent.parent)
    script = f"""
import asyncio
from gpu_daemon.audio.ffmpeg import run_ffmpeg
asyncio.run(run_ffmpeg({ENDLESS!r}, timeout_s=60))
"""
    daemon = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root})
    try:
        await until(lambda: any(program(pid).startswith("ffmpeg") for pid in descendants(daemon.pid)))
        (pid,) = (pid for pid in descendants(daemon.pid) if program(pid).startswith("ffmpeg"))
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    await gone(pid)


async def test_one_that_does_not_start_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ffmpeg").write_text("not a program")
    (broken / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(broken))
    (tmp_path / "source").write_bytes(wav(noise(1000).tobytes(), channels=2))
    with pytest.raises(OSError, match="ffmpeg does not start"):
        await probe(tmp_path / "source")


def test_without_a_system_ffmpeg_the_bundled_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "imageio_ffmpeg" in str(find_ffmpeg())
