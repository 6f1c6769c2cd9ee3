"""A transcript as the files people want (pure). Cues and times as openai-whisper writes them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import count, groupby
from typing import Any, assert_never

from gpu_daemon.transcript.cues import PLAIN, Cue, CueOptions, cues, one_line
from gpu_daemon.transcript.model import Segment, Transcript

NUMBERED_SPEAKER = re.compile(r"SPEAKER_\d+")
UNKNOWN_SPEAKER = "unknown"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Format(StrEnum):
    JSON = "json"
    """The text alone, as an object."""
    VERBOSE_JSON = "verbose_json"
    """Everything."""
    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    TSV = "tsv"
    DIARIZED_JSON = "diarized_json"
    """Who said what, as OpenAI's API writes it."""


def parse_result(text: str) -> Transcript:
    """The transcript inside a stored result, which has the daemon's own members (times, GPU figures) beside it."""
    return Transcript.model_validate_json(text, extra="ignore")


def render(format: Format, transcript: Transcript, options: CueOptions = PLAIN) -> str:
    """`options` are for SRT and WebVTT; those that need the times of words change nothing where there are none."""
    match format:
        case Format.JSON:
            return json.dumps({"text": transcript.text.strip()}, ensure_ascii=False)
        case Format.VERBOSE_JSON:
            return transcript.model_dump_json()
        case Format.TEXT:
            return "".join(f"{line}\n" for line in _lines(transcript))
        case Format.SRT:
            return "".join(
                f"{number}\n{_srt_time(cue.start_ms)} --> {_srt_time(cue.end_ms)}\n{_srt_text(cue)}\n\n"
                for number, cue in enumerate(cues(transcript.segments, options), start=1)
            )
        case Format.VTT:
            return "WEBVTT\n\n" + "".join(
                f"{_vtt_time(cue.start_ms)} --> {_vtt_time(cue.end_ms)}\n{_vtt_text(cue)}\n\n"
                for cue in cues(transcript.segments, options)
            )
        case Format.TSV:
            return "start\tend\ttext\n" + "".join(
                f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{text}\n"
                for segment in transcript.segments
                if (text := one_line(segment.text).strip())
            )
        case Format.DIARIZED_JSON:
            return json.dumps(_diarized(transcript), ensure_ascii=False)
        case _:
            assert_never(format)


def diarized_segment(segment: Segment, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{segment.id}",
        "start": segment.start,
        "end": segment.end,
        "speaker": UNKNOWN_SPEAKER if segment.speaker is None else names.get(segment.speaker, segment.speaker),
        "text": segment.text.strip(),
    }


def speaker_names(segments: Sequence[Segment]) -> dict[str, str]:
    """What OpenAI's API calls speakers whom nobody knows: A, B, … in the order in which they first speak."""
    speakers = dict.fromkeys(segment.speaker for segment in segments if segment.speaker is not None)
    numbered = [speaker for speaker in speakers if NUMBERED_SPEAKER.fullmatch(speaker)]
    letters = (letter for letter in map(_letter, count()) if letter not in speakers)
    return dict(zip(numbered, letters, strict=False))


def _letter(number: int) -> str:
    """A … Z, AA, AB …"""
    more, last = divmod(number, len(LETTERS))
    return (_letter(more - 1) if more else "") + LETTERS[last]


def _diarized(transcript: Transcript) -> dict[str, Any]:
    names = speaker_names(transcript.segments)
    found = transcript.diarization
    failed = None if found is None or found.error is None else {"error": found.error, "error_code": found.error_code}
    return {
        "task": "transcribe",
        "duration": transcript.duration,
        "text": transcript.text.strip(),
        "segments": [diarized_segment(segment, names) for segment in transcript.segments],
        "usage": {"type": "duration", "seconds": transcript.duration},
    } | ({} if failed is None else {"diarization": failed})


def _lines(transcript: Transcript) -> Iterator[str]:
    """One; where speakers are known one for each turn."""
    if all(segment.speaker is None for segment in transcript.segments):
        if text := transcript.text.strip():
            yield text
        return
    for speaker, turn in groupby(transcript.segments, key=lambda segment: segment.speaker):
        if text := "".join(one_line(segment.text) for segment in turn).strip():
            yield _said_by(speaker) + text


def _said_by(speaker: str | None) -> str:
    return "" if speaker is None else f"[{speaker}]: "


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


def _srt_text(cue: Cue) -> str:
    """SubRip has no way to say `<b>` and mean it; whisper leaves it, too."""
    text = _no_arrow(_said_by(cue.speaker) + cue.before)
    return f"{text}<u>{_no_arrow(cue.underlined)}</u>{_no_arrow(cue.after)}" if cue.underlined else text


def _no_arrow(text: str) -> str:
    """`-->` inside a text is taken for a time line; how whisper writes it."""
    return text.replace("-->", "->")


def _vtt_text(cue: Cue) -> str:
    """WebVTT has markup, a tag for the voice among it: https://www.w3.org/TR/webvtt1/#webvtt-cue-text"""
    voice = "" if cue.speaker is None else f"<v {_escaped(cue.speaker)}>"
    text = voice + _escaped(cue.before)
    return f"{text}<u>{_escaped(cue.underlined)}</u>{_escaped(cue.after)}" if cue.underlined else text


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
