"""Our way through silero-vad's network, beside its own."""

import random
import warnings
from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from gpu_daemon.engine.base import Audio
from gpu_daemon.engine.clips import Span
from gpu_daemon.engine.vad import VoiceDetector, plan, spans
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions, Mode
from tests.speech import conversation

T = TypeVar("T")


@pytest.fixture(scope="module")
def detector() -> VoiceDetector:
    torch.set_num_threads(1)  # several would wait for each other by spinning
    return VoiceDetector()


@pytest.fixture(scope="module")
def silero() -> Any:
    """Its package, which takes all threads but one from torch when it is imported."""
    import silero_vad

    return silero_vad


def run(work: Generator[float, None, T]) -> tuple[T, list[float]]:
    said: list[float] = []
    while True:
        try:
            said.append(next(work))
        except StopIteration as end:
            return end.value, said


def audios() -> dict[str, Audio]:
    rng = np.random.default_rng(7)
    speech = {
        language: conversation(language, 610_000, 2, pauses_s=(0.2, 3.0), lead_silence_s=1.0).samples
        for language in ("en", "fr", "ru")
    }
    return speech | {
        "noisy": (speech["en"] + rng.normal(0, 0.02, len(speech["en"]))).astype(np.float32),
        "faint": speech["fr"] * np.float32(0.003),
        "noise": rng.normal(0, 0.1, 18 * SAMPLE_RATE_HZ + 17).astype(np.float32),
        "silence": np.zeros(SAMPLE_RATE_HZ, np.float32),
        "cut off in a word": speech["ru"][: 2 * SAMPLE_RATE_HZ + 100],
        "one sample": np.ones(1, np.float32),
    }


def test_the_spans_are_silero_s(detector: VoiceDetector, silero: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = silero.load_silero_vad()
    for name, audio in audios().items():
        theirs = silero.get_speech_timestamps(torch.tensor(audio), model)
        probabilities, said = run(detector.probabilities(audio))
        ours = spans(probabilities, len(audio))
        expected = [(each["start"] / SAMPLE_RATE_HZ, each["end"] / SAMPLE_RATE_HZ) for each in theirs]
        assert [tuple(span) for span in ours] == expected, name
        assert said == sorted(said), name
        assert said[-1] == 1.0, name
        assert len(said) == -(-len(audio) // (512 * 512)), name


@pytest.mark.parametrize("seed", range(20))
def test_the_spans_are_silero_s_for_any_probabilities(silero: Any, seed: int) -> None:
    rng = random.Random(seed)
    probabilities: list[float] = []
    while len(probabilities) < 2000:
        probabilities += [rng.choice([0.0, 0.35, 0.4, 0.49, 0.5, 1.0, rng.random()])] * rng.choice([1, 1, 2, 4, 9, 30])
    n_samples = len(probabilities) * 512 - rng.randrange(512)
    theirs = silero.get_speech_timestamps_from_probs(probabilities, audio_length_samples=n_samples)
    ours = spans(probabilities, n_samples)
    assert [(round(s * SAMPLE_RATE_HZ), round(e * SAMPLE_RATE_HZ)) for s, e in ours] == [
        (each["start"], each["end"]) for each in theirs
    ]


def test_the_threads_of_torch_are_left_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        VoiceDetector()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_file_is_looked_through_only_when_asked_for(detector: VoiceDetector) -> None:
    spoken = conversation("en", 610_001, 3, pauses_s=(6.0, 6.0), lead_silence_s=4.0)
    options = JobOptions(model="demo")
    everything, said = run(plan(detector, spoken.samples, options))
    assert (len(everything.clips), everything.dropped_s, said) == (1, 0.0, [])
    accurate, said = run(plan(detector, spoken.samples, options.model_copy(update={"vad_filter": True})))
    fast, _ = run(plan(detector, spoken.samples, options.model_copy(update={"mode": Mode.FAST})))
    assert said
    assert [each.independent for each in (everything, accurate, fast)] == [False, False, True]
    for found in (accurate, fast):
        assert len(found.clips) == 3
        for clip, sentence in zip(found.clips, spoken.sentences, strict=True):
            assert covers(clip, Span(sentence.start_s + 0.1, sentence.end_s - 0.1))
        silence_s = 4.0 + 2 * 6.0 + 0.5
        assert found.dropped_s == pytest.approx(silence_s, abs=3 * 2 * 0.5)


def covers(clip: Span, span: Span) -> bool:
    return clip.start_s <= span.start_s and span.end_s <= clip.end_s
