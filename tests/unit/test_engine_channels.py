"""From the timeline of what the engine heard to the one of the file, and from several channels to one transcript."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.engine.channels import Channel, Merge, shifted
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import Segment, Transcript, Word


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


@dataclass
class Begun:
    """A transcription under way."""

    fraction: float = 0.0
    ended: bool = False

    def heard(self) -> tuple[Segment, ...]:
        return ()

    def result(self) -> Transcript:
        raise AssertionError


def channel(number: int, duration_s: float, transcription: Begun | None, skip_s: float = 0.0) -> Channel:
    return Channel(
        pcm=np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.int16),
        skip_samples=round(skip_s * SAMPLE_RATE_HZ),
        speaker=f"SPEAKER_{number:02d}",
        transcription=transcription,
    )


def test_who_begins_earlier_comes_first_and_keeps_the_name_of_the_channel() -> None:
    merge = Merge([channel(0, 60, Begun(ended=True)), channel(1, 60, Begun(ended=True), skip_s=2.0)])
    word = Word(word=" hello", start=1.0, end=1.5, confidence=0.9)
    merge.take([[segment(1.0, 2.0, words=(word,)), segment(10.0, 12.0)], [segment(1.0, 4.0), segment(7.5, 8.5)]])
    assert [(said.start, said.end, said.speaker, said.id) for said, _ in merge.said] == [
        (1.0, 2.0, "SPEAKER_00", 0),
        (3.0, 6.0, "SPEAKER_01", 1),
        (9.5, 10.5, "SPEAKER_01", 2),
        (10.0, 12.0, "SPEAKER_00", 3),
    ]
    assert merge.said[0].segment.words == (word.model_copy(update={"speaker": "SPEAKER_00"}),)


def test_what_another_channel_may_still_come_before_is_not_told_yet() -> None:
    merge = Merge([channel(0, 100, Begun()), channel(1, 100, slow := Begun()), channel(2, 100, None)])
    heard = [[segment(1.0, 2.0), segment(20.0, 22.0)], list[Segment](), list[Segment]()]

    def told() -> list[float]:
        merge.take(heard)
        return [said.start for said, _ in merge.said]

    assert told() == []
    heard[1].append(segment(4.0, 5.0))
    assert told() == [1.0]
    heard[1].append(segment(18.0, 19.0))
    assert told() == [1.0, 4.0]
    slow.ended = True
    assert told() == [1.0, 4.0, 18.0]
    heard[0].append(segment(23.0, 24.0))
    assert told() == [1.0, 4.0, 18.0, 20.0]


MILLISECONDS = st.integers(0, 100_000).map(lambda ms: ms / 1000)


@given(st.lists(st.lists(MILLISECONDS, max_size=12), min_size=1, max_size=4), st.randoms())
def test_told_in_any_steps_it_is_the_same(starts: list[list[float]], rng: random.Random) -> None:
    segments = [[segment(start, start + 1) for start in sorted(each)] for each in starts]
    at_once = Merge([channel(number, 120, None) for number in range(len(starts))])
    at_once.take(segments)
    begun = [Begun() for _ in starts]
    by_and_by = Merge([channel(number, 120, each) for number, each in enumerate(begun)])
    told: list[Segment] = []
    known = [0] * len(starts)
    while not all(each.ended for each in begun):
        number = rng.choice([number for number, each in enumerate(begun) if not each.ended])
        n_segments = len(segments[number])
        known[number] = rng.randint(min(known[number] + 1, n_segments), n_segments)
        begun[number].ended = known[number] == n_segments
        by_and_by.take([said[:n_known] for said, n_known in zip(segments, known, strict=True)])
        assert [one for one, _ in by_and_by.said[: len(told)]] == told
        told = [one for one, _ in by_and_by.said]
    # Of those that begin together, either may have been heard first.
    assert sorted(map(_anywhere, told)) == sorted(_anywhere(one) for one, _ in at_once.said)
    assert [one.start for one in told] == sorted(one.start for one in told)
    assert [one.id for one in told] == list(range(sum(map(len, segments))))


def _anywhere(segment: Segment) -> tuple[float, str | None]:
    return segment.start, segment.speaker
