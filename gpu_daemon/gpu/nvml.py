"""NVIDIA GPUs through NVML. Every call may block for as long as the driver likes: never on the event loop."""

from collections.abc import Callable, Iterator, Sequence
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
    NVMLError_GpuIsLost: type[Exception]
    NVMLError_LibraryNotFound: type[Exception]
    NVML_CLOCK_MEM: int
    NVML_CLOCK_SM: int
    NVML_DEVICE_MIG_ENABLE: int
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: int
    NVML_TEMPERATURE_GPU: int
    NVML_VOLATILE_ECC: int
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
    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Handle, /) -> Handle: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Handle, /) -> Any: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None, /) -> Any: ...
    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int, /) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetClockInfo(self, handle: Handle, clock: int, /) -> int: ...
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetTotalEccErrors(self, handle: Handle, error_type: int, counter: int, /) -> int: ...
    def nvmlDeviceGetFanSpeed(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle, /) -> Sequence[Any]: ...
    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Handle, /) -> Sequence[Any]: ...


THROTTLE_REASONS = {
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "heat",
    0x040: "heat (hardware)",
    0x080: "power brake",
    0x100: "display clock",
    0x200: "board limit",
    0x400: "reliability",
}
"""By the bit of NVML's mask. Without 0x001, the card is idle, and 0x002, somebody chose the clocks."""


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
        """Every field on its own: what the driver refuses is None. Nothing is known of a card that is gone.

        Of a MIG slice, the memory and the processes are its own; heat, power and clocks are those of its card, and
        NVML does not tell how busy it is.
        """
        nvml = self._nvml
        try:
            with self._session():
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                card = self._or_none(lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)) or handle
                memory = self._memory(handle)
                return GpuReading(
                    util_percent=self._number(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
                    vram_used_mb=None if memory is None else memory.used / MIB,
                    vram_free_mb=None if memory is None else memory.free / MIB,
                    vram_total_mb=None if memory is None else memory.total / MIB,
                    temperature_c=self._number(lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)),
                    power_w=self._number(lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1000),
                    power_limit_w=self._number(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000),
                    clock_sm_mhz=self._number(lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
                    clock_mem_mhz=self._number(lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM)),
                    throttle=self._throttle(card),
                    ecc_errors=self._or_none(
                        lambda: nvml.nvmlDeviceGetTotalEccErrors(
                            card, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                        )
                    ),
                    fan_percent=self._number(lambda: nvml.nvmlDeviceGetFanSpeed(card)),
                    by_process=self._by_process(handle),
                )
        except nvml.NVMLError as error:
            return GpuReading(reason=str(error) or type(error).__name__)

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

    def _throttle(self, card: Handle) -> tuple[str, ...] | None:
        reasons = self._or_none(lambda: self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card))
        return None if reasons is None else tuple(word for bit, word in THROTTLE_REASONS.items() if reasons & bit)

    def _by_process(self, handle: Handle) -> dict[int, float | None] | None:
        """WSL refuses the list, or the memory of those in it."""
        nvml = self._nvml
        compute = self._or_none(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        if compute is None:
            return None
        graphics = self._or_none(lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)) or ()
        # One that does both is in both lists, with the same memory.
        return {
            process.pid: None if process.usedGpuMemory is None else process.usedGpuMemory / MIB
            for process in (*graphics, *compute)
        }

    def _number(self, ask: Callable[[], float]) -> float | None:
        return self._or_none(lambda: float(ask()))

    def _or_none(self, ask: Callable[[], T]) -> T | None:
        """Raises NVMLError_GpuIsLost: such a card has nothing to say, not one field less."""
        try:
            return ask()
        except self._nvml.NVMLError_GpuIsLost:
            raise
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
