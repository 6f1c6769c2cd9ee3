"""What was heard in a window, while it is still being worked on (no torch here)."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class SpokenWord:
    word: str
    tokens: list[int]
    start: float
    """Seconds."""
    end: float
    probability: float


@dataclass(slots=True)
class Spoken:
    """A segment, as whisper.transcribe makes them."""

    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    logprobs: list[float]
    """Of each of the tokens, or none."""
    words: list[SpokenWord] = field(default_factory=list)
