"""The child process of a worker: the main thread reads frames and answers pings, one engine thread does the jobs."""

import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_never, cast

from gpu_daemon.engine.base import Diarizer, Engine
from gpu_daemon.errors import JobError, StartupError
from gpu_daemon.runner.jobs import JobThread
from gpu_daemon.runner.protocol import (
    HEADER,
    Cancel,
    Conclude,
    FromRunner,
    Hello,
    Launch,
    Ping,
    Pong,
    ProtocolError,
    Run,
    Stop,
    ToRunner,
    Unload,
    decode,
    encode,
    parse_header,
)

ENGINES = {"whisper": "gpu_daemon.engine.transcribe:create"}
DIARIZERS = {"pyannote": "gpu_daemon.engine.diarize:create"}
PR_SET_PDEATHSIG = 1
CPU_NICE = 5
"""An engine that takes every core leaves the daemon its milliseconds to answer /health."""
OOM_SCORE = 500


class Channel:
    """The child's end of the socket; any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()

    def send(self, message: FromRunner, body: bytes = b"") -> None:
        frame = encode(message, body)
        with self._sending:
            self._sock.sendall(frame)

    def receive(self) -> ToRunner | None:
        """None: the parent has hung up. Raises ProtocolError."""
        header = self._read(HEADER.size)
        if header is None:
            return None
        head_bytes, body_bytes = parse_header(header)
        head, body = self._read(head_bytes), self._read(body_bytes)
        if head is None or body is None:
            return None
        message = decode(head)
        if not isinstance(message, ToRunner):
            raise ProtocolError(f"a daemon does not send {type(message).__name__}")
        return message

    def _read(self, n_bytes: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < n_bytes:
            part = self._sock.recv(n_bytes - len(parts))
            if not part:
                return None
            parts += part
        return bytes(parts)


def main() -> None:
    launch = Launch.model_validate_json(sys.argv[1])
    _die_with(launch.parent_pid)
    _die_before_others()
    if launch.device == "cpu":
        os.nice(CPU_NICE)
    sock = socket.socket(fileno=launch.socket_fd)
    sock.set_inheritable(False)
    channel = Channel(sock)
    engine = _create_engine(launch)
    jobs = JobThread(engine, _create_diarizer(launch), channel.send, model_idle_s=launch.model_idle_s)
    jobs.start()
    channel.send(Hello(device_name=engine.device_name, torch_version=engine.torch_version))
    while (message := channel.receive()) is not None:
        match message:
            case Run() | Unload():
                jobs.submit(message)
            case Cancel():
                jobs.cancel(message.job_id)
            case Conclude():
                jobs.conclude(message.job_id, JobError(message.message, code=message.code))
            case Ping():
                channel.send(Pong(number=message.number))
            case Stop():
                return
            case _:
                assert_never(message)


def _die_with(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before the line above; elsewhere than on Linux the end of the socket's stream must do.
    if os.getppid() != parent_pid:
        os._exit(1)


def _die_before_others() -> None:
    """When memory runs out, the kernel is to take the runner, not the daemon or the database."""
    score = Path("/proc/self/oom_score_adj")
    try:
        if int(score.read_text()) < OOM_SCORE:
            score.write_text(str(OOM_SCORE))
    except OSError as error:
        sys.stderr.write(f"the order of death stays as it is: {error}\n")


def _create_engine(launch: Launch) -> Engine:
    """`GPU_DAEMON_ENGINE` is a name of ENGINES or, in tests, `module:factory`."""
    gc.disable()
    create = cast(Callable[[str, int], Engine], _factory("GPU_DAEMON_ENGINE", "whisper", ENGINES))
    gc.freeze()  # what has been imported stays: looking through it takes a third of a second each time
    gc.enable()
    return create(launch.device, launch.vram_reserve_mb)


def _create_diarizer(launch: Launch) -> Diarizer:
    """`GPU_DAEMON_DIARIZER` likewise."""
    create = cast(Callable[[str, str], Diarizer], _factory("GPU_DAEMON_DIARIZER", "pyannote", DIARIZERS))
    return create(launch.device, launch.pyannote_device)


def _factory(variable: str, usual: str, known: Mapping[str, str]) -> object:
    name = os.environ.get(variable, usual)
    module, factory = known.get(name, name).split(":")
    return getattr(importlib.import_module(module), factory)


if __name__ == "__main__":
    try:
        main()
    except StartupError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.stderr.flush()
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # Not sys.exit: that would wait for the engine thread, and there is nothing to save.
    os._exit(0)
