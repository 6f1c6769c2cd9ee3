"""What the GPUs and the machine say of themselves, read once a second where it may hang without harm."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import gpu_daemon
from gpu_daemon import clock
from gpu_daemon.gpu.child import Watched, decoded
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.host import HostSource
from gpu_daemon.gpu.reading import GpuReading, HostReading, Usage, divided
from gpu_daemon.logs import log
from gpu_daemon.settings import child_environment

INTERVAL_S = 1.0
FRESH_S = 0.25
"""A reading as old as this still says how it is now; to be asked for another one costs the driver a few ms."""
ANSWER_S = 0.25
"""A job waits no longer for its last reading."""
STALE_S = 5.0
"""Without a reading for so long nothing is known."""
RENEW_S = 60.0
"""The child is replaced when a GPU knew nothing for so long: NVML finds a card that came back when it is opened."""
RESTART_S = 5.0
KILL_TIMEOUT_S = 1.0
MAX_LINE_BYTES = 1 << 20
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Its inode: where it is ours, the driver's pids are the ones we know."""


def _nobody() -> Collection[int]:
    return ()


class Telemetry:
    """GPUs are read by a child process (gpu/child.py), the host by a thread. Where there is no GPU there is no child.

    `latest` and `host` answer from memory.
    """

    def __init__(
        self,
        devices: Mapping[int, Device],
        data_dir: Path,
        *,
        runner_pids: Callable[[], Collection[int]] = _nobody,
        interval_s: float = INTERVAL_S,
        stale_s: float = STALE_S,
        renew_s: float = RENEW_S,
    ) -> None:
        """`devices` by the index of the worker that has each; `runner_pids`: of all runners, as they are now."""
        self._gpus = {index: device for index, device in devices.items() if device.kind != "cpu"}
        self._host = HostSource(data_dir)
        self._runner_pids = runner_pids
        self._interval_s = interval_s
        self._stale_s = stale_s
        self._renew_s = renew_s
        self._sees_all = _sees_all_pids()
        self._readings = {index: GpuReading() for index in self._gpus}
        self._known_at_s: dict[int, float] = {}
        """When each last said anything of itself."""
        self._changed = asyncio.Event()
        self._usages: dict[int, set[Usage]] = {index: set() for index in self._gpus}
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._host_reading: tuple[float, HostReading] | None = None
        self._stopped = threading.Event()

    async def start(self) -> None:
        self._stopped.clear()
        threading.Thread(target=self._read_host, args=(self._stopped,), name="host-readings", daemon=True).start()
        if self._gpus and self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="gpu readings")

    async def stop(self) -> None:
        """Nothing that hangs is waited for."""
        self._stopped.set()
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait({watching})

    def latest(self) -> Mapping[int, GpuReading]:
        """By the index of the worker; a CPU has none. When nothing is known of a GPU, `reason` says why."""
        now_s = clock.monotonic()
        return {index: self._unless_stale(reading, now_s) for index, reading in self._readings.items()}

    def host(self) -> HostReading | None:
        """None: not read yet, or the disk hangs."""
        if self._host_reading is None or clock.monotonic() - self._host_reading[0] > self._stale_s:
            return None
        return self._host_reading[1]

    def device(self, worker_index: int) -> Device | None:
        """None for a CPU."""
        return self._gpus.get(worker_index)

    @contextmanager
    def following(self, worker_index: int) -> Iterator[Usage]:
        """Every reading of its GPU meanwhile is added up, beginning with one that is fresh."""
        usage = Usage()
        if worker_index not in self._gpus:
            yield usage
            return
        if self._is_fresh(worker_index):
            usage.add(self._readings[worker_index])
        else:
            self._ask(worker_index)
        self._usages[worker_index].add(usage)
        try:
            yield usage
        finally:
            self._usages[worker_index].discard(usage)

    async def refreshed(self, worker_index: int) -> None:
        """Returns when there is a fresh reading, or there will be none soon."""
        if worker_index not in self._gpus or self._is_fresh(worker_index) or not self._ask(worker_index):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while not self._is_fresh(worker_index):
                    self._changed.clear()
                    await self._changed.wait()

    # Inside.

    def _is_fresh(self, index: int) -> bool:
        read_s_ago = self._readings[index].read_s_ago
        return read_s_ago is not None and read_s_ago <= FRESH_S

    def _ask(self, index: int) -> bool:
        """For a reading at once. False: it does not answer these days."""
        read_s_ago, process = self._readings[index].read_s_ago, self._process
        if read_s_ago is None or read_s_ago > self._stale_s or process is None or process.stdin is None:
            return False
        process.stdin.write(b"%d\n" % index)
        return True

    def _unless_stale(self, reading: GpuReading, now_s: float) -> GpuReading:
        if reading.read_at_s is None or now_s - reading.read_at_s <= self._stale_s:
            return reading
        return GpuReading(
            reason=f"the driver has not answered for {now_s - reading.read_at_s:.0f} s", read_at_s=reading.read_at_s
        )

    def _received(self, line: bytes) -> None:
        try:
            index, fields = decoded(line)
            reading = GpuReading(**fields, read_at_s=clock.monotonic())
            before = self._readings[index]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("gpu.reading_unread", error=repr(error))
            return
        if reading.reason is None:
            self._known_at_s[index] = clock.monotonic()
        if reading.reason != before.reason:
            device = self._gpus[index]
            said = log.info if reading.reason is None else log.warning
            said("gpu.readings", worker=index, gpu=device.index, device=device.name, reason=reading.reason)
        reading = divided(reading, self._runner_pids(), sees_all=self._sees_all)
        self._readings[index] = reading
        for usage in self._usages[index]:
            usage.add(reading)
        self._changed.set()

    async def _watch(self) -> None:
        """A child at a time, until cancelled."""
        while True:
            try:
                await self._one_child()
            except OSError as error:
                log.error("gpu.telemetry_failed", error=str(error))
            await asyncio.sleep(RESTART_S)

    async def _one_child(self) -> None:
        """Returns when it has ended. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gpu_daemon.gpu.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # a Ctrl-C is for the daemon
            limit=MAX_LINE_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        try:
            process.stdin.write(self._launch())
            await self._read(process.stdout, began_s=clock.monotonic())
        finally:
            self._process = None
            await _end(process)
        if process.returncode is None:  # it hangs in its driver, and so would the next one
            log.error("gpu.telemetry_abandoned", pid=process.pid)
        code = await process.wait()
        log.warning("gpu.telemetry_ended", pid=process.pid, code=code)

    async def _read(self, lines: asyncio.StreamReader, *, began_s: float) -> None:
        """Returns when there are no more lines, or the child is to be replaced."""
        spoke_s: float | None = None
        while True:
            line = b""
            try:
                async with asyncio.timeout(self._interval_s):
                    line = await lines.readline()
            except TimeoutError:
                pass
            else:
                if not line:
                    return
                self._received(line)
                spoke_s = spoke_s or clock.monotonic()
            if self._is_spent(began_s, spoke_s):
                return

    def _is_spent(self, began_s: float, spoke_s: float | None) -> bool:
        """A new child may know more of a GPU that is gone. While another one hangs the child is left alone: it might
        not end, and then nobody would read the others."""
        now_s = clock.monotonic()
        silent_s = [now_s - max(began_s, reading.read_at_s or 0) for reading in self._readings.values()]
        if max(silent_s) > self._stale_s:
            return min(silent_s) > self._renew_s
        if spoke_s is None:
            return False
        return any(now_s - max(spoke_s, self._known_at_s.get(index, 0)) > self._renew_s for index in self._gpus)

    def _launch(self) -> bytes:
        gpus = [
            asdict(Watched(index, device.kind, device.uuid, device.render_minor))
            for index, device in self._gpus.items()
        ]
        return json.dumps({"gpus": gpus, "interval_s": self._interval_s}).encode() + b"\n"

    def _read_host(self, stopped: threading.Event) -> None:
        while True:
            reading = self._host.read()
            self._host_reading = clock.monotonic(), reading
            if stopped.wait(self._interval_s):
                return


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await process.wait()


def _environment() -> dict[str, str]:
    # The child finds the package wherever the daemon was started from.
    root = str(Path(gpu_daemon.__file__).parent.parent)
    return {**child_environment(), "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def _sees_all_pids() -> bool:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == INITIAL_PID_NAMESPACE
    except OSError:
        return False
