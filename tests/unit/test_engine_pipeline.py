"""From the timeline of what the engine heard to the one of the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.engine.pipeline import shifted
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import Segment, Word


def segment(start: float, end: float, *, seek: int = 0, words: tuple[Word, ...] = ()) -> Segment:
    return Segment(
        id=3,
        start=start,
        end=end,
        text=" hello",
        confidence=0.8,
        avg_logprob=-0.2,
        no_speech_prob=0.0,
        compression_ratio=1.2,
        temperature=0.0,
        seek=seek,
        tokens=(50364, 1, 50464),
        words=words,
    )


def test_skipped_silence_is_added_to_every_time() -> None:
    heard = segment(0.5, 2.0, seek=3000, words=(Word(word=" hello", start=0.5, end=1.25, confidence=0.9),))
    told = shifted(heard, skip_samples=10 * SAMPLE_RATE_HZ, duration_s=60.0)
    assert (told.start, told.end) == (10.5, 12.0)
    assert told.seek == 4000
    assert told.words == (Word(word=" hello", start=10.5, end=11.25, confidence=0.9),)
    assert (told.id, told.text, told.tokens) == (3, " hello", (50364, 1, 50464))


def test_an_end_in_the_padding_is_pulled_back_to_the_end_of_the_file() -> None:
    told = shifted(segment(25.0, 30.0), skip_samples=0, duration_s=27.5)
    assert (told.start, told.end) == (25.0, 27.5)


def test_nothing_skipped_leaves_times_as_they_are_but_for_noise_below_a_millisecond() -> None:
    told = shifted(segment(0.1 + 0.2, 1.0), skip_samples=0, duration_s=60.0)
    assert told.start == 0.3


@given(
    start=st.floats(0, 100),
    length=st.floats(0, 30),
    skip_samples=st.integers(0, 100 * SAMPLE_RATE_HZ),
    extra_s=st.floats(0, 100),
)
def test_times_stay_in_the_file_and_in_order(start: float, length: float, skip_samples: int, extra_s: float) -> None:
    duration_s = skip_samples / SAMPLE_RATE_HZ + extra_s
    told = shifted(segment(start, start + length), skip_samples, duration_s)
    assert 0 <= told.start <= told.end <= duration_s + 0.0005
    unclamped_s = start + skip_samples / SAMPLE_RATE_HZ
    assert told.start == pytest.approx(min(unclamped_s, duration_s), abs=0.0006)
