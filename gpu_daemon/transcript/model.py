"""What a result is; times in seconds on the timeline of the file the client sent."""

import builtins
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Word(Record):
    word: str
    start: float
    end: float
    confidence: float
    """Mean probability of the word's tokens."""
    speaker: str | None = None


class TokenLogprob(Record):
    """As OpenAI's API says it."""

    token: str
    """Where its bytes are a part of a character, that part is U+FFFD."""
    logprob: float
    bytes: tuple[int, ...]

    @classmethod
    def of(cls, said: builtins.bytes, logprob: float) -> Self:
        return cls(token=said.decode(errors="replace"), logprob=logprob, bytes=tuple(said))


class Segment(Record):
    id: int
    start: float
    end: float
    text: str
    confidence: float
    """exp(avg_logprob)"""
    speaker: str | None = None
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    seek: int
    """Start of the decoded window, in frames of 10 ms."""
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = Field(
        default=None,
        exclude_if=lambda logprobs: logprobs is None,
        description="of each token of the text, where `logprobs=true` asked for them",
    )
    words: tuple[Word, ...] = ()


class SpeakerTurn(Record):
    start: float
    end: float
    speaker: str


class Diarization(Record):
    """How it went to find out who speaks; the transcript is there even if it did not go well."""

    model: str = Field(description="the pipeline that was asked")
    device: str | None = Field(default=None, description="cpu, cuda or rocm; null: it did not get so far")
    speakers: tuple[str, ...] = Field(default=(), description="by order of appearance")
    fallback: str | None = Field(default=None, description="why it was done on the CPU after the GPU had failed")
    error: str | None = Field(default=None, description="why nobody knows who speaks")
    error_code: str | None = None


class Quality(Record):
    """Segments are named by their ids."""

    vad_dropped_s: float = Field(
        default=0.0, description="seconds of the file without speech, which were not decoded: `vad_filter`, `mode=fast`"
    )
    low_confidence_segments: tuple[int, ...] = Field(default=(), description="avg_logprob is under -1")
    repetition_segments: tuple[int, ...] = Field(
        default=(), description="loops: phrases or segments again and again, or text that compresses too well"
    )
    silence_segments: tuple[int, ...] = Field(
        default=(), description="text where the audio is silent, or where the model itself heard no speech"
    )


class Transcript(Record):
    text: str
    language: str
    """ISO 639-1 code."""
    language_probability: float | None
    """None when the client named the language."""
    duration: float
    model: str
    mode: Literal["accurate", "fast"] = "accurate"
    """`fast`: the pieces between pauses were decoded each on its own."""
    token_count: int
    segments: tuple[Segment, ...]
    transcription_segments: tuple[Segment, ...] = ()
    """As they were heard, before speakers cut them; empty when nobody asked who speaks."""
    diarization_segments: tuple[SpeakerTurn, ...] = ()
    """Who speaks when, also at the same time as others."""
    diarization: Diarization | None = None
    """None: nobody asked."""
    quality: Quality = Field(default_factory=Quality)
