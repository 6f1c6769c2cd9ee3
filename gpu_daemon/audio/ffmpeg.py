"""Which ffmpeg there is, and how it is run: under limits, with an end, and never left behind."""

import asyncio
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from gpu_daemon.audio.allowed import GLOBAL_OPTIONS
from gpu_daemon.audio.launcher import COMPLAINT, NOT_STARTED
from gpu_daemon.errors import StartupError
from gpu_daemon.logs import log

LAUNCHER = Path(__file__).with_name("launcher.py")
MAX_MEMORY_BYTES = 2 << 30
"""Of address space; a decode uses less than 0.7 GB of it."""
CPU_PER_WALL = 2
"""For the case that the daemon itself is stopped and cannot keep the time."""
KILL_TIMEOUT_S = 10.0
"""SIGKILL takes milliseconds, except for a process that waits for a dead disk."""
STDOUT_MAX_BYTES = 1 << 22
STDERR_HEAD_BYTES = 1 << 18
STDERR_TAIL_BYTES = 1 << 16
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH")
"""Nothing else of the daemon's environment: secrets are in it."""


class FfmpegTimeout(Exception):
    """It was killed because it took too long."""


@dataclass(frozen=True, slots=True)
class Finished:
    status: int
    """Exit status; negative: the signal that ended it."""
    stdout: str
    stderr: str
    """Its beginning and its end, when it is long. It may name files: for logs, never for clients."""


def find_ffmpeg() -> Path:
    """The system's, else the one in imageio-ffmpeg. Raises StartupError."""
    if (found := shutil.which("ffmpeg")) is not None:
        return Path(found).absolute()
    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise StartupError("ffmpeg is missing: install it (apt-get install ffmpeg)") from error


async def run_ffmpeg(
    arguments: list[str], *, timeout_s: float, max_file_bytes: int = 0, output_fd: int | None = None
) -> Finished:
    """`arguments` come without the program's name; `output_fd` is open in ffmpeg under the same number.

    Nothing of ffmpeg is left when this returns or raises, be it by cancellation. Raises FfmpegTimeout; StartupError or
    OSError when there is no ffmpeg to run.

    To be called from a thread that lives as long as the daemon: the kernel kills ffmpeg when that thread ends.
    """
    binary = await asyncio.to_thread(find_ffmpeg)
    limits = (os.getpid(), MAX_MEMORY_BYTES, int(timeout_s * CPU_PER_WALL) + 1, max_file_bytes)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(LAUNCHER), *map(str, limits)),
        *(str(binary), *GLOBAL_OPTIONS, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        pass_fds=() if output_fd is None else (output_fd,),
        env={"LC_ALL": "C", **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output = asyncio.create_task(_read(process.stdout, STDOUT_MAX_BYTES, 0))
    errors = asyncio.create_task(_read(process.stderr, STDERR_HEAD_BYTES, STDERR_TAIL_BYTES))
    try:
        async with asyncio.timeout(timeout_s):
            status = await process.wait()
            await asyncio.wait({output, errors})
    except TimeoutError:
        raise FfmpegTimeout(f"ffmpeg took longer than {timeout_s:.0f} s") from None
    finally:
        await asyncio.shield(_end(process, output, errors))
    finished = Finished(status, output.result().decode(errors="replace"), errors.result().decode(errors="replace"))
    if status == NOT_STARTED and finished.stderr.startswith(COMPLAINT):
        raise OSError(f"ffmpeg does not start: {finished.stderr.strip()}")
    return finished


async def _end(process: asyncio.subprocess.Process, *readers: "asyncio.Task[bytes]") -> None:
    """Kill it if it still runs, with all it may have started, and reap it."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("ffmpeg.already_gone", pid=process.pid)
    ended = asyncio.ensure_future(process.wait())
    _, late = await asyncio.wait({ended, *readers}, timeout=KILL_TIMEOUT_S)
    for task in late:
        task.cancel()
    if late:
        log.error("ffmpeg.unkillable", pid=process.pid)


async def _read(stream: asyncio.StreamReader, head_bytes: int, tail_bytes: int) -> bytes:
    """To the end of the stream, whose middle is forgotten when it is long."""
    head, tail = bytearray(), bytearray()
    while chunk := await stream.read(1 << 16):
        room = head_bytes - len(head)
        head += chunk[:room]
        tail += chunk[room:]
        del tail[: max(0, len(tail) - tail_bytes)]
    return bytes(head + tail)
