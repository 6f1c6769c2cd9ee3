"""The two clocks of the daemon. Durations are measured with `monotonic`; only what people read comes from `now`."""

import time
from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds that only ever grow, whatever is done to the wall clock."""
    return time.monotonic()


def rfc3339(moment: datetime | None) -> str | None:
    """UTC with milliseconds and a Z."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
