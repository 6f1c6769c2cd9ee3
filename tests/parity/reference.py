"""openai-whisper itself, and what passed between its loop and its decoder."""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import whisper
from whisper.decoding import DecodingOptions, DecodingResult

from gpu_daemon.engine.base import Audio
from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Record, Segment, Word


class Window(Record):
    """A stretch of at most 30 s that was decoded."""

    seek: int
    """Where it starts, in frames of 10 ms."""
    temperatures: tuple[float, ...]
    """Of each try; the last one counts."""

    @property
    def is_random(self) -> bool:
        return self.temperatures[-1] > 0


class Heard(Record):
    language: str
    language_probability: float | None
    """None: it was named."""
    segments: tuple[Segment, ...]
    windows: tuple[Window, ...]
    """With those that were skipped as silent."""

    @property
    def random_from(self) -> int | None:
        """The seek of the first window that is left to chance, and all after it with it; None: the same each time."""
        return next((window.seek for window in self.windows if window.is_random), None)

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()


@dataclass(frozen=True, slots=True)
class Attempt:
    """A window as the reference's decoder got it, once."""

    seek: int
    mel: torch.Tensor
    """float32[n_mels, 3000]"""
    options: DecodingOptions
    result: DecodingResult


@dataclass(slots=True)
class Attempts:
    made: list[Attempt] = field(default_factory=list)
    seek: int = 0
    language_probability: float | None = None


@cache
def load(checkpoint: Path, device: str = "cpu") -> Any:
    return whisper.load_model(str(checkpoint), device=device)


def listen(
    model: Any, audio: Audio, options: JobOptions, *, seed: int = 0, fp16: bool = False
) -> tuple[Heard, list[Attempt]]:
    """`whisper.transcribe`, in float32 unless told otherwise, for what a job asks."""
    torch.manual_seed(seed)
    # Our `hotwords` are a prompt that each window gets; a prompt is one for the first.
    with _watched(model) as attempts:
        result = whisper.transcribe(
            model,
            audio,
            temperature=options.temperature,
            initial_prompt=options.hotwords or options.initial_prompt,
            carry_initial_prompt=options.hotwords is not None,
            condition_on_previous_text=options.condition_on_previous_text,
            word_timestamps=options.word_timestamps,
            language=options.language,
            task=options.task.value,
            beam_size=options.beam_size,
            best_of=options.best_of,
            compression_ratio_threshold=options.compression_ratio_threshold,
            logprob_threshold=options.logprob_threshold,
            no_speech_threshold=options.no_speech_threshold,
            hallucination_silence_threshold=options.hallucination_silence_threshold,
            fp16=fp16,
        )
    heard = Heard(
        language=result["language"],
        language_probability=attempts.language_probability,
        segments=tuple(_segments(result)),
        windows=tuple(_windows(attempts.made)),
    )
    return heard, attempts.made


@contextmanager
def _watched(model: Any) -> Iterator[Attempts]:
    attempts = Attempts()
    module = importlib.import_module("whisper.transcribe")  # whisper.transcribe is the function that hides it
    pad_or_trim, decode, detect_language = module.pad_or_trim, model.decode, model.detect_language

    def watched_pad_or_trim(mel: torch.Tensor, *args: int) -> torch.Tensor:
        # Called once for each window, with its slice of the file's mel: where that starts in memory, the window does.
        attempts.seek = int(mel.storage_offset())
        padded: torch.Tensor = pad_or_trim(mel, *args)
        return padded

    def watched_decode(mel: torch.Tensor, options: DecodingOptions) -> DecodingResult:
        result = decode(mel, options)
        attempts.made.append(Attempt(attempts.seek, mel, options, result))
        return result

    def watched_detect_language(mel: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        tokens, probabilities = detect_language(mel)
        attempts.language_probability = max(probabilities.values())
        return tokens, probabilities

    module.pad_or_trim = watched_pad_or_trim  # type: ignore[attr-defined]
    model.decode, model.detect_language = watched_decode, watched_detect_language
    try:
        yield attempts
    finally:
        module.pad_or_trim = pad_or_trim  # type: ignore[attr-defined]
        del model.decode, model.detect_language


def _windows(attempts: list[Attempt]) -> Iterator[Window]:
    # The first try of a window is at the first temperature, and no other is.
    starts = [
        number
        for number, attempt in enumerate(attempts)
        if attempt.options.temperature == attempts[0].options.temperature
    ]
    for start, end in pairwise([*starts, len(attempts)]):
        tries = attempts[start:end]
        yield Window(seek=tries[0].seek, temperatures=tuple(attempt.options.temperature for attempt in tries))


def _segments(result: dict[str, Any]) -> Iterator[Segment]:
    # whisper keeps segments that it has emptied, because they were instantaneous or said nothing.
    for number, segment in enumerate(segment for segment in result["segments"] if segment["tokens"]):
        yield Segment(
            id=number,
            start=float(segment["start"]),
            end=float(segment["end"]),
            text=segment["text"],
            confidence=math.exp(min(0.0, segment["avg_logprob"])),
            avg_logprob=segment["avg_logprob"],
            no_speech_prob=segment["no_speech_prob"],
            compression_ratio=segment["compression_ratio"],
            temperature=segment["temperature"],
            seek=segment["seek"],
            tokens=tuple(segment["tokens"]),
            words=tuple(
                Word(
                    word=word["word"],
                    start=float(word["start"]),
                    end=float(word["end"]),
                    confidence=float(word["probability"]),
                )
                for word in segment.get("words", ())
            ),
        )
