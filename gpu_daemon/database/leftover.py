"""What a server that was killed, or whose daemon was killed, left behind in its directory."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from gpu_daemon import clock
from gpu_daemon.errors import StartupError
from gpu_daemon.logs import log

NO_PID = (1 << 22) + 1
"""More than the greatest process id of Linux."""
STOP_TIMEOUT_S = 15.0


async def stop_leftover(directory: Path) -> None:
    """A server whose daemon was killed is shutting down by itself; if it is not, it is told to. Raises StartupError."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        if (pid := _leftover_pid(directory)) is None:
            return
        log.warning("database.leftover_stopped", pid=pid, signal=number.name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = clock.monotonic() + STOP_TIMEOUT_S
        while _leftover_pid(directory) is not None and clock.monotonic() < deadline:  # noqa: ASYNC110 - not our child
            await asyncio.sleep(0.02)
    if (pid := _leftover_pid(directory)) is not None:
        raise StartupError(f"DATA_DIR: PostgreSQL (process {pid}) works on {directory} and does not stop")


def renounce_reused_pid(directory: Path, socket_directory: Path) -> None:
    """When the process id in a lock file belongs to somebody else by now, PostgreSQL would not dare to start.

    In containers, where the same few ids come again after each restart, that is frequent. In `postmaster.pid` only the
    id is struck out: by the other lines PostgreSQL still finds out whether children of the dead server live.
    """
    pid = _recorded_pid(directory)
    if pid is None or not Path(f"/proc/{pid}").exists() or _serves(pid, directory):
        return
    file = directory / "postmaster.pid"
    _, _, rest = file.read_text().partition("\n")
    file.write_text(f"{NO_PID}\n{rest}")
    for lock in socket_directory.glob(".s.PGSQL.*.lock"):
        lock.unlink()


def _leftover_pid(directory: Path) -> int | None:
    """The process id of a server that works on `directory` now."""
    pid = _recorded_pid(directory)
    return pid if pid is not None and _serves(pid, directory) else None


def _recorded_pid(directory: Path) -> int | None:
    try:
        return int((directory / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _serves(pid: int, directory: Path) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return str(directory).encode() in command.split(b"\0")
