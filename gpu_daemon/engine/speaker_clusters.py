"""pyannote's VBx clustering with the same outcome, from a fraction of the memory: an hour of speech is ten thousand
embeddings, and what is computed of each is computed of some at a time.

VBx: Landini, Profant, Diez, Burget, "Bayesian HMM clustering of x-vector sequences (VBx) in speaker diarization"
(arXiv:2012.14952), whose equations are named below; as pyannote has it, without the Markov model: who spoke last says
nothing of who speaks now.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from pyannote.audio.pipelines import clustering as clusterings
from pyannote.core import SlidingWindowFeature
from scipy.cluster.hierarchy import fcluster
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax

Floats = npt.NDArray[np.floating[Any]]
Found = tuple[npt.NDArray[np.integer[Any]], Floats, Floats]
"""Whose each is, int[n_chunks, n_local_speakers]; how much alike, float[n_chunks, n_local_speakers, n_clusters]; the
middle of each cluster, float[n_clusters, n_dimensions]."""

MOST_COMPARED = 7200
"""Embeddings, evenly from the whole file: what is done with them grows faster than their number. Those left out go to
the nearest cluster, as all do that hold too little speech to be compared; pyannote itself leaves out only these. So
many has an hour of dense dialogue with community-1 and 3.1, which begin a chunk each second."""
BLOCK = 1024
MOST_ROUNDS = 20
LEAST_GAIN = 1e-4
"""Of the bound on the likelihood, in a round; it is enough when there is less."""
CERTAINTY = 7.0
"""How sure it is at first of what the linkage has found, as a logit."""
LEAST_SHARE = 1e-7
"""Of all speech; a cluster with less is none."""


Filtered = tuple[Floats, npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]]
"""Of some: their embeddings, float[n, n_dimensions], and of which chunk and which speaker in it each is, int[n]."""


def thinned(compared: Callable[..., Filtered]) -> Callable[..., Filtered]:
    """pyannote's `filter_embeddings`, which says what is compared: asked of some chunks at a time; of a long file with
    MOST_COMPARED."""

    def filter_embeddings(embeddings: Floats, segmentations: Any, **named: Any) -> Filtered:
        window, found = segmentations.sliding_window, []
        for block in _blocks(len(embeddings)):
            active = SlidingWindowFeature(segmentations.data[block], window)
            _, chunks, speakers = compared(embeddings[block], segmentations=active, **named)
            found.append((chunks + block.start, speakers))
        chunks, speakers = map(np.concatenate, zip(*found, strict=True))
        if len(chunks) > MOST_COMPARED:
            kept = np.linspace(0, len(chunks) - 1, MOST_COMPARED).astype(int)
            chunks, speakers = chunks[kept], speakers[kept]
        return embeddings[chunks, speakers], chunks, speakers

    return filter_embeddings


class Vbx(clusterings.VBxClustering):  # type: ignore[misc]  # pyannote has no types
    """Asked for more speakers than there is speech to tell apart, it finds fewer; pyannote's own raises ValueError."""

    def __call__(
        self,
        embeddings: Floats,
        segmentations: Any,
        min_clusters: int = 1,
        max_clusters: float = np.inf,
        **_: object,
    ) -> Found:
        rows, chunks, speakers = self.filter_embeddings(embeddings, segmentations=segmentations)
        if len(rows) < 2:
            alone: Found = super().__call__(embeddings, segmentations)
            return alone
        rows /= _lengths(rows)
        # By its name there, where whoever runs the pipeline says how it is computed.
        dendrogram = clusterings.linkage(rows, method="centroid", metric="euclidean")
        first = np.unique(fcluster(dendrogram, self.threshold, "distance"), return_inverse=True)[1]
        rows = embeddings[chunks, speakers]
        centroids = self._centroids(rows, first)
        n_found = len(centroids)
        n_wanted = int(max(min(n_found, max_clusters), min(min_clusters, len(rows))))
        if n_wanted != n_found:
            k_means = clusterings.KMeans(n_wanted, n_init=3, random_state=42, copy_x=False)
            nearest = k_means.fit_predict(rows / _lengths(rows))
            centroids = np.stack([rows[nearest == cluster].mean(axis=0) for cluster in range(n_wanted)])
        each = embeddings.reshape(-1, embeddings.shape[-1])
        apart = np.concatenate([cdist(each[block], centroids, self.metric) for block in _blocks(len(each))])
        alike = 2 - apart.reshape(*embeddings.shape[:2], -1)
        if n_wanted != n_found or not self.constrained_assignment:
            return alike.argmax(axis=2), alike, centroids
        alike[segmentations.data.sum(axis=1) == 0] = alike.min() - 1
        return self.constrained_argmax(alike), alike, centroids

    def _centroids(self, rows: Floats, clusters: npt.NDArray[np.integer[Any]]) -> Floats:
        features = np.concatenate([self.plda(rows[block]) for block in _blocks(len(rows))])
        whose, shares = _vbx(clusters, features, self.plda.phi, self.Fa, self.Fb)
        kept = shares > LEAST_SHARE
        sums = sum(whose[block, kept].T @ rows[block] for block in _blocks(len(rows)))
        centroids: Floats = sums / whose[:, kept].sum(axis=0)[:, None]
        return centroids


def _vbx(
    clusters: npt.NDArray[np.integer[Any]], features: Floats, between: Floats, fa: float, fb: float
) -> tuple[Floats, Floats]:
    """float64[n, n_clusters]: whose each is; float64[n_clusters]: how much of all is whose. Of int[n], the clusters at
    first, and float64[n, n_features], which are changed: their variance within a speaker is 1, and `between` speakers
    as given."""
    n, n_features = features.shape
    blocks = list(_blocks(n))
    whose = np.zeros((n, int(clusters.max()) + 1))
    whose[np.arange(n), clusters] = CERTAINTY
    constant = np.empty((n, 1))
    for block in blocks:
        whose[block] = softmax(whose[block], axis=1)
        constant[block] = -0.5 * ((features[block] ** 2).sum(axis=1, keepdims=True) + n_features * np.log(2 * np.pi))
    features *= np.sqrt(between)  # (18)
    shares = np.full(whose.shape[1], 1 / whose.shape[1])
    likelihoods = np.empty(n)
    bound = -np.inf
    for _ in range(MOST_ROUNDS):
        variances = 1 / (1 + fa / fb * whose.sum(axis=0)[:, None] * between)  # (17)
        means: Floats = fa / fb * variances * (whose.T @ features)  # (16)
        expected = 0.5 * (variances + means**2) @ between
        for block in blocks:
            scores = fa * (features[block] @ means.T - expected + constant[block]) + np.log(shares + 1e-8)  # (23)
            likelihoods[block] = logsumexp(scores, axis=1)
            whose[block] = np.exp(scores - likelihoods[block, None])
        shares = whose.sum(axis=0) / whose.sum()
        before = bound
        bound = likelihoods.sum() + fb * 0.5 * (np.log(variances) - variances - means**2 + 1).sum()  # (25)
        if bound - before < LEAST_GAIN:
            break
    return whose, shares


def _lengths(rows: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    return lengths


def _blocks(n: int) -> Iterator[slice]:
    return (slice(first, first + BLOCK) for first in range(0, n, BLOCK))
