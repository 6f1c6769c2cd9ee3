import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.transcript.cues import CueOptions, have_words
from gpu_daemon.transcript.formats import Format, parse_result, render
from gpu_daemon.transcript.model import Diarization, Segment, Transcript, Word


def segment(id_: int, start: float, end: float, text: str, *words: tuple[str, float, float]) -> Segment:
    return Segment(
        id=id_,
        start=start,
        end=end,
        text=text,
        confidence=0.9,
        avg_logprob=-0.1,
        no_speech_prob=0.01,
        compression_ratio=1.1,
        temperature=0.0,
        seek=0,
        tokens=(50364, 440),
        words=tuple(Word(word=word, start=from_s, end=to_s, confidence=0.9) for word, from_s, to_s in words),
    )


def transcript(*segments: Segment) -> Transcript:
    return Transcript(
        text="".join(one.text for one in segments),
        language="en",
        language_probability=0.98,
        duration=400_000.0,
        model="demo",
        token_count=2 * len(segments),
        segments=segments,
    )


TWO = transcript(segment(0, 0.0, 5.2, " Good morning."), segment(1, 3661.5, 3662.0415, " It's <b>me</b> & you."))

GOLDEN = {
    Format.JSON: '{"text": "Good morning. It\'s <b>me</b> & you."}',
    Format.TEXT: "Good morning. It's <b>me</b> & you.\n",
    Format.SRT: (
        "1\n00:00:00,000 --> 00:00:05,200\nGood morning.\n\n2\n01:01:01,500 --> 01:01:02,042\nIt's <b>me</b> & you.\n\n"
    ),
    Format.VTT: (
        "WEBVTT\n\n00:00.000 --> 00:05.200\nGood morning.\n\n"
        "01:01:01.500 --> 01:01:02.042\nIt's &lt;b&gt;me&lt;/b&gt; &amp; you.\n\n"
    ),
    Format.TSV: "start\tend\ttext\n0\t5200\tGood morning.\n3661500\t3662042\tIt's <b>me</b> & you.\n",
}


@pytest.mark.parametrize("format", GOLDEN)
def test_golden(format: Format) -> None:
    assert render(format, TWO) == GOLDEN[format]


def test_verbose_json_is_everything() -> None:
    assert Transcript.model_validate_json(render(Format.VERBOSE_JSON, TWO)) == TWO


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (Format.JSON, '{"text": ""}'),
        (Format.TEXT, ""),
        (Format.SRT, ""),
        (Format.VTT, "WEBVTT\n\n"),
        (Format.TSV, "start\tend\ttext\n"),
        (
            Format.DIARIZED_JSON,
            '{"task": "transcribe", "duration": 400000.0, "text": "", "segments": [], '
            '"usage": {"type": "duration", "seconds": 400000.0}}',
        ),
    ],
)
def test_nothing_said(format: Format, expected: str) -> None:
    assert render(format, transcript()) == expected
    if format is not Format.DIARIZED_JSON:
        assert render(format, transcript(segment(0, 0.0, 1.0, "  "))) == expected


def test_more_than_99_hours() -> None:
    late = transcript(segment(0, 100 * 3600.0, 100 * 3600 + 1.0, " late"))
    assert "100:00:00,000 --> 100:00:01,000" in render(Format.SRT, late)
    assert "100:00:00.000 --> 100:00:01.000" in render(Format.VTT, late)


def test_rounding_carries_into_the_minutes() -> None:
    assert "00:00:59,999 --> 00:01:00,000" in render(Format.SRT, transcript(segment(0, 59.9994, 59.9996, " x")))


def test_a_text_cannot_end_its_cue_or_make_another() -> None:
    tricky = transcript(segment(0, 0.0, 1.0, " a\n\n2\n00:00:00,000 --> 00:00:09,000\tb\r\n\u2028c"))
    cue = render(Format.SRT, tricky)
    assert cue.count("-->") == 1
    assert cue.endswith("\n\n")
    assert cue.count("\n\n") == 1
    assert render(Format.VTT, tricky).count("-->") == 1
    assert len(render(Format.TSV, tricky).splitlines()) == 2
    assert render(Format.TSV, tricky).splitlines()[1].count("\t") == 2


def test_with_word_times_a_cue_spans_its_words() -> None:
    spoken = transcript(segment(0, 0.0, 30.0, " Good morning.", (" Good", 1.0, 1.25), (" morning.", 1.25, 2.0)))
    assert render(Format.SRT, spoken) == "1\n00:00:01,000 --> 00:00:02,000\nGood morning.\n\n"


def talk(*said: tuple[str | None, str]) -> Transcript:
    """Each in a second of its own."""
    return transcript(
        *(
            segment(i, float(i), i + 1.0, text).model_copy(update={"speaker": speaker})
            for i, (speaker, text) in enumerate(said)
        )
    )


DIALOGUE = talk(
    ("SPEAKER_01", " Good morning."), ("SPEAKER_01", " Is it --> here?"), ("SPEAKER_00", " It is."), (None, " Hm.")
)


def test_who_speaks_is_said_in_each_format() -> None:
    assert render(Format.TEXT, DIALOGUE).splitlines() == [
        "[SPEAKER_01]: Good morning. Is it --> here?",
        "[SPEAKER_00]: It is.",
        "Hm.",
    ]
    assert render(Format.SRT, DIALOGUE).splitlines()[2::4] == [
        "[SPEAKER_01]: Good morning.",
        "[SPEAKER_01]: Is it -> here?",
        "[SPEAKER_00]: It is.",
        "Hm.",
    ]
    assert "\n<v SPEAKER_01>Is it --&gt; here?\n" in render(Format.VTT, DIALOGUE)
    assert "\nHm.\n" in render(Format.VTT, DIALOGUE)
    said = json.loads(render(Format.DIARIZED_JSON, DIALOGUE))
    assert [one["speaker"] for one in said["segments"]] == ["A", "A", "B", "unknown"]
    assert said["segments"][2] == {
        "type": "transcript.text.segment",
        "id": "seg_2",
        "start": 2.0,
        "end": 3.0,
        "speaker": "B",
        "text": "It is.",
    }


