"""Reads GPUs in a process of its own: `python -m gpu_daemon.gpu.child`, started by gpu/telemetry.py.

A call into a driver may never return, and what hangs in the kernel cannot be killed: then it is this process that stays
behind, without a port, a database connection or a job. Each GPU has a thread here, so that one that hangs silences no
other.

On stdin: a line of JSON, then a worker's number on a line whenever its GPU is to be read at once; it ends with stdin.
On stdout: a line of JSON for each reading.
"""

import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

from gpu_daemon.gpu.reading import GpuReading

READERS_VARIABLE = "GPU_DAEMON_GPU_READERS"
"""`module:function` in place of `reader_of`, for tests."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is to be read; `kind` is `cuda` or `rocm`."""

    worker: int
    kind: str
    uuid: str | None
    render_minor: int | None


Reader = Callable[[], AbstractContextManager[Callable[[], GpuReading]]]
"""Opened and called in the GPU's thread, and opened anew after a reading that knew nothing."""


def reader_of(gpu: Watched) -> Reader:
    """Raises ValueError: there is no way to it."""
    if gpu.kind == "cuda" and gpu.uuid is not None:
        import pynvml

        from gpu_daemon.gpu.nvml import NvmlSource

        return partial(NvmlSource(pynvml).reader, gpu.uuid)
    if gpu.kind == "rocm" and gpu.render_minor is not None:
        from gpu_daemon.gpu.amdsmi import installed, read_amd
        from gpu_daemon.gpu.sysfs import SysfsSource

        render_minor = gpu.render_minor
        return lambda: nullcontext(partial(read_amd, SysfsSource(), installed(), render_minor))
    raise ValueError("the driver gave it no name to ask for it by")


def encoded(worker: int, reading: GpuReading) -> bytes:
    said = {name: value for name, value in asdict(reading).items() if value is not None and name != "read_at_s"}
    return json.dumps({"worker": worker, "reading": said}).encode() + b"\n"


def decoded(line: bytes) -> tuple[int, dict[str, Any]]:
    """The worker and the fields of its GPU's reading. Raises ValueError, KeyError, TypeError."""
    message = json.loads(line)
    fields = dict(message["reading"])
    if "throttle" in fields:
        fields["throttle"] = tuple(fields["throttle"])
    if "by_process" in fields:
        fields["by_process"] = {int(pid): used for pid, used in fields["by_process"].items()}
    return int(message["worker"]), fields


def _watch(gpu: Watched, reader_for: Callable[[Watched], Reader], interval_s: float, at_once: threading.Event) -> None:
    while True:
        try:
            with reader_for(gpu)() as read:
                known = True
                while known:
                    at_once.clear()
                    reading = read()
                    known = reading.reason is None
                    _say(gpu.worker, reading)
                    at_once.wait(interval_s)
        except Exception as error:
            _say(gpu.worker, GpuReading(reason=str(error) or type(error).__name__))
            at_once.wait(interval_s)


_saying = threading.Lock()


def _say(worker: int, reading: GpuReading) -> None:
    line = encoded(worker, reading)
    with _saying:
        os.write(1, line)


def _readers() -> Callable[[Watched], Reader]:
    module, _, name = os.environ.get(READERS_VARIABLE, "").partition(":")
    return cast(Callable[[Watched], Reader], getattr(importlib.import_module(module), name)) if name else reader_of


def main() -> None:
    launch: Mapping[str, Any] = json.loads(sys.stdin.readline())
    wakes: dict[str, threading.Event] = {}
    readers = _readers()
    for gpu in (Watched(**fields) for fields in launch["gpus"]):
        wakes[str(gpu.worker)] = threading.Event()
        threading.Thread(
            target=_watch, args=(gpu, readers, launch["interval_s"], wakes[str(gpu.worker)]), daemon=True
        ).start()
    for line in sys.stdin:
        if (wake := wakes.get(line.strip())) is not None:
            wake.set()
    os._exit(0)  # a thread may hang, and nobody waits for it


if __name__ == "__main__":
    main()
