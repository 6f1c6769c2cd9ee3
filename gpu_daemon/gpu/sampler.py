"""What a job made of its GPU."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from types import TracebackType

import pynvml

from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.nvml import NvmlSource
from gpu_daemon.gpu.reading import GpuReading, summarise
from gpu_daemon.gpu.sysfs import SysfsSource
from gpu_daemon.logs import log

INTERVAL_S = 1.0
LAST_READING_S = 0.5

Reader = Callable[[], AbstractContextManager[Callable[[], GpuReading]]]
"""Opened and called in the sampler's thread."""

# Threads that were told to stop and have not: a driver that hangs costs a thread for each job
# that its card had then, not one for each that comes.
_overdue: dict[Device, threading.Thread] = {}


class UsageSampler:
    """Reads the card at the start, once a second, and at the end, in a thread that may hang without harm.

    async with UsageSampler(device) as usage: ... usage.summary()
    """

    def __init__(self, device: Device, *, reader: Reader | None = None, interval_s: float = INTERVAL_S) -> None:
        self._device = device
        self._reader = reader or _reader_of(device)
        self._interval_s = interval_s
        self._readings: list[GpuReading] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()

    async def __aenter__(self) -> "UsageSampler":
        overdue = _overdue.get(self._device)
        if overdue is not None and overdue.is_alive():
            return self
        _overdue.pop(self._device, None)
        if self._reader is not None:
            self._thread = threading.Thread(
                target=self._sample, args=(self._reader, asyncio.get_running_loop()), name="gpu-usage", daemon=True
            )
            self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is None:
            return
        try:
            async with asyncio.timeout(LAST_READING_S):
                await self._ended.wait()
        except TimeoutError:
            _overdue[self._device] = self._thread
            log.warning("gpu.sampling_hangs", device=self._device.name, index=self._device.index)

    def summary(self) -> dict[str, float | int | None] | None:
        """The `gpu` member of a result; figures are None where the card did not say. None for a CPU."""
        return None if self._device.kind == "cpu" else summarise(self._device.index, tuple(self._readings))

    def _sample(self, reader: Reader, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with reader() as read:
                self._readings.append(read())
                while not self._stop.wait(self._interval_s):
                    self._readings.append(read())
                self._readings.append(read())
        except Exception as error:
            log.warning("gpu.sampling_failed", device=self._device.name, error=str(error))
        with suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits
            loop.call_soon_threadsafe(self._ended.set)


def _reader_of(device: Device) -> Reader | None:
    if device.kind == "cuda" and device.uuid is not None:
        return partial(NvmlSource(pynvml).reader, device.uuid)
    if device.kind == "rocm" and device.render_minor is not None:
        read = partial(SysfsSource().read, device.render_minor)
        return lambda: nullcontext(read)
    return None
