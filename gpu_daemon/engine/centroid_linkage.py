"""Centroid linkage without a matrix of distances: scipy's merges, from memory that grows with the rows only.

It is the generic algorithm of Müllner, "Modern hierarchical, agglomerative clustering algorithms" (arXiv:1109.2378,
figure 3): each cluster knows the nearest of those that are older than itself, and a heap says whose is nearest of all;
a cluster whose nearest has been merged away looks for another when its turn comes. What differs: distances are computed
when they are asked for, from centroids, and most are only bounded from below. Rotated so that the first few axes hold
nearly all that varies, a row is those axes and the length of the rest; two such short rows are never farther apart than
the whole ones are. Only what may be the nearest by that measure is measured in full.
"""

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

KEPT = 0.95
"""Of the variance, in a short row: with less there is more to measure in full, with more each bound costs more."""
BLOCK = 64
"""So many rows look for their nearest at once, in the beginning."""


def centroid_linkage(rows: npt.NDArray[np.floating], beat: Callable[[], None]) -> Doubles:
    """float64[n - 1, 4] of float[n, n_dimensions], n > 1: what `linkage(rows, "centroid", "euclidean")` of scipy gives.
    Of distances that are equal but for rounding, rows that are the same excepted, it may take another first, and then
    clusters may be others. `beat` may raise to end it.

    Raises ValueError when not all numbers are finite.
    """
    clusters = _Clusters(rows)
    while len(clusters.merges) < len(rows) - 1:
        if len(clusters.merges) % BLOCK == 0:
            beat()
        clusters.merge_nearest()
    return np.array(clusters.merges)


class _Clusters:
    """Those that are left are in the first `n_left` slots. The identity of a cluster is its age: the number of its row,
    or n for the first that was merged, n + 1 for the second, and so on."""

    def __init__(self, rows: npt.NDArray[np.floating]) -> None:
        n = len(rows)
        if not np.isfinite(rows).all():
            raise ValueError("rows must be finite")
        self.merges: list[tuple[int, int, float, float]] = []
        self.n_left = n
        self.centroids = rows.astype(np.float64)
        self.sizes = np.ones(n)
        self.ages = np.arange(n)
        self.slots = np.full(2 * n - 1, -1)
        """By age; -1: merged away, or not there yet."""
        self.slots[:n] = self.ages
        self.heap: list[tuple[float, int, int]] = []
        """How far, from which one, to which older one, by age."""
        self.n_axes = self._rotate()
        self.short = np.empty((n, self.n_axes + 2), np.float32)
        """The first axes, the length of the rest, and the square of the length of it all."""
        for slot in range(n):
            self._shorten(slot)
        rounding = 8 * (self.n_axes + 4) * float(np.finfo(np.float32).eps)
        self.slack = rounding * float(self.short[:, -1].max())
        """By how much the square of a bound may be too high at worst, in float32."""
        self._find_first()

    def merge_nearest(self) -> None:
        """What is on top of the heap may have been merged already: then there may be no merge this time."""
        distance, age, older = heapq.heappop(self.heap)
        slot, other = self.slots[age], self.slots[older]
        if slot < 0:
            return
        if other < 0:
            bounds = self.short[: self.n_left] @ self._asking(slot)
            bounds[self.ages[: self.n_left] >= age] = np.inf
            self._find(slot, bounds)
            return
        size = self.sizes[slot] + self.sizes[other]
        merged = (self.sizes[slot] * self.centroids[slot] + self.sizes[other] * self.centroids[other]) / size
        self.merges.append((older, age, distance, size))
        self.slots[[age, older]] = -1
        low, high = sorted((slot, other))
        self._put(low, self.centroids.shape[0] + len(self.merges) - 1, merged, size)
        self._fill(high)
        bounds = self.short[: self.n_left] @ self._asking(low)
        bounds[low] = np.inf
        self._find(low, bounds)

    def _put(self, slot: int, age: int, centroid: Doubles, size: float) -> None:
        self.centroids[slot], self.sizes[slot], self.ages[slot] = centroid, size, age
        self.slots[age] = slot
        self._shorten(slot)

    def _fill(self, slot: int) -> None:
        """The last one moves to the slot that has become free."""
        self.n_left -= 1
        if slot < self.n_left:
            for of in (self.centroids, self.sizes, self.ages, self.short):
                of[slot] = of[self.n_left]
            self.slots[self.ages[slot]] = slot

    def _find(self, slot: int, bounds: npt.NDArray[np.float32]) -> None:
        """`bounds`: of the squares of distances, less the square of the length of this one; infinite for those that are
        not asked for."""
        first = np.array([bounds.argmin()])
        if bounds[first] == np.inf:
            return
        highest = self._squares(slot, first)[0] - float(self.short[slot, -1]) + self.slack
        candidates = np.flatnonzero(bounds <= highest)
        squares = self._squares(slot, candidates)
        nearest = int(squares.argmin())
        entry = float(np.sqrt(squares[nearest])), int(self.ages[slot]), int(self.ages[candidates[nearest]])
        heapq.heappush(self.heap, entry)

    def _find_first(self) -> None:
        n = self.n_left
        not_older = np.triu(np.ones((BLOCK, BLOCK), bool))
        for first in range(0, n, BLOCK):
            end = min(n, first + BLOCK)
            bounds = self._asking(slice(first, end)) @ self.short[:end].T
            bounds[:, first:][not_older[: end - first, : end - first]] = np.inf
            for slot in range(first, end):
                self._find(slot, bounds[slot - first])

    def _squares(self, slot: int, others: npt.NDArray[np.intp]) -> Doubles:
        apart = self.centroids[others] - self.centroids[slot]
        squares: Doubles = np.einsum("ij,ij->i", apart, apart)
        return squares

    def _rotate(self) -> int:
        """In place, block by block. How many axes are enough."""
        self.centroids -= self.centroids.mean(axis=0)
        variances, axes = np.linalg.eigh(self.centroids.T @ self.centroids)
        for first in range(0, len(self.centroids), BLOCK):
            self.centroids[first : first + BLOCK] = self.centroids[first : first + BLOCK] @ axes[:, ::-1]
        kept = np.cumsum(variances[::-1])
        return int(np.searchsorted(kept, KEPT * kept[-1]) + 1)

    def _shorten(self, slot: int) -> None:
        centroid, short = self.centroids[slot], self.short[slot]
        rest = centroid[self.n_axes :]
        short[: self.n_axes] = centroid[: self.n_axes]
        short[-2] = np.sqrt(rest @ rest)
        short[-1] = short[:-1] @ short[:-1]

    def _asking(self, slots: int | slice) -> npt.NDArray[np.float32]:
        """Times a short row: the square of the distance between the two, less the square of this one's length."""
        asking = -2 * self.short[slots]
        asking[..., -1] = 1.0
        return asking
