import math

import numpy as np
import pytest

from gpu_daemon.engine.level import loudest_db, quiet_lead

TONE = np.round(32767 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)
NOTHING = np.zeros(16_000, np.int16)


def test_a_full_sine_is_three_decibels_below_full_scale() -> None:
    assert loudest_db(TONE, 0.0, 1.0) == pytest.approx(-3.01, abs=0.01)
    assert loudest_db(TONE // 10, 0.2, 0.7) == pytest.approx(-23.0, abs=0.1)


def test_silence_is_below_everything() -> None:
    assert loudest_db(NOTHING, 0.0, 1.0) == -math.inf
    assert loudest_db(NOTHING, 5.0, 6.0) == -math.inf
    assert loudest_db(np.empty(0, np.int16), 0.0, 0.0) == -math.inf


def test_what_is_loudest_counts_and_only_between_the_times() -> None:
    pcm = np.concatenate([NOTHING, TONE[:3200], NOTHING])
    assert loudest_db(pcm, 0.0, 2.2) == pytest.approx(-3.01, abs=0.01)
    assert loudest_db(pcm, 0.0, 1.0) == -math.inf
    assert loudest_db(pcm, 1.3, 2.2) == -math.inf


def test_a_segment_without_length_is_where_it_is() -> None:
    pcm = np.concatenate([NOTHING, TONE])
    assert loudest_db(pcm, 1.2, 1.2) == pytest.approx(-3.01, abs=0.01)
    assert loudest_db(pcm, 0.5, 0.5) == -math.inf


@pytest.mark.parametrize("lead_s", [0.0, 0.3, 2.0, 59.9, 61.25, 150.0])
def test_what_comes_before_the_first_sound_is_counted_but_for_half_a_second(lead_s: float) -> None:
    lead = np.zeros(round(lead_s * 16_000), np.int16)
    lead[::100] = 90  # a faint hum is no sound
    pcm = np.concatenate([lead, TONE])
    assert quiet_lead(pcm) == pytest.approx(max(0.0, lead_s - 0.5) * 16_000, abs=320)


def test_where_there_is_no_sound_all_comes_before_it() -> None:
    for n_samples in (0, 1, 319, 16_000, 16_000 * 61):
        assert quiet_lead(np.full(n_samples, 90, np.int16)) == n_samples
