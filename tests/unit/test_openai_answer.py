"""What a client is told while its job is being done, and in which order."""

import dataclasses
import json
from typing import Any

from gpu_daemon.api.openai_answer import Teller, json_body, verbose_body
from gpu_daemon.api.openai_request import Wanted
from gpu_daemon.jobs.model import Task
from gpu_daemon.transcript.cues import PLAIN as PLAIN_CUES
from gpu_daemon.transcript.formats import Format
from gpu_daemon.transcript.model import Diarization, Segment, SpeakerTurn, TokenLogprob, Transcript, Word
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
    teller = Teller(format, diarizes=transcript is not PLAIN, logprobs=False)
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


PRIZES = [b" Two", b" \xe2\x82", b"\xac", b"."]
"""A euro sign is in two of the tokens."""
SURE = PLAIN.model_copy(
    update={
        "text": " Two €.",
        "segments": (
            HEARD[0].model_copy(
                update={
                    "text": " Two €.",
                    "logprobs": tuple(TokenLogprob.of(said, -number / 4) for number, said in enumerate(PRIZES)),
                }
            ),
        ),
    }
)
TOLD: list[dict[str, Any]] = [
    {"token": " Two", "logprob": 0.0, "bytes": [32, 84, 119, 111]},
    {"token": " \N{REPLACEMENT CHARACTER}", "logprob": -0.25, "bytes": [32, 0xE2, 0x82]},
    {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -0.5, "bytes": [0xAC]},
    {"token": ".", "logprob": -0.75, "bytes": [46]},
]
WANTED = Wanted(
    task=Task.TRANSCRIBE,
    format=Format.JSON,
    stream=False,
    segments=True,
    words=False,
    logprobs=True,
    cues=PLAIN_CUES,
)


def as_json(said: object) -> Any:
    return json.loads(json.dumps(said))


def test_a_token_may_be_a_part_of_a_character() -> None:
    assert as_json(json_body(SURE, WANTED))["logprobs"] == TOLD
    assert bytes(byte for said in TOLD for byte in said["bytes"]).decode() == SURE.text


def test_logprobs_are_there_for_who_asked() -> None:
    unasked = dataclasses.replace(WANTED, logprobs=False)
    assert "logprobs" not in json_body(SURE, unasked)
    empty = PLAIN.model_copy(update={"segments": (), "text": ""})
    assert json_body(empty, WANTED)["logprobs"] == []
    assert as_json(verbose_body(SURE, WANTED))["segments"][0]["logprobs"] == TOLD
    assert "logprobs" not in verbose_body(PLAIN, unasked)["segments"][0]


def test_a_stream_has_them_with_each_piece_of_text_and_at_the_end() -> None:
    for asks in (True, False):
        teller = Teller(Format.JSON, diarizes=False, logprobs=asks)
        delta, done = [*teller.heard(SURE.segments), *teller.rest(SURE)]
        assert as_json([delta.get("logprobs"), done.get("logprobs")]) == ([TOLD, TOLD] if asks else [None, None])


def test_where_speakers_cut_a_segment_its_tokens_are_told_once() -> None:
    heard = tuple(
        segment.model_copy(update={"logprobs": (TokenLogprob.of(segment.text.encode(), -0.5),)}) for segment in HEARD
    )
    cut = attributed(
        PLAIN.model_copy(update={"segments": heard}), TURNS, TURNS, FOUND.diarization or Diarization(model="")
    )
    assert len(cut.segments) == 3
    for body in (json_body(cut, WANTED), Teller(Format.JSON, diarizes=True, logprobs=True).done(cut)):
        assert [said["token"] for said in body["logprobs"]] == [segment.text for segment in HEARD]
