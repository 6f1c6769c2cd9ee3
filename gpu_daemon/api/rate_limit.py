"""So many submissions a minute of each client; counted before the body is read."""

import math

from fastapi import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from gpu_daemon import clock
from gpu_daemon.errors import RateLimited


class RateLimit:
    """A client is its API key or, where none are configured, its address."""

    def __init__(self, per_minute: int) -> None:
        """`per_minute`: 0 counts nothing."""
        self._limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._window = MovingWindowRateLimiter(MemoryStorage())

    def check(self, request: Request, client: str | None) -> None:
        """Raises RateLimited."""
        if self._limit is None:
            return
        who = client or (request.client.host if request.client is not None else "")
        if not self._window.hit(self._limit, who):
            reset_s = self._window.get_window_stats(self._limit, who).reset_time - clock.now().timestamp()
            raise RateLimited(
                f"more than {self._limit.amount} submissions in a minute; send the next one a little later",
                retry_after_s=max(1, math.ceil(reset_s)),
            )
