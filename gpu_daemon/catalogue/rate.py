"""How fast bytes come (pure)."""

from collections import deque

WINDOW_S = 5.0


class Rate:
    """Over the last WINDOW_S seconds, so that a stall shows."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, at_s: float, done_bytes: int) -> None:
        """`done_bytes` in all, at a moment of the monotonic clock."""
        self._marks.append((at_s, done_bytes))
        # The youngest mark that is older than the window stays: the window begins somewhere after it.
        while len(self._marks) > 2 and self._marks[1][0] <= at_s - WINDOW_S:
            self._marks.popleft()

    def bytes_per_s(self, now_s: float) -> float | None:
        """None: too early to say."""
        if len(self._marks) < 2 or now_s <= self._marks[0][0]:
            return None
        if now_s - self._marks[-1][0] > WINDOW_S:
            return 0.0
        (first_s, first), (_, last) = self._marks[0], self._marks[-1]
        return (last - first) / (now_s - first_s)
