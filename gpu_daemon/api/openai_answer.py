"""Transcripts as OpenAI's audio API says them (pure)."""

from collections.abc import Iterable, Iterator
from typing import Any

from gpu_daemon.api.openai_request import Wanted
from gpu_daemon.jobs.languages import LANGUAGES
from gpu_daemon.jobs.model import Task
from gpu_daemon.transcript.formats import Format, diarized_segment, speaker_names
from gpu_daemon.transcript.model import Segment, Transcript

AUDIO_TOKENS_PER_S = 50
"""Positions of Whisper's encoder: 1500 for a window of 30 seconds."""
WITH_SEGMENTS = frozenset({Format.DIARIZED_JSON, Format.VERBOSE_JSON})
"""Streamed, these have an event for each segment, too."""


def json_body(transcript: Transcript, wanted: Wanted) -> dict[str, Any]:
    return (
        {"text": transcript.text.strip(), "languages": [{"code": transcript.language}]}
        | ({"logprobs": _logprobs(transcript.segments)} if wanted.logprobs else {})
        | {"usage": _duration(transcript)}
    )


def verbose_body(transcript: Transcript, wanted: Wanted) -> dict[str, Any]:
    """OpenAI's members, and after them in segments and words those of ours that they do not have."""
    translated = wanted.task is Task.TRANSLATE
    said: dict[str, Any] = {
        "task": wanted.task.value,
        "language": "english" if translated else LANGUAGES.get(transcript.language, transcript.language).lower(),
        "duration": transcript.duration,
        "text": transcript.text.strip(),
    }
    if wanted.segments:
        said["segments"] = [_segment(segment) for segment in transcript.segments]
    if wanted.words:
        said["words"] = [
            {
                "word": word.word.strip(),
                "start": word.start,
                "end": word.end,
                "confidence": word.confidence,
                "speaker": word.speaker or segment.speaker,
            }
            for segment in transcript.segments
            for word in segment.words
        ]
    return said | {"usage": _duration(transcript)}


class Teller:
    """Which events are still to come, for a client to whom the text is streamed."""

    def __init__(self, format: Format, *, diarizes: bool, logprobs: bool) -> None:
        """`diarizes`: who speaks is known only at the end, and cuts segments: they are told then, and all at once."""
        self._has_segments = format in WITH_SEGMENTS
        self._diarizes = diarizes
        self._logprobs = logprobs
        self._told = 0
        self._blanks = ""
        """At the end of what was said; the text has none there."""

    def heard(self, segments: tuple[Segment, ...]) -> Iterator[dict[str, Any]]:
        """Of the segments from the first one on. Another attempt at the job hears the same from the start."""
        at_once = self._has_segments and not self._diarizes
        names = speaker_names(segments)
        for segment in segments[self._told :]:
            self._told += 1
            text = self._blanks + segment.text
            said = text.rstrip()
            self._blanks = text[len(said) :]
            if self._told == 1:
                said = said.lstrip()
            if said:
                delta = {"type": "transcript.text.delta", "delta": said}
                yield (
                    delta
                    | ({"logprobs": _logprobs([segment])} if self._logprobs else {})
                    | ({"segment_id": f"seg_{segment.id}"} if at_once else {})
                )
            if at_once:
                yield diarized_segment(segment, names)

    def rest(self, transcript: Transcript) -> Iterator[dict[str, Any]]:
        """What `heard` has not had, and the end."""
        cut = transcript.diarization is not None and transcript.diarization.error is None
        yield from self.heard(transcript.transcription_segments if cut else transcript.segments)
        if self._has_segments and self._diarizes:
            names = speaker_names(transcript.segments)
            for segment in transcript.segments:
                yield diarized_segment(segment, names)
        yield self.done(transcript)

    def done(self, transcript: Transcript) -> dict[str, Any]:
        audio_tokens = round(transcript.duration * AUDIO_TOKENS_PER_S)
        said = {
            "type": "transcript.text.done",
            "text": transcript.text.strip(),
            "languages": [{"code": transcript.language}],
            "usage": {
                "type": "tokens",
                "input_tokens": audio_tokens,
                "input_token_details": {"audio_tokens": audio_tokens},
                "output_tokens": transcript.token_count,
                "total_tokens": audio_tokens + transcript.token_count,
            },
        }
        return said | ({"logprobs": _logprobs(transcript.segments)} if self._logprobs else {})


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "seek": segment.seek,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
        "confidence": segment.confidence,
        "speaker": segment.speaker,
    } | ({} if segment.logprobs is None else {"logprobs": _logprobs([segment])})


def _logprobs(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    return [said.model_dump() for segment in segments for said in segment.logprobs or ()]


def _duration(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": transcript.duration}
