from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.transcript.model import Diarization, Quality, Segment, SpeakerTurn, Transcript, Word
from gpu_daemon.transcript.speakers import NEAR_S, attributed, with_speakers

A, B = "SPEAKER_00", "SPEAKER_01"
FOUND = Diarization(model="demo", device="cpu", speakers=(A, B))


def segment(number: int, start: float, end: float, text: str, *words: Word) -> Segment:
    return Segment(
        id=number,
        start=start,
        end=end,
        text=text,
        confidence=0.8,
        avg_logprob=-0.2,
        no_speech_prob=0.0,
        compression_ratio=1.2,
        temperature=0.0,
        seek=100 * number,
        tokens=(1, 2, 3),
        words=words,
    )


def word(text: str, start: float, end: float) -> Word:
    return Word(word=text, start=start, end=end, confidence=0.9)


def turn(start: float, end: float, speaker: str) -> SpeakerTurn:
    return SpeakerTurn(start=start, end=end, speaker=speaker)


def said(segments: tuple[Segment, ...]) -> list[tuple[int, float, float, str, str | None]]:
    return [(each.id, each.start, each.end, each.text, each.speaker) for each in segments]


QUESTION = segment(
    7, 0.0, 3.1, " Is it here? It is.",
    word(" Is", 0.2, 0.5), word(" it", 0.5, 0.7), word(" here?", 0.7, 1.2), word(" It", 2.0, 2.4),
    word(" is.", 2.4, 3.0),
)  # fmt: skip


def test_a_segment_is_cut_where_the_speaker_changes() -> None:
    parts = with_speakers([QUESTION], [turn(0.1, 1.25, A), turn(2.1, 3.0, B)])
    assert said(parts) == [(0, 0.0, 1.2, " Is it here?", A), (1, 2.0, 3.1, " It is.", B)]
    assert [{word.speaker for word in part.words} for part in parts] == [{A}, {B}]
    assert [part.tokens for part in parts] == [(1, 2, 3), ()]
    assert [(part.seek, part.avg_logprob) for part in parts] == [(700, -0.2)] * 2


def test_a_word_is_whose_who_speaks_for_most_of_it() -> None:
    (mine,) = with_speakers([segment(0, 0, 2, " yes", word(" yes", 0.0, 2.0))], [turn(0, 0.9, A), turn(0.9, 2, B)])
    assert mine.speaker == B
    several = [turn(0.0, 0.5, A), turn(0.5, 1.3, B), turn(1.3, 2.0, A)]
    (mine,) = with_speakers([segment(0, 0, 2, " yes", word(" yes", 0.0, 2.0))], several)
    assert mine.speaker == A
    (equal,) = with_speakers([segment(0, 0, 2, " yes", word(" yes", 0.0, 2.0))], [turn(0, 1, B), turn(1, 2, A)])
    assert equal.speaker == B
    (inside,) = with_speakers([segment(0, 1, 1, " yes", word(" yes", 1.0, 1.0))], [turn(0, 2, B), turn(2, 3, A)])
    assert inside.speaker == B


@pytest.mark.parametrize(
    ("turns", "speaker"),
    [
        ([], None),
        ([turn(0, 9.5, A)], A),
        ([turn(0, 9.5, A), turn(11.4, 12, B)], B),
        ([turn(0, 9.5, A), turn(12, 13, B)], A),
        ([turn(0, 9.9 - NEAR_S, A)], None),
        ([turn(11.1 + NEAR_S, 20, B)], None),
    ],
)
def test_where_nobody_speaks_the_nearest_has_said_it(turns: list[SpeakerTurn], speaker: str | None) -> None:
    for heard in (segment(0, 10, 11, " yes", word(" yes", 10.0, 11.0)), segment(0, 10, 11, " yes")):
        assert [part.speaker for part in with_speakers([heard], turns)] == [speaker]


def test_a_word_that_nobody_is_near_goes_with_its_neighbours() -> None:
    texts = [" a", " b", " c", " d"]
    heard = segment(0, 0, 40, "".join(texts), *(word(text, 10.0 * i, 10.0 * i + 1) for i, text in enumerate(texts)))
    parts = with_speakers([heard], [turn(10, 11, A), turn(30, 31, B)])
    assert [(part.text, part.speaker) for part in parts] == [(" a b c", A), (" d", B)]
    # Its words are far from the turn, and the segment is not.
    (part,) = with_speakers([segment(0, 0, 40, " a", word(" a", 1.0, 2.0))], [turn(39, 45, B)])
    assert (part.speaker, part.words[0].speaker) == (B, B)


def test_segments_without_words_are_not_cut() -> None:
    parts = with_speakers([segment(3, 0, 5, " one"), segment(4, 5, 9, " two")], [turn(0, 3, A), turn(3, 9, B)])
    assert said(parts) == [(0, 0, 5, " one", A), (1, 5, 9, " two", B)]
    assert with_speakers([], [turn(0, 1, A)]) == ()


def test_a_text_that_is_not_the_words_joined_stays_whole() -> None:
    """Languages without spaces, and words that were dropped as invented."""
    words = (word("你", 0, 1), word("好吗", 1, 2), word("好", 5, 6), word("gone", 6, 7))
    parts = with_speakers([segment(0, 0, 7, "你好吗?  好。", *words)], [turn(0, 2, A), turn(5, 6, B), turn(6, 7, A)])
    assert [part.text for part in parts] == ["你好吗?  ", "好", "。"]


