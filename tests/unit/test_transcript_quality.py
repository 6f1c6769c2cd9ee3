import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.transcript.model import Quality, Segment
from gpu_daemon.transcript.quality import assess

LOUD_DB = -20.0


def segment(
    number: int, text: str, *, avg_logprob: float = -0.2, compression_ratio: float = 1.2, no_speech_prob: float = 0.0
) -> Segment:
    return Segment(
        id=number,
        start=number,
        end=number + 1,
        text=text,
        confidence=0.8,
        avg_logprob=avg_logprob,
        no_speech_prob=no_speech_prob,
        compression_ratio=compression_ratio,
        temperature=0.0,
        seek=0,
        tokens=(1,),
    )


def heard(segments: Sequence[Segment]) -> Quality:
    return assess(segments, [LOUD_DB] * len(segments))


def repeated(*texts: str) -> tuple[int, ...]:
    return heard([segment(i, text) for i, text in enumerate(texts)]).repetition_segments


def test_good_segments_are_not_doubted() -> None:
    assert heard([segment(0, " one"), segment(1, " two")]) == Quality()
    assert heard([]) == Quality()


def test_a_segment_below_whispers_own_threshold_is_of_low_confidence() -> None:
    quality = heard([segment(0, " one", avg_logprob=-1.0), segment(1, " two", avg_logprob=-1.01)])
    assert quality.low_confidence_segments == (1,)
    assert quality.repetition_segments == ()


def test_text_that_compresses_too_well_is_repetition() -> None:
    quality = heard([segment(0, " one", compression_ratio=2.4), segment(1, " la la la", compression_ratio=2.41)])
    assert quality.repetition_segments == (1,)


def test_three_segments_in_a_row_that_say_the_same_are_a_loop() -> None:
    assert repeated(" Yes.", " Thank you.", " thank you!", " Thank you. ", " Yes.", " Yes.") == (1, 2, 3)


def test_segments_that_take_turns_are_a_loop() -> None:
    assert repeated("Go on.", *["What?", "Nothing."] * 3, "Well.") == (1, 2, 3, 4, 5, 6)
    assert repeated("Go on.", *["What?", "Nothing."] * 2, "Well.") == ()


def test_what_two_say_in_turn_is_no_loop_and_what_one_says_between_it_is() -> None:
    turns = [segment(i, text) for i, text in enumerate(["Yes.", "No."] * 3)]
    assert heard(turns).repetition_segments == (0, 1, 2, 3, 4, 5)
    spoken = [each.model_copy(update={"speaker": f"SPEAKER_0{i % 2}"}) for i, each in enumerate(turns)]
    assert heard(spoken).repetition_segments == (0, 1, 2, 3, 4, 5), "each says the same three times"
    varied = [each.model_copy(update={"text": f"No {i}."}) if i % 2 else each for i, each in enumerate(spoken)]
    assert heard(varied).repetition_segments == (0, 2, 4)
    two = [each.model_copy(update={"text": ["Yes.", "No.", "Well.", "Yes."][i % 4]}) for i, each in enumerate(spoken)]
    assert heard(two).repetition_segments == ()


def test_an_announcement_is_no_loop() -> None:
    segments = [segment(100 * i, "Mind the gap.") for i in range(5)]
    assert heard(segments).repetition_segments == ()
    assert (
        heard([each.model_copy(update={"start": each.start / 10, "end": each.end / 10}) for each in segments])
        != Quality()
    )


def test_segments_without_text_are_no_loop_and_break_none() -> None:
    assert repeated(*[" "] * 5) == ()
    assert repeated(*["..."] * 5) == ()
    assert repeated("Yes.", " ", "Yes.", "", "Yes.") == (0, 2, 4)


@pytest.mark.parametrize(
    "text",
    [
        "So thank you, thank you, thank you. Thank you.",
        "One two three one two three one two three one two three four",
        "No no no no no no no no",
        "Да, я знаю, да, я знаю, да, я знаю, да, я знаю.",
        "ご視聴ありがとうございましたご視聴ありがとうございましたご視聴ありがとうございましたご視聴ありがとうございました",
    ],
)
def test_a_phrase_again_and_again_in_a_segment_is_a_loop(text: str) -> None:
    assert repeated("Before.", text, "After.") == (1,)


@pytest.mark.parametrize(
    "text",
    [
        "No, no, no, no.",
        "Nine nine two, nine nine two, nine.",
        "The dog and the cat and the horse and the bird and the friend.",
        "本日は晴天なり、ただいまマイクのテスト中です。本日は晴天なり、ただいまマイクのテスト中です。",
        "Donaudampfschifffahrtsgesellschaftskapitänsmütze.",
    ],
)
def test_what_people_say_is_no_loop(text: str) -> None:
    assert repeated(text) == ()


@given(st.lists(st.integers(0, 50), max_size=60, unique=True), st.lists(st.integers(51, 99), min_size=2, max_size=20))
def test_a_loop_is_found_wherever_it_is(around: list[int], phrase: list[int]) -> None:
    middle = len(around) // 2
    words = [*around[:middle], *phrase * 4, *around[middle:]]
    assert repeated(" ".join(f"word{number}" for number in words)) == (0,)
    assert repeated(" ".join(f"word{number}" for number in around)) == ()


def test_text_over_silence_is_doubted() -> None:
    segments = [segment(i, text) for i, text in enumerate([" one", " two", " three", " ", " five"])]
    levels_db = [LOUD_DB, -64.9, -65.1, -math.inf, -math.inf]
    assert assess(segments, levels_db).silence_segments == (1, 2, 4)
    assert assess(segments, [db - 10 for db in levels_db]).silence_segments == (1, 2, 4)
    assert assess(segments, [db + 10 for db in levels_db]).silence_segments == (2, 4)


def test_a_faint_recording_is_not_silent() -> None:
    segments = [segment(i, " text") for i in range(3)]
    assert assess(segments, [-55.0, -59.0, -52.0]).silence_segments == ()


def test_text_where_the_model_heard_no_speech_is_doubted() -> None:
    segments = [segment(0, " one", no_speech_prob=0.6), segment(1, " two", no_speech_prob=0.61)]
    assert heard(segments).silence_segments == (1,)


def test_what_was_dropped_is_said() -> None:
    assert assess([], [], vad_dropped_s=3.5).vad_dropped_s == 3.5
