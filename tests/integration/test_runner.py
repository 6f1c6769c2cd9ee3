"""A real child with the real engine and the demo model."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import whisper

from gpu_daemon.errors import JobCancelled, JobError, RunnerCrashed
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.process import Runner
from gpu_daemon.transcript.model import Transcript
from tests.runners import (
    CPU,
    DEMO,
    LIMIT_S,
    SENTENCE,
    Watcher,
    gone,
    ignore,
    pcm,
    run_of,
    silence,
    speech,
    spoken_at,
    started,
)

START_LIMIT_S = 60.0
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning"),  # whisper's vocabularies
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def child() -> AsyncIterator[Runner]:
    runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=1024)
    yield runner
    await runner.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def runner(child: Runner) -> Runner:
    """The child of this module, started again if the last test has killed it."""
    await child.start()
    await child.wait_ready(START_LIMIT_S)
    return child


def write(path: Path, samples: np.ndarray) -> Path:
    path.write_bytes(pcm(samples))
    return path


async def hear(runner: Runner, audio: Path, **given: Any) -> Transcript:
    return Transcript.model_validate_json((await runner.run(run_of(audio, **given), ignore)).transcript)


async def test_it_says_hello_with_its_versions(runner: Runner) -> None:
    assert runner.hello is not None
    assert runner.hello.torch_version == torch.__version__
    assert runner.hello.device_name == "CPU"


async def test_right_words_at_right_times(runner: Runner, tmp_path: Path) -> None:
    said = len(speech()) / SAMPLE_RATE_HZ
    transcript = await hear(runner, write(tmp_path / "audio.s16", spoken_at(1.0)))
    assert transcript.text == SENTENCE
    assert (transcript.language, transcript.model) == ("en", "demo")
    assert transcript.duration == pytest.approx(1.5 + said, abs=0.001)
    (segment,) = transcript.segments
    assert segment.end == pytest.approx(1.0 + said, abs=0.3)
    assert runner.loaded == {"demo": pytest.approx(2 * DEMO.stat().st_size, rel=0.1)}


async def test_skipped_silence_does_not_shift_the_times(runner: Runner, tmp_path: Path) -> None:
    audio = write(tmp_path / "audio.s16", spoken_at(10.0))
    transcript = await hear(runner, audio, skip_samples=10 * SAMPLE_RATE_HZ, word_timestamps=True)
    assert transcript.text == SENTENCE
    (segment,) = transcript.segments
    assert segment.start == pytest.approx(10.0, abs=0.3)
    assert segment.seek == 1000
    assert segment.words[0].start == pytest.approx(10.0, abs=0.3)
    assert transcript.duration == pytest.approx(10.5 + len(speech()) / SAMPLE_RATE_HZ, abs=0.001)


async def test_it_gives_what_whisper_gives(runner: Runner, tmp_path: Path) -> None:
    audio = write(tmp_path / "audio.s16", spoken_at(0, 3, 30.2))
    transcript = await hear(runner, audio, word_timestamps=True, temperature=(0.0,))
    samples = np.fromfile(audio, "<i2").astype(np.float32) / 32768
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    itself = whisper.load_model(str(DEMO), device="cpu").transcribe(
        samples, word_timestamps=True, temperature=(0.0,), fp16=False
    )
    torch.set_num_threads(threads)
    theirs = [segment for segment in itself["segments"] if segment["tokens"]]
    assert len(transcript.segments) == len(theirs) >= 3
    for ours, their in zip(transcript.segments, theirs, strict=True):
        assert list(ours.tokens) == their["tokens"]
        assert (ours.start, ours.end) == (round(their["start"], 3), round(their["end"], 3))
        assert ours.avg_logprob == pytest.approx(their["avg_logprob"], abs=1e-3)
        assert ours.no_speech_prob == pytest.approx(their["no_speech_prob"], abs=1e-3)
        assert [word.word for word in ours.words] == [word["word"] for word in their["words"]]
        assert [word.start for word in ours.words] == pytest.approx(
            [word["start"] for word in their["words"]], abs=0.021
        )


@pytest.mark.parametrize("skip", [0, 5], ids=["no samples", "all skipped"])
async def test_nothing_to_hear_is_an_empty_transcript(runner: Runner, tmp_path: Path, skip: int) -> None:
    audio = write(tmp_path / "audio.s16", silence(skip))
    transcript = await hear(runner, audio, skip_samples=skip * SAMPLE_RATE_HZ)
    assert (transcript.text, transcript.segments, transcript.duration) == ("", (), skip)


async def test_audio_that_is_gone(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="gone") as caught:
        await runner.run(run_of(tmp_path / "no.s16"), ignore)
    assert caught.value.code == "audio_lost"
    assert str(tmp_path) not in caught.value.message


async def test_a_cancel_takes_effect_at_once_and_the_child_stays(runner: Runner, tmp_path: Path) -> None:
    long = write(tmp_path / "audio.s16", spoken_at(*range(0, 600, 4)))
    pid = runner.pid
    job = await started(runner, run_of(long))
    async with asyncio.timeout(LIMIT_S):
        await runner.cancel(JobId("job-1"), grace_s=2 * LIMIT_S)
    with pytest.raises(JobCancelled):
        await job
    assert runner.pid == pid
    short = write(tmp_path / "short.s16", spoken_at(0))
    assert (await hear(runner, short)).text == SENTENCE


async def test_it_answers_while_it_works_and_reports_its_progress(runner: Runner, tmp_path: Path) -> None:
    long = write(tmp_path / "audio.s16", spoken_at(*range(0, 600, 4)))
    watcher = Watcher()
    job = asyncio.create_task(runner.run(run_of(long, condition_on_previous_text=False), watcher))
    await watcher.reach(Stage.TRANSCRIBING)
    answered = runner.answered_s_ago
    assert answered is not None
    async with asyncio.timeout(LIMIT_S):
        while (now := runner.answered_s_ago) is not None and now >= answered:
            answered = now
            await asyncio.sleep(0.02)
    assert not job.done()
    await runner.cancel(JobId("job-1"))
    with pytest.raises(JobCancelled):
        await job
    fractions = [fraction for stage, fraction in watcher.seen if stage is Stage.TRANSCRIBING]
    assert fractions == sorted(fractions)


async def test_a_child_killed_in_the_middle_of_a_job_is_replaced(runner: Runner, tmp_path: Path) -> None:
    audio = write(tmp_path / "audio.s16", spoken_at(*range(0, 600, 4)))
    job = await started(runner, run_of(audio))
    pid = runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunnerCrashed, match="SIGKILL"):
        await job
    await gone(pid)
    assert runner.loaded == {}
    await runner.start()
    await runner.wait_ready(START_LIMIT_S)
    short = write(tmp_path / "short.s16", spoken_at(0))
    assert (await hear(runner, short)).text == SENTENCE
