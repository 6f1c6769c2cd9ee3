import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from gpu_daemon.engine.centroid_linkage import centroid_linkage

Rows = npt.NDArray[np.floating[Any]]

SHAPES = st.tuples(st.integers(2, 150), st.integers(1, 40))
SEEDS = st.integers(0, 2**32 - 1)
SPREADS = st.sampled_from((0.0, 0.01, 0.3, 1.0, 3.0))


def nothing() -> None:
    pass


def voices(seed: int, shape: tuple[int, int], spread: float) -> Rows:
    """As embeddings are: of unit length, a few speakers, and one row much like the row before."""
    chance = np.random.default_rng(seed)
    n, n_dimensions = shape
    who = chance.integers(0, 5, n).cumsum() // 8 % 4
    near = np.cumsum(chance.standard_normal(shape), axis=0) / np.sqrt(np.arange(1, n + 1))[:, None]
    rows = chance.standard_normal((4, n_dimensions))[who] + spread * (near + chance.standard_normal(shape))
    unit: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def flat(dendrogram: npt.NDArray[np.float64], threshold: float) -> list[int]:
    """The first row's cluster is 0, the next other one 1, and so on."""
    labels = fcluster(dendrogram, threshold, criterion="distance").tolist()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [numbers[label] for label in labels]


@settings(max_examples=60, deadline=None)
@given(SEEDS, SHAPES, st.sampled_from((1e-3, 1.0, 1e3)), st.booleans())
def test_merges_are_those_of_scipy(seed: int, shape: tuple[int, int], scale: float, single: bool) -> None:
    rows = scale * np.random.default_rng(seed).standard_normal(shape)
    rows = rows.astype(np.float32) if single else rows
    ours, theirs = centroid_linkage(rows, nothing), linkage(rows, "centroid", "euclidean")
    assert np.array_equal(ours[:, [0, 1, 3]], theirs[:, [0, 1, 3]])
    assert np.allclose(ours[:, 2], theirs[:, 2], rtol=1e-6, atol=1e-7 * scale)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SHAPES, SPREADS, st.floats(0.05, 1.5), st.booleans())
def test_clusters_of_voices_are_those_of_scipy(
    seed: int, shape: tuple[int, int], spread: float, threshold: float, repeated: bool
) -> None:
    rows = voices(seed, (max(shape[0], 2), max(shape[1], 8)), spread)
    if repeated:  # a file that is the same again and again
        rows = np.concatenate([rows, rows, rows[::-1]])
    assert flat(centroid_linkage(rows, nothing), threshold) == flat(linkage(rows, "centroid", "euclidean"), threshold)


def test_it_takes_little_more_memory_than_the_rows_themselves() -> None:
    rows = voices(3, (1200, 256), 0.3)
    tracemalloc.start()
    ours = centroid_linkage(rows, nothing)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * rows.nbytes < len(rows) ** 2 / 2 * 8
    assert np.array_equal(ours[:, [0, 1, 3]], linkage(rows, "centroid", "euclidean")[:, [0, 1, 3]])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_refused_as_scipy_refuses_it(wrong: float) -> None:
    rows = np.eye(5)
    rows[2, 3] = wrong
    for link in (lambda: centroid_linkage(rows, nothing), lambda: linkage(rows, "centroid", "euclidean")):
        with pytest.raises(ValueError, match="finite"):
            link()


def test_it_can_be_ended() -> None:
    def end() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        centroid_linkage(voices(1, (200, 16), 0.3), end)
