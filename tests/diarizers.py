"""What tests of diarizers share: a conversation, and a way to wait."""

import threading
from functools import cache
from pathlib import Path

import numpy as np

from gpu_daemon.engine.base import Diarization, Diarizer, KnownVoice, Pcm, PipelineSpec, SpeakerRequest, Spoken
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_whisper.corpus import speak

LIMIT_S = 100.0
SENTENCE = "The black dog sees the young doctor."


def as_pcm(audio: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Pcm:
    return (audio * 32767).astype(np.int16)


@cache
def voice(name: str = "en-us", pitch: int = 50) -> Pcm:
    """Some three seconds."""
    return as_pcm(speak(SENTENCE, name, 150, pitch))


def quiet(seconds: float) -> Pcm:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.int16)


@cache
def conversation() -> Pcm:
    """Two speakers, a long pause, and a moment when both talk: twenty seconds."""
    one, two = voice(), voice("fr", 90)
    both = one.copy()
    both[len(both) // 2 :] += two[: len(both) - len(both) // 2] // 2
    return np.concatenate([quiet(1.3), one, two, quiet(7), both, two, quiet(0.4)])


class Waiting:
    """Of a file on its way; `ended` is set in the diarizer's thread."""

    def __init__(self, diarizer: Diarizer, request: SpeakerRequest, audio: Pcm) -> None:
        self.times_done = 0
        self._ended = threading.Event()
        self.diarization: Diarization = diarizer.begin(request, audio, self._done)

    def _done(self) -> None:
        self.times_done += 1
        self._ended.set()

    def wait(self) -> "Waiting":
        assert self._ended.wait(LIMIT_S)
        return self

    def result(self) -> Spoken:
        return self.wait().diarization.result()


def request_of(pipeline: PipelineSpec, **given: int | None) -> SpeakerRequest:
    return SpeakerRequest(pipeline=pipeline, **given)


def known(directory: Path, name: str, audio: Pcm) -> KnownVoice:
    path = directory / f"{name}.s16"
    path.write_bytes(audio.astype("<i2").tobytes())
    return KnownVoice(name=name, audio_path=path)
