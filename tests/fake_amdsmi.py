"""An amdsmi that answers in the shapes and units of ROCm 7, as an Instinct MI300X gives them."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

NOT_THERE = "N/A"
BDF = "0000:c1:00.0"


class AmdSmiException(Exception):
    pass


class AmdSmiLibraryException(AmdSmiException):
    """Also of a card that does not know the thing."""


def mi300x() -> dict[str, Any]:
    """By function; what is an exception is raised."""
    return {
        "amdsmi_get_gpu_activity": {"gfx_activity": 87, "umc_activity": 12, "mm_activity": NOT_THERE},
        "amdsmi_get_gpu_vram_usage": {"vram_total": 196_592, "vram_used": 20_480},
        "amdsmi_get_temp_metric": {"EDGE": AmdSmiLibraryException(), "HOTSPOT": 61},
        "amdsmi_get_power_info": {
            "socket_power": 412,
            "current_socket_power": 412,
            "average_socket_power": NOT_THERE,
            "power_limit": 750_000_000,
        },
        "amdsmi_get_power_cap_info": {"power_cap": 750_000_000, "default_power_cap": 750_000_000},
        "amdsmi_get_clock_info": {"GFX": {"clk": 2100, "max_clk": 2100}, "MEM": {"clk": 1300, "max_clk": 1300}},
        "amdsmi_get_violation_status": {
            "acc_counter": 99,
            "active_prochot_thrm": False,
            "active_ppt_pwr": True,
            "active_socket_thrm": False,
            "active_vr_thrm": NOT_THERE,
            "active_hbm_thrm": True,
        },
        "amdsmi_get_gpu_total_ecc_count": {"correctable_count": 7, "uncorrectable_count": 2, "deferred_count": 0},
        "amdsmi_get_gpu_process_list": [
            {"name": "python", "pid": 4711, "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": 18 * 2**30}},
            {"name": NOT_THERE, "pid": 900, "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": NOT_THERE}},
        ],
    }


@dataclass
class FakeAmdSmi:
    answers: dict[str, Any] = field(default_factory=mi300x)

    AmdSmiException: type[Exception] = AmdSmiException
    AmdSmiTemperatureType: Any = field(default_factory=lambda: SimpleNamespace(EDGE="EDGE", HOTSPOT="HOTSPOT"))
    AmdSmiTemperatureMetric: Any = field(default_factory=lambda: SimpleNamespace(CURRENT="CURRENT"))
    AmdSmiClkType: Any = field(default_factory=lambda: SimpleNamespace(GFX="GFX", MEM="MEM"))

    def amdsmi_init(self) -> None:
        pass

    def amdsmi_get_processor_handle_from_bdf(self, bdf: str) -> str:
        if bdf != BDF:
            raise AmdSmiLibraryException
        return bdf

    def amdsmi_get_gpu_activity(self, handle: str) -> Any:
        return self._answer("amdsmi_get_gpu_activity")

    def amdsmi_get_gpu_vram_usage(self, handle: str) -> Any:
        return self._answer("amdsmi_get_gpu_vram_usage")

    def amdsmi_get_temp_metric(self, handle: str, sensor: str, metric: str) -> Any:
        return self._answer("amdsmi_get_temp_metric", sensor)

    def amdsmi_get_power_info(self, handle: str) -> Any:
        return self._answer("amdsmi_get_power_info")

    def amdsmi_get_power_cap_info(self, handle: str) -> Any:
        return self._answer("amdsmi_get_power_cap_info")

    def amdsmi_get_clock_info(self, handle: str, clock: str) -> Any:
        return self._answer("amdsmi_get_clock_info", clock)

    def amdsmi_get_violation_status(self, handle: str) -> Any:
        return self._answer("amdsmi_get_violation_status")

    def amdsmi_get_gpu_total_ecc_count(self, handle: str) -> Any:
        return self._answer("amdsmi_get_gpu_total_ecc_count")

    def amdsmi_get_gpu_process_list(self, handle: str) -> Any:
        return self._answer("amdsmi_get_gpu_process_list")

    def _answer(self, function: str, key: str | None = None) -> Any:
        answer = self.answers[function]
        if key is not None and isinstance(answer, dict):
            answer = answer[key]
        if isinstance(answer, Exception):
            raise answer
        return answer
