"""Subtitles against whisper's own writers, and through libraries that others read them with."""

import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pysubs2
import pytest
import webvtt
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper import utils

from gpu_daemon.transcript.cues import PLAIN, CueOptions
from gpu_daemon.transcript.formats import Format, render
from gpu_daemon.transcript.model import Segment, SpeakerTurn, Transcript, Word
from gpu_daemon.transcript.speakers import with_speakers
from tests.runners import DEMO
from tests.speech import conversation

HEARD = Path(__file__).parent / "heard.json"
SUBTITLES = (Format.SRT, Format.VTT)
TIME_MS = st.integers(0, 8_000_000)


def segment(number: int, start: float, end: float, text: str, words: tuple[Word, ...], speaker: str | None) -> Segment:
    return Segment(
        id=number,
        start=start,
        end=end,
        text=text,
        confidence=0.9,
        speaker=speaker,
        avg_logprob=-0.1,
        no_speech_prob=0.01,
        compression_ratio=1.1,
        temperature=0.0,
        seek=0,
        tokens=(),
        words=words,
    )


def transcript(segments: list[Segment]) -> Transcript:
    return Transcript(
        text="".join(one.text for one in segments),
        language="en",
        language_probability=None,
        duration=9000.0,
        model="demo",
        token_count=0,
        segments=tuple(segments),
    )


@cache
def heard() -> dict[str, Any]:
    """What whisper itself has made of six sentences, with the times of the words: see `main`."""
    return dict(json.loads(HEARD.read_text(encoding="utf-8")))


def ours(result: dict[str, Any], speakers: tuple[str | None, ...] = (None,)) -> Transcript:
    return transcript(
        [
            segment(
                number,
                one["start"],
                one["end"],
                one["text"],
                tuple(
                    Word(word=each["word"], start=each["start"], end=each["end"], confidence=0.9)
                    for each in one["words"]
                ),
                speakers[number % len(speakers)],
            )
            for number, one in enumerate(result["segments"])
        ]
    )


def by_whisper(format: Format, result: dict[str, Any], options: CueOptions) -> str:
    file = io.StringIO()
    given: Any = {
        "max_line_width": options.max_line_width,
        "max_line_count": options.max_line_count,
        "max_words_per_line": options.max_words_per_line,
        "highlight_words": options.highlight_words,
    }
    writer: Any = utils.get_writer(format.value, ".")
    writer.write_result(result, file, given)
    return file.getvalue()


