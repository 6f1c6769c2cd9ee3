"""A transcript as the files people want (pure). Cues and times as openai-whisper writes them."""

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import assert_never

from gpu_daemon.transcript.model import Segment, Transcript


class Format(StrEnum):
    JSON = "json"
    """The text alone, as an object."""
    VERBOSE_JSON = "verbose_json"
    """Everything."""
    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    TSV = "tsv"


def parse_result(text: str) -> Transcript:
    """The transcript inside a stored result, which has the daemon's own members (times, GPU figures) beside it."""
    return Transcript.model_validate_json(text, extra="ignore")


def render(format: Format, transcript: Transcript) -> str:
    match format:
        case Format.JSON:
            return json.dumps({"text": transcript.text.strip()}, ensure_ascii=False)
        case Format.VERBOSE_JSON:
            return transcript.model_dump_json()
        case Format.TEXT:
            return f"{text}\n" if (text := transcript.text.strip()) else ""
        case Format.SRT:
            return "".join(
                f"{number}\n{_srt_time(start_ms)} --> {_srt_time(end_ms)}\n{_no_arrow(text)}\n\n"
                for number, (start_ms, end_ms, text) in enumerate(_cues(transcript), start=1)
            )
        case Format.VTT:
            return "WEBVTT\n\n" + "".join(
                f"{_vtt_time(start_ms)} --> {_vtt_time(end_ms)}\n{_vtt_text(text)}\n\n"
                for start_ms, end_ms, text in _cues(transcript)
            )
        case Format.TSV:
            return "start\tend\ttext\n" + "".join(
                f"{start_ms}\t{end_ms}\t{text}\n" for start_ms, end_ms, text in _cues(transcript)
            )
        case _:
            assert_never(format)


def _cues(transcript: Transcript) -> Iterator[tuple[int, int, str]]:
    """Start and end in milliseconds, and the text on one line: a blank line or a tab would end the cue or the field."""
    for segment in transcript.segments:
        if text := " ".join(segment.text.strip().replace("\t", " ").splitlines()):
            start_s, end_s = _span_s(segment)
            yield round(start_s * 1000), round(end_s * 1000), text


def _span_s(segment: Segment) -> tuple[float, float]:
    if segment.words:
        return segment.words[0].start, segment.words[-1].end
    return segment.start, segment.end


def _clock(time_ms: int) -> tuple[int, int, int, int]:
    seconds, ms = divmod(time_ms, 1000)
    minutes, s = divmod(seconds, 60)
    h, m = divmod(minutes, 60)
    return h, m, s, ms


def _srt_time(time_ms: int) -> str:
    h, m, s, ms = _clock(time_ms)
    return f"{h:02d}:{m:02d}:{s:02d},{ms:03d}"


def _vtt_time(time_ms: int) -> str:
    h, m, s, ms = _clock(time_ms)
    hours = f"{h:02d}:" if h else ""
    return f"{hours}{m:02d}:{s:02d}.{ms:03d}"


def _no_arrow(text: str) -> str:
    """`-->` inside a text is taken for a time line; how whisper writes it."""
    return text.replace("-->", "->")


def _vtt_text(text: str) -> str:
    """WebVTT has markup: https://www.w3.org/TR/webvtt1/#webvtt-cue-text"""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
