"""The harness itself: each way to be wrong is seen."""

from collections.abc import Callable

import pytest

from gpu_daemon.transcript.model import Segment, Transcript, Word
from tests.parity.case import CASES
from tests.parity.compare import difference
from tests.parity.golden import load
from tests.parity.reference import Heard

Change = Callable[[Segment], dict[str, object]]


def theirs(name: str = "mixed/words") -> Heard:
    return load()[name].heard


def ours(heard: Heard, **changed: object) -> Transcript:
    """What an engine without fault would say."""
    right = Transcript(
        text=heard.text,
        language=heard.language,
        language_probability=heard.language_probability,
        duration=60.0,
        model="demo",
        token_count=0,
        segments=heard.segments,
    )
    return right.model_copy(update=changed)


def changed(heard: Heard, number: int, change: Change) -> Transcript:
    segments = list(heard.segments)
    segments[number] = segments[number].model_copy(update=change(segments[number]))
    return ours(heard, segments=tuple(segments))


def first_word(segment: Segment, **update: object) -> tuple[Word, ...]:
    return (segment.words[0].model_copy(update=update), *segment.words[1:])


def test_each_case_has_its_golden() -> None:
    assert set(load()) == {str(case) for case in CASES}


def test_what_is_the_same_is_the_same() -> None:
    for golden in load().values():
        assert difference(golden.heard, ours(golden.heard)) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda segment: {"tokens": (*segment.tokens[:3], segment.tokens[3] + 1, *segment.tokens[4:])}, "the token"),
        (lambda segment: {"tokens": segment.tokens[:-1]}, "the token"),
        (lambda segment: {"text": segment.text + "!"}, "text"),
        (lambda segment: {"temperature": 0.2}, "temperature"),
        (lambda segment: {"start": segment.start + 0.05}, "start"),
        (lambda segment: {"end": segment.end + 0.05}, "end"),
        (lambda segment: {"seek": segment.seek + 1}, "the token"),
        (lambda segment: {"avg_logprob": segment.avg_logprob + 0.002}, "avg_logprob"),
        (lambda segment: {"no_speech_prob": segment.no_speech_prob + 0.002}, "no_speech_prob"),
        (lambda segment: {"compression_ratio": segment.compression_ratio + 0.001}, "compression_ratio"),
        (lambda segment: {"confidence": segment.confidence - 0.002}, "confidence"),
        (lambda segment: {"words": segment.words[:-1]}, "words"),
        (lambda segment: {"words": first_word(segment, start=segment.words[0].start + 0.03)}, "times of the word"),
        (lambda segment: {"words": first_word(segment, end=segment.words[0].end + 0.03)}, "times of the word"),
        (lambda segment: {"words": first_word(segment, confidence=0.0)}, "confidence of the word"),
    ],
)
def test_one_segment_that_differs_is_found(change: Change, what: str) -> None:
    heard = theirs()
    found = difference(heard, changed(heard, 4, change))
    assert found is not None
    assert found.what.startswith(what)
    assert found.seek is not None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"language": "yue"}, "language"),
        ({"language_probability": 0.123}, "language's probability"),
        ({"language_probability": None}, "language's probability"),
        ({"segments": ()}, "seek of the next segment"),
        ({"segments": theirs().segments[1:]}, "the token"),
        ({"segments": theirs().segments[:-1]}, "the token"),
        ({"segments": (*theirs().segments, theirs().segments[-1].model_copy(update={"seek": 99_000}))}, "seek"),
    ],
)
def test_a_file_that_differs_is_found(change: dict[str, object], what: str) -> None:
    found = difference(theirs(), ours(theirs(), **change))
    assert found is not None
    assert found.what.startswith(what)


def test_segments_of_a_file_without_words_have_exact_times() -> None:
    heard = theirs("mixed/coldest")
    assert difference(heard, changed(heard, 4, lambda segment: {"end": segment.end + 1e-5})) is not None


def test_a_token_that_differs_comes_with_those_before_it() -> None:
    heard = theirs()
    found = difference(heard, changed(heard, 0, lambda segment: {"tokens": (*segment.tokens[:2], 7)}))
    assert found is not None
    assert found.prefix == heard.segments[0].tokens[:2]
    assert (found.theirs, found.ours) == (heard.segments[0].tokens[2], 7)


def test_after_a_window_left_to_chance_nothing_is_compared_but_before_it_all_is() -> None:
    heard = theirs("ru-dense/default")
    chance = heard.random_from
    assert chance is not None
    certain = tuple(segment for segment in heard.segments if segment.seek < chance)
    assert difference(heard, ours(heard, segments=certain)) is None
    cold = heard.segments[-1].model_copy(update={"seek": chance, "temperature": 0.0})
    found = difference(heard, ours(heard, segments=(*certain, cold)))
    assert found is not None
    assert found.what == "temperature"