OPTIONS = [
    PLAIN,
    CueOptions(highlight_words=True),
    CueOptions(max_words_per_line=3),
    CueOptions(max_words_per_line=1, highlight_words=True),
    CueOptions(max_line_width=12),
    CueOptions(max_line_width=12, max_line_count=2),
    CueOptions(max_line_width=16, max_line_count=1, highlight_words=True),
    CueOptions(max_line_count=2),
    CueOptions(max_line_width=20, max_words_per_line=2),
    CueOptions(max_line_width=1, max_line_count=1, max_words_per_line=1),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_real_speech_is_written_as_whisper_writes_it(options: CueOptions) -> None:
    result = heard()
    assert sum(len(one["words"]) for one in result["segments"]) > 10
    for format in SUBTITLES:
        assert render(format, ours(result), options) == by_whisper(format, result, options)
    assert render(Format.TSV, ours(result)) == by_whisper(Format.TSV, result, options)


@st.composite
def results(draw: st.DrawFn) -> dict[str, Any]:
    """As whisper's transcribe gives them, at any times, with words of any length."""
    with_words = draw(st.booleans())
    segments = []
    for number in range(draw(st.integers(0, 5))):
        start_ms = draw(TIME_MS)
        words = []
        for text in draw(st.lists(st.text("ab'é中,.", min_size=1, max_size=12), min_size=1, max_size=6)):
            end_ms = start_ms + draw(st.integers(0, 6000))
            words.append({"word": f" {text}", "start": start_ms / 1000, "end": end_ms / 1000, "probability": 0.9})
            start_ms = end_ms + draw(st.integers(0, 5000))
        text = "".join(str(word["word"]) for word in words)
        one = {"id": number, "start": words[0]["start"], "end": words[-1]["end"], "text": text}
        segments.append(one | ({"words": words} if with_words else {}))
    return {"segments": segments, "language": "en"}


limits = st.none() | st.integers(1, 30)


@settings(deadline=None)
@given(results(), st.builds(CueOptions, max_line_width=limits, max_line_count=limits, max_words_per_line=limits,
                            highlight_words=st.booleans()))  # fmt: skip
def test_anything_is_written_as_whisper_writes_it(result: dict[str, Any], options: CueOptions) -> None:
    spoken = ours({"segments": [{"words": [], **one} for one in result["segments"]]})
    for format in (*SUBTITLES, Format.TSV):
        assert render(format, spoken, options) == by_whisper(format, result, options)


def parsed_srt(text: str) -> list[tuple[int, int, str]]:
    """Start, end, and the text in SSA's own markup."""
    return [(event.start, event.end, event.text) for event in pysubs2.SSAFile.from_string(text, format_="srt")]


def two_voices(spoken: Transcript) -> Transcript:
    """They take turns of two seconds, whoever is in the middle of a sentence."""
    turns = [
        SpeakerTurn(start=2.0 * i, end=2.0 * i + 2, speaker=f"SPEAKER_0{i % 2}")
        for i in range(int(spoken.segments[-1].end / 2) + 1)
    ]
    segments = with_speakers(spoken.segments, turns)
    assert len(segments) > len(spoken.segments)
    return spoken.model_copy(update={"segments": segments})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_others_read_what_was_written(options: CueOptions) -> None:
    spoken = two_voices(ours(heard()))
    srt, vtt = parsed_srt(render(Format.SRT, spoken, options)), webvtt.from_string(render(Format.VTT, spoken, options))
    assert len(srt) == len(vtt.captions) > 3
    said: list[str] = []
    for (start_ms, end_ms, text), caption in zip(srt, vtt.captions, strict=True):
        assert (start_ms, end_ms) == (round(caption.start_in_seconds * 1000) + milliseconds(caption.start),
                                      round(caption.end_in_seconds * 1000) + milliseconds(caption.end))  # fmt: skip
        assert caption.voice in ("SPEAKER_00", "SPEAKER_01")
        speaker, _, words = text.partition("]: ")
        assert speaker == f"[{caption.voice}"
        marked = re.findall(r"{\\u1}(.*?){\\u0}", words)
        assert len(marked) <= 1
        assert re.findall(r"<u>(.*?)</u>", caption.raw_text) == marked
        assert re.sub(r"{\\u[01]}", "", words).replace(r"\N", "\n") == caption.text
        said += marked if options.highlight_words else caption.text.split()
    assert " ".join(said) == " ".join("".join(one.text for one in spoken.segments).split())


def milliseconds(time: str) -> int:
    """webvtt-py's own number leaves them out."""
    return int(time.rpartition(".")[2])


def test_what_looks_like_markup_is_read_as_it_was_said() -> None:
    spoken = transcript([segment(0, 0.0, 1.0, " AT&T <v Eve> 1 < 2 --> 3", (), "SPEAKER_00")])
    (caption,) = webvtt.from_string(render(Format.VTT, spoken)).captions
    assert (caption.voice, caption.text) == ("SPEAKER_00", "AT&amp;T &lt;v Eve&gt; 1 &lt; 2 --&gt; 3")


def main() -> None:
    """`python -m tests.contract.test_formats` makes heard.json in half a minute: whisper compiles a part of itself.

    Segments in which nothing is said are left out: whisper makes lines of them, and we do not.
    """
    model = whisper.load_model(str(DEMO), device="cpu")
    spoken = conversation("en", 500_860, 6, pauses_s=(0.5, 4.5))
    result = model.transcribe(spoken.samples.copy(), language="en", word_timestamps=True, fp16=False)
    segments = [
        {name: one[name] for name in ("id", "start", "end", "text")}
        | {"words": [{**word, "probability": float(word["probability"])} for word in one["words"]]}
        for one in result["segments"]
        if one["text"].strip()
    ]
    HEARD.write_text(json.dumps({"segments": segments, "language": "en"}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
