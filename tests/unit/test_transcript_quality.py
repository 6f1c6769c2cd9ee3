from gpu_daemon.transcript.model import Quality, Segment
from gpu_daemon.transcript.quality import assess


def segment(number: int, text: str, *, avg_logprob: float = -0.2, compression_ratio: float = 1.2) -> Segment:
    return Segment(
        id=number,
        start=number,
        end=number + 1,
        text=text,
        confidence=0.8,
        avg_logprob=avg_logprob,
        no_speech_prob=0.0,
        compression_ratio=compression_ratio,
        temperature=0.0,
        seek=0,
        tokens=(1,),
    )


def test_good_segments_are_not_doubted() -> None:
    assert assess([segment(0, " one"), segment(1, " two")]) == Quality()
    assert assess([]) == Quality()


def test_a_segment_below_whispers_own_threshold_is_of_low_confidence() -> None:
    quality = assess([segment(0, " one", avg_logprob=-1.0), segment(1, " two", avg_logprob=-1.01)])
    assert quality.low_confidence_segments == (1,)
    assert quality.repetition_segments == ()


def test_text_that_compresses_too_well_is_repetition() -> None:
    quality = assess([segment(0, " one", compression_ratio=2.4), segment(1, " la la la", compression_ratio=2.41)])
    assert quality.repetition_segments == (1,)


def test_three_segments_in_a_row_that_say_the_same_are_a_loop() -> None:
    texts = [" Yes.", " Thank you.", " thank you.", " Thank you. ", " Yes.", " Yes."]
    assert assess([segment(i, text) for i, text in enumerate(texts)]).repetition_segments == (1, 2, 3)


def test_segments_without_text_are_no_loop() -> None:
    assert assess([segment(i, " ") for i in range(5)]).repetition_segments == ()
