"""How loud audio is (no torch here)."""

import math

import numpy as np
import numpy.typing as npt

from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

FULL_SCALE = 32768.0
SHORT_SAMPLES = SAMPLE_RATE_HZ // 10
"""A tenth of a second: what is no longer is a click."""


def loudest_db(pcm: npt.NDArray[np.int16], start_s: float, end_s: float) -> float:
    """Of full scale, the loudest tenth of a second between them; -inf: all zeros, or nothing.

    pcm: int16[n_samples]
    """
    start = round(start_s * SAMPLE_RATE_HZ)
    end = max(round(end_s * SAMPLE_RATE_HZ), start + SHORT_SAMPLES)  # segments may have no length
    samples = pcm[start:end].astype(np.float32)
    n_parts = -(-len(samples) // SHORT_SAMPLES)
    samples.resize(n_parts * SHORT_SAMPLES, refcheck=False)
    power = float((samples.reshape(n_parts, SHORT_SAMPLES) ** 2).mean(axis=1).max(initial=0.0))
    return 10 * math.log10(power / FULL_SCALE**2) if power > 0 else -math.inf
