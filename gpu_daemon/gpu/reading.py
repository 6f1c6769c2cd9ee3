"""What a GPU says of itself at one moment, and what a job made of it."""

from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuReading:
    """None: the card or its driver does not say. `_mb` are 2**20 bytes, as nvidia-smi counts."""

    util_percent: float | None = None
    vram_used_mb: float | None = None
    vram_total_mb: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


def summarise(index: int, readings: Sequence[GpuReading]) -> dict[str, float | int | None]:
    """The `gpu` member of a result. A figure that no reading knows is None."""
    util = [reading.util_percent for reading in readings if reading.util_percent is not None]
    used = [reading.vram_used_mb for reading in readings if reading.vram_used_mb is not None]
    total = max((reading.vram_total_mb for reading in readings if reading.vram_total_mb is not None), default=None)
    used_avg, used_max = _average(used), max(used, default=None)
    return {
        "index": index,
        "util_avg_percent": _rounded(_average(util)),
        "util_max_percent": _rounded(max(util, default=None)),
        "vram_total_mb": _rounded(total),
        "vram_used_avg_mb": _rounded(used_avg),
        "vram_used_max_mb": _rounded(used_max),
        "vram_used_percent": _percent(used_avg, total),
        "vram_used_percent_max": _percent(used_max, total),
    }


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percent(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else _rounded(100 * part / whole)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
