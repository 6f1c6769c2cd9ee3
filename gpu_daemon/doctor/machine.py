"""Python, ffmpeg, disk, port: what the machine must have whatever the daemon does with it. Every check may block."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg

from gpu_daemon.audio.ffmpeg import find_ffmpeg
from gpu_daemon.client import GpuDaemonClientError, WhisperClient
from gpu_daemon.doctor.finding import Finding, bad, good, note
from gpu_daemon.errors import StartupError
from gpu_daemon.settings import Settings

OLDEST_PYTHON, TOO_NEW_PYTHON = (3, 11), (3, 14)
FFMPEG_TIMEOUT_S = 20.0
COMFORTABLE_BYTES = 5 << 30
"""The largest Whisper checkpoint, and room for uploads."""
MB = 1024 * 1024
GB = 1024 * MB


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    said = ".".join(map(str, version))
    if OLDEST_PYTHON <= version < TOO_NEW_PYTHON:
        return good("Python", f"{said} ({sys.executable})")
    return bad(
        "Python", f"{said} is not one that the pinned packages are made for", "install Python 3.11, 3.12 or 3.13"
    )


def check_ffmpeg() -> Finding:
    fix = "apt-get install ffmpeg, or pip install -r requirements.txt, which brings one"
    try:
        ffmpeg = find_ffmpeg()
        ran = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, timeout=FFMPEG_TIMEOUT_S)
    except (StartupError, OSError, subprocess.TimeoutExpired) as error:
        return bad("ffmpeg", str(error), fix)
    if ran.returncode != 0:
        return bad("ffmpeg", f"{ffmpeg} does not run: {ran.stderr.strip()[-200:]}", fix)
    version = ran.stdout.split("\n", 1)[0].removeprefix("ffmpeg version ").split(" ", 1)[0]
    bundled = Path(imageio_ffmpeg.__file__).parent in ffmpeg.parents
    return good("ffmpeg", f"{version} ({'the one of imageio-ffmpeg' if bundled else ffmpeg})")


def check_data_dir(settings: Settings) -> Finding:
    """Makes the directory if need be, as the daemon would."""
    directory = settings.data_dir.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as error:
        return bad("DATA_DIR", f"cannot write in {directory}: {error.strerror}", "set DATA_DIR to a directory of yours")
    return good("DATA_DIR", f"{directory} can be written")


def check_disk(settings: Settings) -> Finding:
    free_bytes = shutil.disk_usage(settings.data_dir).free
    if free_bytes < settings.disk_reserve_mb * MB:
        return bad(
            "disk",
            f"{free_bytes / GB:.1f} GB free: uploads are refused below {settings.disk_reserve_mb} MB",
            "make room, move DATA_DIR to another disk, or lower DISK_RESERVE_MB",
        )
    if free_bytes < COMFORTABLE_BYTES:
        return note("disk", f"only {free_bytes / GB:.1f} GB free", "large models need 3 GB each, uploads come on top")
    return good("disk", f"{free_bytes / GB:.0f} GB free")


def check_port(settings: Settings) -> Finding:
    host, port = settings.host, settings.port
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and (status := _daemon_there(port)) is not None:
            return note("port", f"a gpu_daemon runs at {host}:{port} already, and says it is {status}")
        return bad(
            "port",
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
            "set PORT (or HOST) to a free one",
        )
    return good("port", f"{host}:{port} is free")


def _daemon_there(port: int) -> str | None:
    try:
        with WhisperClient(f"http://127.0.0.1:{port}") as client:
            return str(client.health()["status"])
    except GpuDaemonClientError:
        return None
