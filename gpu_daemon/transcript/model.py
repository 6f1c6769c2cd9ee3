"""What a result is; times in seconds on the timeline of the file the client sent."""

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
    words: tuple[Word, ...] = ()


class SpeakerTurn(Record):
    start: float
    end: float
    speaker: str


class Quality(Record):
    vad_dropped_s: float = 0.0
    low_confidence_segments: tuple[int, ...] = ()
    """Ids of segments."""
    repetition_segments: tuple[int, ...] = ()


class Transcript(Record):
    text: str
    language: str
    """ISO 639-1 code."""
    language_probability: float | None
    """None when the client named the language."""
    duration: float
    model: str
    token_count: int
    segments: tuple[Segment, ...]
    transcription_segments: tuple[Segment, ...] = ()
    diarization_segments: tuple[SpeakerTurn, ...] = ()
    quality: Quality = Field(default_factory=Quality)
