"""What a GPU and its host say of themselves at one moment, and what a job made of its GPU."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpu_daemon import clock

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuReading:
    """None: the card or its driver does not say. `_mb` are 2**20 bytes, as nvidia-smi counts."""

    util_percent: float | None = None
    vram_used_mb: float | None = None
    vram_ours_mb: float | None = None
    """By the runner of the worker that has this GPU."""
    vram_others_mb: float | None = None
    vram_free_mb: float | None = None
    vram_total_mb: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_sm_mhz: float | None = None
    clock_mem_mhz: float | None = None
    throttle: tuple[str, ...] | None = None
    """Why the clocks are held down, in words; empty: they are not. An idle card is not throttled."""
    ecc_errors: int | None = None
    """Uncorrected ones since the driver was loaded."""
    fan_percent: float | None = None
    by_process: Mapping[int, float | None] | None = None
    """MiB of each process by its pid; None as a value: the driver hides how much."""
    reason: str | None = None
    """Why nothing is known at all."""
    read_at_s: float | None = field(default=None, compare=False)
    """On the monotonic clock; None: never."""

    @property
    def processes(self) -> int | None:
        return None if self.by_process is None else len(self.by_process)

    @property
    def read_s_ago(self) -> float | None:
        return None if self.read_at_s is None else clock.monotonic() - self.read_at_s


@dataclass(frozen=True, kw_only=True, slots=True)
class HostReading:
    cpu_percent: float | None = None
    """Of all cores together: 100 when every one is busy."""
    memory_used_mb: float | None = None
    """What cannot be had any more without swapping."""
    memory_total_mb: float | None = None
    disk_free_mb: float | None = None
    """For the daemon's user, where DATA_DIR is."""
    disk_total_mb: float | None = None


def divided(reading: GpuReading, ours: Collection[int], *, sees_all: bool) -> GpuReading:
    """The memory in use, told apart by the pids of our own processes.

    `sees_all`: pids are the same for us and for the driver. In a container they may not be, and then a runner that is
    not in the list may still hold memory.
    """
    if reading.by_process is None:
        return reading
    found = [used for pid, used in reading.by_process.items() if pid in ours]
    known = [used for used in found if used is not None]
    if len(known) < len(found) or not (found or sees_all or not ours):
        return reading
    ours_mb, used_mb = sum(known), reading.vram_used_mb
    return replace(
        reading,
        vram_ours_mb=ours_mb,
        vram_others_mb=None if used_mb is None else max(0.0, used_mb - ours_mb),
    )


class Usage:
    """What a job made of its GPU, reading by reading: the `gpu` member of a result."""

    def __init__(self) -> None:
        self._util = _Figure()
        self._used = _Figure()
        self._total_mb: float | None = None

    def add(self, reading: GpuReading) -> None:
        """What it does not say pulls no average down."""
        self._util.add(reading.util_percent)
        self._used.add(reading.vram_used_mb)
        if reading.vram_total_mb is not None:
            self._total_mb = max(self._total_mb or 0.0, reading.vram_total_mb)

    def summary(self, index: int) -> dict[str, float | int | None]:
        """A figure that no reading knew is None."""
        util, used, total_mb = self._util, self._used, self._total_mb
        return {
            "index": index,
            "util_avg_percent": _rounded(util.average),
            "util_max_percent": _rounded(util.most),
            "vram_total_mb": _rounded(total_mb),
            "vram_used_avg_mb": _rounded(used.average),
            "vram_used_max_mb": _rounded(used.most),
            "vram_used_percent": _percent(used.average, total_mb),
            "vram_used_percent_max": _percent(used.most, total_mb),
        }


def summarise(index: int, readings: Sequence[GpuReading]) -> dict[str, float | int | None]:
    usage = Usage()
    for reading in readings:
        usage.add(reading)
    return usage.summary(index)


class _Figure:
    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0
        self.most: float | None = None

    def add(self, value: float | None) -> None:
        if value is not None:
            self._sum += value
            self._count += 1
            self.most = value if self.most is None else max(self.most, value)

    @property
    def average(self) -> float | None:
        return self._sum / self._count if self._count else None


def _percent(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else _rounded(100 * part / whole)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
