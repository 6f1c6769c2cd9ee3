"""How loud audio is (no torch here)."""

import math

import numpy as np

from gpu_daemon.engine.base import Audio, Pcm, Samples
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

FULL_SCALE = 32768.0
WINDOW_SAMPLES = SAMPLE_RATE_HZ // 50
HEARD_POWER = (0.01 * FULL_SCALE) ** 2
KEPT_SAMPLES = SAMPLE_RATE_HZ // 2
"""As ffmpeg is told to skip silence before a file's first sound (`audio/graph.py`): -40 dB in windows of 20 ms, and
half a second is kept."""
MINUTE_SAMPLES = 60 * SAMPLE_RATE_HZ
SHORT_SAMPLES = SAMPLE_RATE_HZ // 10
"""A tenth of a second: what is no longer is a click."""


def as_floats(audio: Samples) -> Audio:
    if audio.dtype == np.int16:
        return audio.astype(np.float32) / np.float32(FULL_SCALE)
    return audio.astype(np.float32, copy=False)


def loudest_db(pcm: Pcm, start_s: float, end_s: float) -> float:
    """Of full scale, the loudest tenth of a second between them; -inf: all zeros, or nothing."""
    start = round(start_s * SAMPLE_RATE_HZ)
    end = max(round(end_s * SAMPLE_RATE_HZ), start + SHORT_SAMPLES)  # segments may have no length
    samples = pcm[start:end].astype(np.float32)
    n_parts = -(-len(samples) // SHORT_SAMPLES)
    samples.resize(n_parts * SHORT_SAMPLES, refcheck=False)
    power = float((samples.reshape(n_parts, SHORT_SAMPLES) ** 2).mean(axis=1).max(initial=0.0))
    return 10 * math.log10(power / FULL_SCALE**2) if power > 0 else -math.inf


def quiet_lead(pcm: Pcm) -> int:
    """The samples before the first sound; all of them when there is none. A minute at a time is looked at."""
    for start in range(0, len(pcm), MINUTE_SAMPLES):
        samples = pcm[start : start + MINUTE_SAMPLES].astype(np.float32)
        samples.resize(-(-len(samples) // WINDOW_SAMPLES) * WINDOW_SAMPLES, refcheck=False)
        heard = np.flatnonzero((samples.reshape(-1, WINDOW_SAMPLES) ** 2).mean(axis=1) > HEARD_POWER)
        if len(heard):
            return max(0, start + int(heard[0]) * WINDOW_SAMPLES - KEPT_SAMPLES)
    return len(pcm)
