"""What tests of engines and runners share: the demo model, something to hear, ways to wait."""

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_daemon
from gpu_daemon.engine.base import Audio, Engine, ModelSpec, Progress, Samples
from gpu_daemon.gpu.detect import Device
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobId, JobOptions
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.process import Completed, Runner
from gpu_daemon.runner.protocol import Run
from gpu_daemon.transcript.model import Transcript
from tests.espeak_whisper.corpus import speak

CPU = Device(kind="cpu", index=0, name="CPU", uuid=None)
DEMO = Path(gpu_daemon.__file__).parent / "demo" / "espeak-whisper.pt"
LIMIT_S = 60.0
"""For what takes seconds on a free machine: a runner imports torch behind everybody else who wants the processor."""
SENTENCE = "The black dog sees the young doctor."


def demo(name: str = "demo") -> ModelSpec:
    return ModelSpec(name=name, path=DEMO, sha256="0" * 64, official=None)


@cache
def speech(text: str = SENTENCE, voice: str = "en-us") -> Audio:
    said: Audio = speak(text, voice, 150, 50)
    return said


def silence(seconds: float) -> Audio:
    return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)


def spoken_at(*starts_s: float) -> Audio:
    """The sentence, starting at each of these times, and silence around."""
    audio = silence(starts_s[-1] + len(speech()) / SAMPLE_RATE_HZ + 0.5)
    for start_s in starts_s:
        first = int(start_s * SAMPLE_RATE_HZ)
        audio[first : first + len(speech())] = speech()
    return audio


def pcm(audio: Audio) -> bytes:
    return (audio * 32767).astype("<i2").tobytes()


def run_of(
    audio_path: Path,
    job_id: str = "job-1",
    *,
    model: str = "demo",
    first_byte: int = 0,
    channels: int = 1,
    skip_samples: int = 0,
    **options: object,
) -> Run:
    return Run(
        job_id=JobId(job_id),
        model=demo(model),
        audio_path=audio_path,
        first_byte=first_byte,
        channels=channels,
        skip_samples=skip_samples,
        options=JobOptions.model_validate({"model": model, **options}),
    )


async def started(runner: Runner, run: Run) -> "asyncio.Task[Completed]":
    """The job, once the engine is at work on it."""
    watcher = Watcher()
    job = asyncio.create_task(runner.run(run, watcher))
    await watcher.reach(Stage.TRANSCRIBING)
    return job


def transcribed(
    engine: Engine, spec: ModelSpec, audio: Samples, options: JobOptions, progress: Progress | None = None
) -> Transcript:
    """Of one file, alone. `progress` is told after each step."""
    begun = engine.begin(spec, audio, options)
    while not begun.ended:
        engine.step()
        if progress is not None:
            progress(begun.fraction)
    return begun.result()


PROBABILITIES: dict[str, Any] = {
    "language_probability": True,
    "segments": {
        "__all__": {
            "confidence": True,
            "avg_logprob": True,
            "no_speech_prob": True,
            "words": {"__all__": {"confidence": True}},
        }
    },
}


def assert_same(ours: Transcript, other: Transcript) -> None:
    """In all but the last digits of probabilities: sums of floats depend on how many rows are computed at once."""
    assert ours.model_dump(exclude=PROBABILITIES) == other.model_dump(exclude=PROBABILITIES)
    for one, two in zip(ours.segments, other.segments, strict=True):
        assert one.avg_logprob == pytest.approx(two.avg_logprob, abs=1e-3)
        assert one.no_speech_prob == pytest.approx(two.no_speech_prob, abs=1e-3)
        assert [word.confidence for word in one.words] == pytest.approx(
            [word.confidence for word in two.words], abs=1e-3
        )


class Watcher:
    """What a job reported, and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Stage, float]] = []
        self._more = asyncio.Event()

    def __call__(self, stage: Stage, fraction: float) -> None:
        self.seen.append((stage, fraction))
        self._more.set()

    async def reach(self, stage: Stage) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not any(seen == stage for seen, _ in self.seen):
                self._more.clear()
                await self._more.wait()


def ignore(stage: Stage, fraction: float) -> None:
    pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    """Returns when the process has ended. A zombie has: who inherited it may reap it late."""
    stat = Path(f"/proc/{pid}/stat")
    await until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")
