"""An NVML that answers what real cards were recorded to answer; held to the real one by tests/contract/test_nvml.py."""

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

MIB = 1024 * 1024
T = TypeVar("T")


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NotFound(NVMLError):
    pass


class NVMLError_InvalidArgument(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class NVMLError_LibRmVersionMismatch(NVMLError):
    pass


@dataclass
class Card:
    """A field that is None is one that this card or driver refuses with "Not Supported"."""

    uuid: str
    name: str
    util_percent: int | None = 0
    memory_bytes: tuple[int, int] | None = (0, 24576 * MIB)
    """Used and total."""
    memory_v2: bool = True
    temperature_c: int | None = 40
    power_mw: int | None = 30_000
    power_limit_mw: int | None = None
    clocks_mhz: tuple[int, int] | None = None
    """SM and memory."""
    throttle: int | None = None
    ecc_errors: int | None = None
    fan_percent: int | None = None
    processes: dict[int, int | None] | None = None
    """Bytes by pid; None: not told."""
    lost: bool = False
    slices: "list[Card | None] | None" = None
    """The slots of a card in MIG mode; None: the card knows no MIG."""


def rtx_4090(number: int = 0) -> Card:
    """Driver 575, recorded while it transcribed."""
    return Card(
        uuid=f"GPU-5f9a2c11-3d7e-4b60-9c1d-0000000000{number:02x}",
        name="NVIDIA GeForce RTX 4090",
        util_percent=63,
        memory_bytes=(4200 * MIB, 24564 * MIB),
        temperature_c=51,
        power_mw=187_340,
        power_limit_mw=450_000,
        clocks_mhz=(2520, 10501),
        throttle=0x4,
        fan_percent=37,
        processes={4711: 3900 * MIB},
    )


def laptop() -> Card:
    """A card whose driver refuses power and the second version of the memory figures."""
    return Card(
        uuid="GPU-0c1b7a32-77aa-4f05-8a4e-1f2e3d4c5b6a",
        name="NVIDIA GeForce MX450",
        util_percent=None,
        memory_bytes=(311 * MIB, 2048 * MIB),
        memory_v2=False,
        power_mw=None,
    )


@dataclass
class FakeNvml:
    cards: list[Card] = field(default_factory=list)
    broken: type[NVMLError] | None = None
    """What opening the library raises."""
    hangs: threading.Event | None = None
    """While it is set, a reading does not return; `opening_hangs`: the opening of the library."""
    opening_hangs: threading.Event | None = None
    open: int = 0

    NVMLError: type[Exception] = NVMLError
    NVMLError_DriverNotLoaded: type[Exception] = NVMLError_DriverNotLoaded
    NVMLError_GpuIsLost: type[Exception] = NVMLError_GpuIsLost
    NVMLError_LibraryNotFound: type[Exception] = NVMLError_LibraryNotFound
    NVML_CLOCK_MEM: int = 2
    NVML_CLOCK_SM: int = 1
    NVML_DEVICE_MIG_ENABLE: int = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: int = 1
    NVML_VOLATILE_ECC: int = 0
    NVML_TEMPERATURE_GPU: int = 0
    nvmlMemory_v2: int = 0x02000028

    def nvmlInit(self) -> None:
        if self.opening_hangs is not None:
            self.opening_hangs.wait()
        if self.broken is not None:
            raise self.broken
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        for card in self.cards:
            for known in (card, *(card.slices or ())):
                if known is not None and known.uuid == uuid:
                    return self._present(known)
        raise NVMLError_NotFound

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.slices is None:
            raise NVMLError_NotSupported
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return len(card.slices or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
        found = (card.slices or [])[index]
        if found is None:
            raise NVMLError_NotFound
        return found

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        return SimpleNamespace(gpu=_supported(self._present(card).util_percent))

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int | None = None) -> Any:
        if version is not None and not card.memory_v2:
            raise NVMLError_NotSupported
        used, total = _supported(self._present(card).memory_bytes)
        return SimpleNamespace(used=used, free=total - used, total=total)

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        return _supported(self._present(card).temperature_c)

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        return _supported(self._present(card).power_mw)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, card: Card) -> Card:
        for whole in self.cards:
            if whole.slices is not None and card in whole.slices:
                return whole
        raise NVMLError_InvalidArgument

    def nvmlDeviceGetEnforcedPowerLimit(self, card: Card) -> int:
        return _supported(self._present(card).power_limit_mw)

    def nvmlDeviceGetClockInfo(self, card: Card, clock: int) -> int:
        sm, memory = _supported(self._present(card).clocks_mhz)
        return sm if clock == self.NVML_CLOCK_SM else memory

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> int:
        return _supported(self._present(card).throttle)

    def nvmlDeviceGetTotalEccErrors(self, card: Card, error_type: int, counter: int) -> int:
        assert (error_type, counter) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        return _supported(self._present(card).ecc_errors)

    def nvmlDeviceGetFanSpeed(self, card: Card) -> int:
        return _supported(self._present(card).fan_percent)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        processes = _supported(self._present(card).processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[Any]:
        return self.nvmlDeviceGetComputeRunningProcesses(card)[:1]

    def _present(self, card: Card) -> Card:
        if self.hangs is not None:
            self.hangs.wait()
        if card.lost:
            raise NVMLError_GpuIsLost
        return card


def _supported(value: T | None) -> T:
    if value is None:
        raise NVMLError_NotSupported
    return value