def test_a_speaker_whose_name_is_known_keeps_it() -> None:
    many = talk(("Anna <a>", " one"), *((f"SPEAKER_{n:02d}", " x") for n in range(28)))
    names = [one["speaker"] for one in json.loads(render(Format.DIARIZED_JSON, many))["segments"]]
    assert (names[0], names[1], names[26], names[27], names[28]) == ("Anna <a>", "A", "Z", "AA", "AB")
    assert "<v Anna &lt;a&gt;>one" in render(Format.VTT, many)


def test_nobody_gets_the_letter_that_somebody_is_called() -> None:
    names = [
        one["speaker"]
        for one in json.loads(
            render(Format.DIARIZED_JSON, talk(("SPEAKER_01", " x"), ("A", " x"), ("SPEAKER_00", " x"), ("C", " x")))
        )["segments"]
    ]
    assert names == ["B", "A", "D", "C"]
    arrow = render(Format.SRT, talk(("a --> b", " x")))
    assert arrow.count("-->") == 1


def test_why_nobody_knows_who_speaks_is_said_where_it_was_asked() -> None:
    failed = Diarization(model="demo", error="the pipeline is gated", error_code="pipeline_gated")
    said = json.loads(render(Format.DIARIZED_JSON, DIALOGUE.model_copy(update={"diarization": failed})))
    assert said["diarization"] == {"error": "the pipeline is gated", "error_code": "pipeline_gated"}
    found = json.loads(
        render(Format.DIARIZED_JSON, DIALOGUE.model_copy(update={"diarization": Diarization(model="x")}))
    )
    assert "diarization" not in found


def test_a_cue_is_one_speakers() -> None:
    both = transcript(segment(0, 0.0, 2.0, " yes no", (" yes", 0.0, 1.0), (" no", 1.0, 2.0)))
    first, second = both.segments[0].words
    words = (first.model_copy(update={"speaker": "SPEAKER_00"}), second.model_copy(update={"speaker": "SPEAKER_01"}))
    both = both.model_copy(update={"segments": (both.segments[0].model_copy(update={"words": words}),)})
    assert render(Format.VTT, both) == (
        "WEBVTT\n\n00:00.000 --> 00:01.000\n<v SPEAKER_00>yes\n\n00:01.000 --> 00:02.000\n<v SPEAKER_01>no\n\n"
    )


def test_a_highlighted_word_is_escaped_inside_its_mark() -> None:
    spoken = transcript(segment(0, 0.0, 2.0, " a <b> --> c", (" a", 0.0, 1.0), (" <b>", 1.0, 1.5), (" -->", 1.5, 2.0)))
    options = CueOptions(highlight_words=True)
    assert "\na <u>&lt;b&gt;</u> --&gt;\n" in render(Format.VTT, spoken, options)
    assert "\na <b> <u>-></u>\n" in render(Format.SRT, spoken, options)


def test_whether_the_times_of_words_are_known() -> None:
    assert not have_words(TWO.segments)
    assert have_words(())
    assert have_words((segment(0, 0.0, 1.0, " "), segment(1, 0.0, 1.0, " x", (" x", 0.0, 1.0))))
    assert not CueOptions().need_words
    assert CueOptions(max_line_count=1).need_words


def test_among_segments_with_words_one_without_them_is_one_long_word() -> None:
    mixed = transcript(segment(0, 0.0, 1.0, " x", (" x", 0.0, 1.0)), segment(1, 2.0, 3.0, " two words"))
    assert "00:00:02,000 --> 00:00:03,000\ntwo words\n" in render(Format.SRT, mixed)


def test_a_stored_result_gives_its_transcript_back() -> None:
    stored = TWO.model_dump_json()[:-1] + ', "queue_time_s": 0.2, "timings": {"loading": 1}, "gpu": {"index": 0}}'
    assert parse_result(stored) == TWO


times = st.floats(0, 500_000, allow_nan=False).map(lambda seconds: round(seconds, 3))


@st.composite
def transcripts(draw: st.DrawFn, text: st.SearchStrategy[str]) -> Transcript:
    spans = draw(st.lists(st.tuples(times, times, text), max_size=6))
    return transcript(*(segment(i, min(a, b), max(a, b), said) for i, (a, b, said) in enumerate(spans)))


@given(transcripts(st.text(max_size=60)))
def test_any_text_keeps_the_shape_of_its_file(spoken: Transcript) -> None:
    heard = [one for one in spoken.segments if one.text.strip()]
    blocks = render(Format.SRT, spoken).split("\n\n")
    assert blocks.pop() == ""
    assert len(blocks) == len(heard)
    for number, block in enumerate(blocks, start=1):
        index, times_line, text = block.split("\n", 2)
        assert index == str(number)
        assert re.fullmatch(r"\d{2,}:\d\d:\d\d,\d{3} --> \d{2,}:\d\d:\d\d,\d{3}", times_line)
        assert "\n" not in text
        assert "-->" not in text
    assert render(Format.VTT, spoken).count("-->") == len(heard)
    assert len(render(Format.TSV, spoken).split("\n")) == len(heard) + 2
