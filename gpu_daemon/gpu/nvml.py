"""NVIDIA GPUs through NVML. Every call may block for as long as the driver likes: never on the event loop."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from gpu_daemon.gpu.reading import MIB, GpuReading

T = TypeVar("T")
Handle = Any
"""An opaque pointer of the library's."""


class NvmlModule(Protocol):
    """What is used of `pynvml` (nvidia-ml-py); tests bring recorded answers."""

    NVMLError: type[Exception]
    NVMLError_DriverNotLoaded: type[Exception]
    NVMLError_LibraryNotFound: type[Exception]
    NVML_DEVICE_MIG_ENABLE: int
    NVML_TEMPERATURE_GPU: int
    nvmlMemory_v2: int

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Handle: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> Handle: ...
    def nvmlDeviceGetName(self, handle: Handle, /) -> str: ...
    def nvmlDeviceGetUUID(self, handle: Handle, /) -> str: ...
    def nvmlDeviceGetMigMode(self, handle: Handle, /) -> list[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int, /) -> Handle: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Handle, /) -> Any: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None, /) -> Any: ...
    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int, /) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: Handle, /) -> int: ...


@dataclass(frozen=True, slots=True)
class NvidiaGpu:
    uuid: str
    """Of the card, or of the MIG slice: what CUDA_VISIBLE_DEVICES takes whatever order CUDA counts in."""
    name: str


class NvmlUnusable(Exception):
    """NVML is there but does not work; the message is the driver's own."""


class NvmlSource:
    def __init__(self, nvml: NvmlModule) -> None:
        self._nvml = nvml

    def gpus(self) -> tuple[NvidiaGpu, ...]:
        """In the order of nvidia-smi; a card in MIG mode is its slices. Empty where there is no NVIDIA driver.

        Raises NvmlUnusable.
        """
        try:
            with self._session():
                count = self._nvml.nvmlDeviceGetCount()
                return tuple(gpu for index in range(count) for gpu in self._gpus_of_card(index))
        except (self._nvml.NVMLError_LibraryNotFound, self._nvml.NVMLError_DriverNotLoaded):
            return ()
        except self._nvml.NVMLError as error:
            raise NvmlUnusable(str(error)) from error

    def read(self, uuid: str) -> GpuReading:
        """Every field on its own: what the driver refuses, or a card that is gone, is None."""
        nvml = self._nvml
        try:
            with self._session():
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                memory = self._memory(handle)
                power_mw = self._or_none(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
                return GpuReading(
                    util_percent=self._or_none(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
                    vram_used_mb=None if memory is None else memory.used / MIB,
                    vram_total_mb=None if memory is None else memory.total / MIB,
                    temperature_c=self._or_none(
                        lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
                    ),
                    power_w=None if power_mw is None else power_mw / 1000,
                )
        except nvml.NVMLError:
            return GpuReading()

    @contextmanager
    def reader(self, uuid: str) -> Iterator[Callable[[], GpuReading]]:
        """For many readings: the library stays open meanwhile, if it opens at all."""
        with ExitStack() as stack:
            with suppress(self._nvml.NVMLError):
                stack.enter_context(self._session())
            yield partial(self.read, uuid)

    def _gpus_of_card(self, index: int) -> Iterator[NvidiaGpu]:
        card = self._nvml.nvmlDeviceGetHandleByIndex(index)
        mode = self._or_none(lambda: self._nvml.nvmlDeviceGetMigMode(card))
        if mode is None or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            yield self._gpu(card)
            return
        for slot in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            mig = self._or_none(partial(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, slot))
            if mig is not None:  # a slot that holds no slice
                yield self._gpu(mig)

    def _gpu(self, handle: Handle) -> NvidiaGpu:
        return NvidiaGpu(self._nvml.nvmlDeviceGetUUID(handle), self._nvml.nvmlDeviceGetName(handle))

    def _memory(self, handle: Handle) -> Any:
        """Version 2 leaves out what the driver reserves, as nvidia-smi does; old drivers have version 1 only."""
        memory = self._or_none(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle, self._nvml.nvmlMemory_v2))
        return memory if memory is not None else self._or_none(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle))

    def _or_none(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except self._nvml.NVMLError:
            return None

    @contextmanager
    def _session(self) -> Iterator[None]:
        """NVML counts its users: one session may open inside another, in any thread."""
        self._nvml.nvmlInit()
        try:
            yield
        finally:
            with suppress(self._nvml.NVMLError):  # what was read is no less true
                self._nvml.nvmlShutdown()
