"""AMD GPUs through AMD's own library, where it is installed; sysfs.py knows most of it too. Blocks as the driver likes.

Its versions differ in names and units, and say "N/A" of what a card has not: whatever does not fit is not known.
"""

import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from gpu_daemon.gpu.reading import MIB, GpuReading
from gpu_daemon.gpu.sysfs import SysfsSource

T = TypeVar("T")
Handle = Any
"""An opaque pointer of the library's."""
POWER = ("current_socket_power", "average_socket_power", "socket_power")
MICROWATTS_FROM = 10_000
"""A cap of so much and more is in microwatts, as it is said since ROCm 6; before, in watts."""
VIOLATIONS = {
    "active_ppt_pwr": "power cap",
    "active_socket_thrm": "heat",
    "active_prochot_thrm": "heat (hardware)",
    "active_vr_thrm": "heat (voltage regulators)",
    "active_hbm_thrm": "heat (memory)",
}


class AmdSmiModule(Protocol):
    """What is used of `amdsmi`; tests bring recorded answers."""

    AmdSmiException: type[Exception]
    AmdSmiTemperatureType: Any
    AmdSmiTemperatureMetric: Any
    AmdSmiClkType: Any

    def amdsmi_init(self) -> None: ...
    def amdsmi_get_processor_handle_from_bdf(self, bdf: str, /) -> Handle: ...
    def amdsmi_get_gpu_activity(self, handle: Handle, /) -> Mapping[str, Any]: ...
    def amdsmi_get_gpu_vram_usage(self, handle: Handle, /) -> Mapping[str, Any]: ...
    def amdsmi_get_temp_metric(self, handle: Handle, sensor: Any, metric: Any, /) -> Any: ...
    def amdsmi_get_power_info(self, handle: Handle, /) -> Mapping[str, Any]: ...
    def amdsmi_get_power_cap_info(self, handle: Handle, /) -> Mapping[str, Any]: ...
    def amdsmi_get_clock_info(self, handle: Handle, clock: Any, /) -> Mapping[str, Any]: ...
    def amdsmi_get_violation_status(self, handle: Handle, /) -> Mapping[str, Any]: ...
    def amdsmi_get_gpu_total_ecc_count(self, handle: Handle, /) -> Mapping[str, Any]: ...
    def amdsmi_get_gpu_process_list(self, handle: Handle, /) -> Any: ...


_opening = threading.Lock()


def installed() -> AmdSmiModule | None:
    """Opened, for good: one thread that closed it would close it for all. None: it is not there, or does not open."""
    with _opening:
        try:
            module = cast(AmdSmiModule, importlib.import_module("amdsmi"))
            module.amdsmi_init()
        except Exception:  # no package, no library beside it, no driver: each says it in its own way
            return None
    return module


class AmdSmiSource:
    def __init__(self, amdsmi: AmdSmiModule) -> None:
        self._amdsmi = amdsmi

    def read(self, bdf: str) -> GpuReading:
        """`bdf`: where the card is, `0000:c1:00.0`. Every field on its own."""
        smi = self._amdsmi
        try:
            handle = smi.amdsmi_get_processor_handle_from_bdf(bdf)
        except (smi.AmdSmiException, KeyError, TypeError, ValueError):
            return GpuReading()
        memory = self._said(lambda: smi.amdsmi_get_gpu_vram_usage(handle))
        used_mb, total_mb = _number(memory.get("vram_used")), _number(memory.get("vram_total"))
        return GpuReading(
            util_percent=self._number(lambda: smi.amdsmi_get_gpu_activity(handle)["gfx_activity"]),
            vram_used_mb=used_mb,
            vram_free_mb=None if used_mb is None or total_mb is None else total_mb - used_mb,
            vram_total_mb=total_mb,
            temperature_c=self._temperature_c(handle),
            power_w=self._power_w(handle),
            power_limit_w=self._power_limit_w(handle),
            clock_sm_mhz=self._clock_mhz(handle, "GFX"),
            clock_mem_mhz=self._clock_mhz(handle, "MEM"),
            throttle=self._throttle(handle),
            ecc_errors=self._or_none(lambda: int(smi.amdsmi_get_gpu_total_ecc_count(handle)["uncorrectable_count"])),
            by_process=self._by_process(handle),
        )

    def _temperature_c(self, handle: Handle) -> float | None:
        """Instinct cards have no sensor at the edge."""
        smi = self._amdsmi
        for name in ("EDGE", "HOTSPOT"):
            sensor, metric = getattr(smi.AmdSmiTemperatureType, name, None), smi.AmdSmiTemperatureMetric.CURRENT
            celsius = self._number(partial(smi.amdsmi_get_temp_metric, handle, sensor, metric))
            if celsius is not None:
                return celsius
        return None

    def _power_w(self, handle: Handle) -> float | None:
        said = self._said(lambda: self._amdsmi.amdsmi_get_power_info(handle))
        return next((watts for name in POWER if (watts := _number(said.get(name))) is not None), None)

    def _power_limit_w(self, handle: Handle) -> float | None:
        cap = self._number(lambda: self._amdsmi.amdsmi_get_power_cap_info(handle)["power_cap"])
        return cap if cap is None or cap < MICROWATTS_FROM else cap / 1e6

    def _clock_mhz(self, handle: Handle, name: str) -> float | None:
        said = self._said(lambda: self._amdsmi.amdsmi_get_clock_info(handle, getattr(self._amdsmi.AmdSmiClkType, name)))
        return _number(said.get("clk", said.get("cur_clk")))

    def _throttle(self, handle: Handle) -> tuple[str, ...] | None:
        said = self._said(lambda: self._amdsmi.amdsmi_get_violation_status(handle))
        known = {name: said[name] for name in VIOLATIONS if isinstance(said.get(name), bool | int)}
        return tuple(VIOLATIONS[name] for name, active in known.items() if active) if known else None

    def _by_process(self, handle: Handle) -> dict[int, float | None] | None:
        listed = self._or_none(lambda: self._amdsmi.amdsmi_get_gpu_process_list(handle))
        if not isinstance(listed, list):
            return None
        return self._or_none(
            lambda: {
                int(one["pid"]): None if (used := _number(one["memory_usage"]["vram_mem"])) is None else used / MIB
                for one in listed
            }
        )

    def _said(self, ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        said = self._or_none(ask)
        return said if isinstance(said, Mapping) else {}

    def _number(self, ask: Callable[[], Any]) -> float | None:
        return _number(self._or_none(ask))

    def _or_none(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except (self._amdsmi.AmdSmiException, AttributeError, KeyError, TypeError, ValueError):
            return None


def read_amd(sysfs: SysfsSource, amdsmi: AmdSmiModule | None, render_minor: int) -> GpuReading:
    """What the library does not know is taken from sysfs."""
    of_sysfs, bdf = sysfs.read(render_minor), sysfs.bdf(render_minor)
    if amdsmi is None or bdf is None or of_sysfs.reason is not None:
        return of_sysfs
    said = AmdSmiSource(amdsmi).read(bdf)
    known = {one.name: value for one in fields(said) if (value := getattr(said, one.name)) is not None}
    return replace(of_sysfs, **known)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