def test_the_transcript_of_a_conversation() -> None:
    other = segment(8, 3.5, 4.0, " Hm.", word(" Hm.", 3.5, 4.0))
    transcript = Transcript(
        text=" Is it here? It is. Hm.",
        language="en",
        language_probability=None,
        duration=4.0,
        model="base",
        token_count=6,
        segments=(QUESTION, other),
        quality=Quality(vad_dropped_s=1.5, low_confidence_segments=(7,), repetition_segments=(8,)),
    )
    turns = [turn(0.1, 1.25, A), turn(2.1, 3.0, B), turn(2.5, 4.0, A)]
    found = attributed(transcript, turns, [turn(0.1, 1.25, A), turn(2.1, 3.0, B), turn(3.0, 4.0, A)], FOUND)
    assert [part.speaker for part in found.segments] == [A, B, A]
    assert found.transcription_segments == transcript.segments
    assert found.diarization_segments == tuple(turns)
    assert found.diarization == FOUND
    assert found.quality == Quality(vad_dropped_s=1.5, low_confidence_segments=(0, 1), repetition_segments=(2,))
    assert (found.text, found.token_count) == (transcript.text, 6)


@st.composite
def heard(draw: st.DrawFn) -> list[Segment]:
    """One after the other, with words or without; times are in order, and may be equal."""
    segments, clock_s = [], 0.0
    for number in range(draw(st.integers(0, 5))):
        words: list[Word] = []
        start = clock_s = clock_s + draw(st.sampled_from([0.0, 0.3, 2.5]))
        for _ in range(draw(st.integers(0, 6))):
            begins = clock_s + draw(st.sampled_from([0.0, 0.1, 4.0]))
            clock_s = begins + draw(st.sampled_from([0.0, 0.2, 1.0]))
            words.append(word(draw(st.sampled_from([" a", " b", "a", " ab", "", " ", "é"])), begins, clock_s))
        text = "".join(each.word for each in words) if draw(st.booleans()) else draw(st.text("ab é", max_size=8))
        clock_s += draw(st.sampled_from([0.0, 0.4]))
        segments.append(segment(number, start, clock_s, text, *words))
    return segments


@st.composite
def spoken(draw: st.DrawFn) -> list[SpeakerTurn]:
    turns, clock_s = [], 0.0
    for _ in range(draw(st.integers(0, 8))):
        start = clock_s + draw(st.sampled_from([0.0, 0.15, 3.0]))
        clock_s = start + draw(st.sampled_from([0.05, 0.5, 2.0]))
        turns.append(turn(start, clock_s, draw(st.sampled_from([A, B, "Ada"]))))
    return turns


@given(heard(), spoken())
def test_nothing_that_was_heard_is_lost_or_moved(segments: list[Segment], turns: list[SpeakerTurn]) -> None:
    parts = with_speakers(segments, turns)
    assert [part.id for part in parts] == list(range(len(parts)))
    assert [part.start for part in parts] == sorted(part.start for part in parts)
    assert with_speakers(parts, turns) == parts
    place = 0
    for whole in segments:
        own = [part for part in parts[place:] if part.seek == whole.seek]
        place += len(own)
        assert "".join(part.text for part in own) == whole.text
        heard_words = [each.model_copy(update={"speaker": None}) for part in own for each in part.words]
        assert tuple(heard_words) == whole.words
        assert (own[0].start, own[-1].end) == (whole.start, whole.end)
        assert all(whole.start <= part.start <= part.end <= whole.end for part in own)
        assert all(before.end <= after.start for before, after in pairwise(own))
        assert all(before.speaker != after.speaker for before, after in pairwise(own))
        assert all({each.speaker for each in part.words} <= {part.speaker} for part in own)
        assert sum((part.tokens for part in own), ()) == whole.tokens
    assert place == len(parts)


@given(heard(), spoken())
def test_one_speaker_cuts_nothing(segments: list[Segment], turns: list[SpeakerTurn]) -> None:
    alone = [each.model_copy(update={"speaker": A}) for each in turns]
    parts = with_speakers(segments, alone)
    assert [(part.text, part.start, part.end, part.tokens) for part in parts] == [
        (whole.text, whole.start, whole.end, whole.tokens) for whole in segments
    ]
    assert {part.speaker for part in parts} <= {A, None}


@given(heard(), spoken())
def test_words_are_whose_the_slow_way_says(segments: list[Segment], turns: list[SpeakerTurn]) -> None:
    """Looking at every turn for every word."""
    for part in with_speakers(segments, turns):
        for each in part.words:
            overlaps: dict[str, float] = defaultdict(float)
            for one in turns:
                if one.start < each.end and one.end > each.start:
                    overlaps[one.speaker] += min(each.end, one.end) - max(each.start, one.start)
            if overlaps:
                assert each.speaker is not None
                assert overlaps[each.speaker] == pytest.approx(max(overlaps.values()))


def test_an_hour_takes_no_longer_for_each_minute() -> None:
    looked_at = 0

    class Watched(SpeakerTurn):
        def __getattribute__(self, name: str) -> object:
            nonlocal looked_at
            looked_at += name in ("start", "end")
            return super().__getattribute__(name)

    def looks(n_segments: int) -> int:
        nonlocal looked_at
        texts = (" a", " b", " c")
        segments = [
            segment(
                i,
                9.0 * i,
                9.0 * i + 9,
                "".join(texts),
                *(word(t, 9.0 * i + 3 * j, 9.0 * i + 3 * j + 2) for j, t in enumerate(texts)),
            )
            for i in range(n_segments)
        ]
        turns = [Watched(start=2.0 * i, end=2.0 * i + 1.5, speaker=(A, B)[i % 2]) for i in range(5 * n_segments)]
        looked_at = 0
        assert len(with_speakers(segments, turns)) >= n_segments
        return looked_at

    assert 1000 < looks(1000) < looks(2000) < 2.1 * looks(1000)
