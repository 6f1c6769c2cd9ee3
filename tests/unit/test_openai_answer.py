"""What a client is told while its job is being done, and in which order."""

from gpu_daemon.api.openai_answer import Teller
from gpu_daemon.transcript.formats import Format
from gpu_daemon.transcript.model import Diarization, Segment, SpeakerTurn, Transcript, Word
from gpu_daemon.transcript.speakers import attributed

TURNS = [SpeakerTurn(start=0, end=1, speaker="SPEAKER_00"), SpeakerTurn(start=1, end=4, speaker="Ada")]


def segment(number: int, text: str) -> Segment:
    """A second for each word."""
    words = [f" {word}" for word in text.split()]
    start = 2.0 * number
    return Segment(
        id=number,
        start=start,
        end=start + len(words),
        text=text,
        confidence=0.9,
        avg_logprob=-0.1,
        no_speech_prob=0.0,
        compression_ratio=1.0,
        temperature=0.0,
        seek=0,
        tokens=(),
        words=tuple(
            Word(word=word, start=start + i, end=start + i + 1, confidence=0.9) for i, word in enumerate(words)
        ),
    )


HEARD = (segment(0, " Hello. Yes?"), segment(1, " It is."))
PLAIN = Transcript(
    text=" Hello. Yes? It is.",
    language="en",
    language_probability=None,
    duration=4.0,
    model="demo",
    token_count=4,
    segments=HEARD,
)
FOUND = attributed(PLAIN, TURNS, TURNS, Diarization(model="demo", speakers=("SPEAKER_00", "Ada")))
LOST = PLAIN.model_copy(update={"diarization": Diarization(model="demo", error="no", error_code="pipeline_gated")})


def told(format: Format, transcript: Transcript) -> list[tuple[str, str, str | None]]:
    """A client that has heard the first segment before the end."""
    teller = Teller(format, diarizes=transcript is not PLAIN)
    events = [*teller.heard(HEARD[:1]), *teller.rest(transcript)]
    return [
        (event["type"].rpartition(".")[2], event.get("delta", event.get("text", "")), event.get("speaker"))
        for event in events
    ]


def test_speakers_are_told_at_the_end_and_the_text_before() -> None:
    for format in (Format.DIARIZED_JSON, Format.VERBOSE_JSON):
        assert told(format, FOUND) == [
            ("delta", "Hello. Yes?", None),
            ("delta", " It is.", None),
            ("segment", "Hello.", "A"),
            ("segment", "Yes?", "Ada"),
            ("segment", "It is.", "Ada"),
            ("done", "Hello. Yes? It is.", None),
        ]
    assert [kind for kind, *_ in told(Format.JSON, FOUND)] == ["delta", "delta", "done"]


def test_where_nobody_knows_who_speaks_the_segments_are_told_all_the_same() -> None:
    assert told(Format.DIARIZED_JSON, LOST)[2:4] == [
        ("segment", "Hello. Yes?", "unknown"),
        ("segment", "It is.", "unknown"),
    ]


def test_where_nobody_asked_each_segment_follows_its_text() -> None:
    assert [kind for kind, *_ in told(Format.VERBOSE_JSON, PLAIN)] == ["delta", "segment", "delta", "segment", "done"]
