"""The parts of a file that are decoded, from speech anywhere in it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.engine.base import Audio
from gpu_daemon.engine.clips import FRAMES_PER_S, Plan, Span, accurate, fast, whole
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

FRAME_S = 1 / FRAMES_PER_S


@st.composite
def files(draw: st.DrawFn) -> tuple[tuple[Span, ...], int]:
    """Speech as the detector says it, in order and apart, and the length of the file in samples."""
    lengths = draw(st.lists(st.tuples(st.integers(1, 8 * 16_000), st.integers(1600, 70 * 16_000)), max_size=12))
    position, spans = 0, []
    for gap, length in lengths:
        spans.append(Span((position + gap) / SAMPLE_RATE_HZ, (position + gap + length) / SAMPLE_RATE_HZ))
        position += gap + length
    return tuple(spans), position + draw(st.integers(0, 8 * 16_000))


def noise(n_samples: int, quiet: Span | None = None) -> Audio:
    samples = np.random.default_rng(0).standard_normal(n_samples, dtype=np.float32)
    if quiet is not None:
        samples[round(quiet.start_s * SAMPLE_RATE_HZ) : round(quiet.end_s * SAMPLE_RATE_HZ)] *= 0.01
    return samples


def check(plan: Plan, speech: tuple[Span, ...], n_samples: int) -> None:
    duration_s = n_samples / SAMPLE_RATE_HZ
    for clip in plan.clips:
        assert 0 <= clip.start_s < clip.end_s <= duration_s
        assert all(round(time_s * FRAMES_PER_S) / FRAMES_PER_S == time_s for time_s in clip)
    assert all(before.end_s <= after.start_s for before, after in pairwise(plan.clips))
    decoded_s = sum(clip.end_s - clip.start_s for clip in plan.clips)
    assert plan.dropped_s == pytest.approx(duration_s - decoded_s, abs=0.001)
    for span in speech:
        heard_s = sum(max(0.0, min(span.end_s, clip.end_s) - max(span.start_s, clip.start_s)) for clip in plan.clips)
        assert heard_s > span.end_s - span.start_s - FRAME_S  # a file's last samples may be less than a frame


@given(files())
def test_speech_is_decoded_whole_and_in_order(file: tuple[tuple[Span, ...], int]) -> None:
    speech, n_samples = file
    plan = accurate(speech, n_samples)
    check(plan, speech, n_samples)
    assert not plan.independent
    assert all(after.start_s - before.end_s >= 1.2 - FRAME_S / 2 for before, after in pairwise(plan.clips))


@given(files())
def test_fast_pieces_are_no_longer_than_a_window(file: tuple[tuple[Span, ...], int]) -> None:
    speech, n_samples = file
    plan = fast(speech, np.zeros(n_samples, np.float32))
    check(plan, speech, n_samples)
    assert plan.independent
    assert all(clip.end_s - clip.start_s <= 30 + FRAME_S / 2 for clip in plan.clips)


@given(st.lists(st.floats(0.5, 12), min_size=1, max_size=40))
def test_fast_pieces_are_few(lengths_s: list[float]) -> None:
    """Any two neighbours are longer than a window together, when no pause is long."""
    speech, position_s = [], 0.0
    for length_s in lengths_s:
        speech.append(Span(position_s, position_s + length_s))
        position_s += length_s + 1.0
    plan = fast(speech, np.zeros(round(position_s * SAMPLE_RATE_HZ), np.float32))
    assert all(after.end_s - before.start_s > 30 for before, after in pairwise(plan.clips))


def test_where_nothing_is_heard_all_is_dropped() -> None:
    for plan in (accurate((), 16_000), fast((), noise(16_000))):
        assert plan.clips == ()
        assert plan.dropped_s == 1.0
    assert accurate((), 0) == Plan((), independent=False, dropped_s=0.0)


def test_without_a_filter_the_file_is_one_clip() -> None:
    assert whole(5 * SAMPLE_RATE_HZ + 159) == Plan((Span(0.0, 5.0),), independent=False, dropped_s=0.0)


def test_a_long_pause_is_dropped_and_a_short_one_is_not() -> None:
    speech = (Span(1.0, 4.0), Span(5.9, 9.0), Span(11.0, 12.0))
    plan = accurate(speech, 20 * SAMPLE_RATE_HZ)
    assert plan.clips == (Span(0.6, 9.4), Span(10.6, 12.4))
    assert plan.dropped_s == 9.4
    plan = fast(speech, noise(20 * SAMPLE_RATE_HZ))
    assert plan.clips == (Span(0.6, 12.4),)
    assert fast((Span(1.0, 4.0), Span(9.1, 10.0)), noise(20 * SAMPLE_RATE_HZ)).clips == (
        Span(0.6, 4.4),
        Span(8.7, 10.4),
    )


def test_margins_do_not_overlap() -> None:
    close = (Span(1.0, 20.0), Span(20.1, 40.0))
    assert fast(close, noise(41 * SAMPLE_RATE_HZ)).clips == (Span(0.6, 20.05), Span(20.05, 40.4))


def test_long_speech_is_cut_where_it_is_quietest() -> None:
    samples = noise(60 * SAMPLE_RATE_HZ, quiet=Span(21.0, 21.5))
    clips = fast((Span(0.0, 45.0),), samples).clips
    assert [clip.start_s for clip in clips] == [0.0, pytest.approx(21.25, abs=0.2)]
    assert clips[0].end_s == clips[1].start_s


@pytest.mark.parametrize("n_samples", [1, 159, 160])
def test_a_file_shorter_than_a_frame_has_nothing_to_decode(n_samples: int) -> None:
    plan = fast((Span(0.0, n_samples / SAMPLE_RATE_HZ),), noise(n_samples))
    assert len(plan.clips) == n_samples // 160
