"""How much may come from outside, and how slowly."""

from dataclasses import dataclass

from gpu_daemon import clock


@dataclass(frozen=True, kw_only=True, slots=True)
class FileLimits:
    file_bytes: int
    reserve_bytes: int
    """So much of the disk stays free."""
    idle_s: float = 30.0
    """The longest that nothing may come."""
    least_bytes_per_s: int = 4096
    """On average, looked at after `idle_s`."""
    total_s: float = 4 * 3600.0


class Pace:
    """Who sends may be slow, but must not stall, and must come to an end."""

    def __init__(self, limits: FileLimits) -> None:
        self._limits = limits
        self._began_s = clock.monotonic()
        self._bytes = 0

    @property
    def patience_s(self) -> float:
        """How long to wait for what comes next."""
        left_s = self._began_s + self._limits.total_s - clock.monotonic()
        return max(0.0, min(self._limits.idle_s, left_s))

    def came(self, n_bytes: int) -> bool:
        """Fast enough, all in all?"""
        self._bytes += n_bytes
        took_s = clock.monotonic() - self._began_s
        return took_s <= self._limits.idle_s or self._bytes >= took_s * self._limits.least_bytes_per_s
