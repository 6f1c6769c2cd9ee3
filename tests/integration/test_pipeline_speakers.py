"""Who speaks, beside what is said: a runner's work on a file; engine and diarizer do what they are told."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_daemon.engine.base import NoPipeline, PipelineSpec, SpeakerRequest
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.process import Runner
from gpu_daemon.runner.protocol import Run
from gpu_daemon.transcript.model import Diarization, Transcript
from tests.runners import CPU, LIMIT_S, Watcher, ignore, pcm, run_of, until

DURATION_S = 12


@pytest.fixture
def pipeline(tmp_path: Path) -> PipelineSpec:
    directory = tmp_path / "pipeline"
    directory.mkdir()
    config = b"pipeline: {}"
    (directory / "config.yaml").write_bytes(config)
    return PipelineSpec(name="voices", directory=directory, files={"config.yaml": sha256(config).hexdigest()})


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "audio.s16"
    path.write_bytes(pcm((np.sin(np.arange(DURATION_S * SAMPLE_RATE_HZ) / 20) / 4).astype(np.float32)))
    return path


@pytest.fixture
async def runner(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Runner]:
    """Whose diarizer behaves as the parameter says."""
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")
    monkeypatch.setenv("GPU_DAEMON_DIARIZER", "tests.fake_diarizer:create")
    monkeypatch.setenv("FAKE_DIARIZER", getattr(request, "param", ""))
    runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    yield runner
    await runner.stop()


def asking(audio: Path, speakers: SpeakerRequest | NoPipeline, job_id: str = "job-1", **options: Any) -> Run:
    return run_of(audio, job_id, diarize=True, **options).model_copy(update={"speakers": speakers})


def at_job(path: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("runner", [path], indirect=True)


async def heard(runner: Runner, run: Run) -> Transcript:
    return Transcript.model_validate_json((await runner.run(run, ignore)).transcript)


async def test_segments_are_cut_where_the_speaker_changes(runner: Runner, audio: Path, pipeline: PipelineSpec) -> None:
    watcher = Watcher()
    completed = await runner.run(asking(audio, SpeakerRequest(pipeline=pipeline), word_timestamps=True), watcher)
    transcript = Transcript.model_validate_json(completed.transcript)
    assert [(turn.start, turn.speaker) for turn in transcript.diarization_segments] == [
        (0.0, "SPEAKER_00"),
        (5.0, "SPEAKER_01"),
        (10.0, "SPEAKER_00"),
    ]
    assert transcript.diarization == Diarization(model="voices", device="cpu", speakers=("SPEAKER_00", "SPEAKER_01"))
    for segment in transcript.segments:
        expected = "SPEAKER_01" if 5.0 <= segment.start < 10.0 else "SPEAKER_00"
        assert {segment.speaker, *(word.speaker for word in segment.words)} == {expected}
    as_heard = transcript.transcription_segments
    assert {segment.speaker for segment in as_heard} == {None}
    assert "".join(segment.text for segment in as_heard) == "".join(segment.text for segment in transcript.segments)
    assert {"transcribing", "diarizing", "merging"} <= completed.done.timings.keys()
    assert not completed.done.without_speakers
    assert runner.loaded.keys() == {"demo", "diarization: voices"}


async def test_who_speaks_without_a_word(runner: Runner, audio: Path, pipeline: PipelineSpec) -> None:
    transcript = await heard(runner, asking(audio, SpeakerRequest(pipeline=pipeline, num_speakers=3), task="diarize"))
    assert (transcript.text, transcript.segments, transcript.transcription_segments) == ("", (), ())
    assert {turn.speaker for turn in transcript.diarization_segments} == {"SPEAKER_00", "SPEAKER_01", "SPEAKER_02"}
    assert "demo" not in runner.loaded


@at_job("error")
async def test_the_transcript_is_kept_when_nobody_knows_who_speaks(
    runner: Runner, audio: Path, pipeline: PipelineSpec
) -> None:
    plain = await heard(runner, run_of(audio))
    completed = await runner.run(asking(audio, SpeakerRequest(pipeline=pipeline)), ignore)
    transcript = Transcript.model_validate_json(completed.transcript)
    assert transcript.segments == transcript.transcription_segments == plain.segments
    assert transcript.diarization is not None
    assert transcript.diarization.error_code == "diarization_failed"
    assert completed.done.without_speakers
    with pytest.raises(JobError, match="could not be found out"):
        await heard(runner, asking(audio, SpeakerRequest(pipeline=pipeline), task="diarize"))


async def test_a_pipeline_that_is_not_there_costs_no_transcript(runner: Runner, audio: Path) -> None:
    missing = NoPipeline(name="voices", code="pipeline_gated", message="accept the conditions first")
    completed = await runner.run(asking(audio, missing), ignore)
    transcript = Transcript.model_validate_json(completed.transcript)
    assert transcript.segments
    assert transcript.diarization == Diarization(
        model="voices", error="accept the conditions first", error_code="pipeline_gated"
    )
    assert completed.done.without_speakers


@at_job("miopen")
async def test_a_fall_back_to_the_cpu_is_said(runner: Runner, audio: Path, pipeline: PipelineSpec) -> None:
    transcript = await heard(runner, asking(audio, SpeakerRequest(pipeline=pipeline)))
    assert transcript.diarization is not None
    assert transcript.diarization.device == "cpu"
    assert transcript.diarization.fallback is not None
    assert transcript.diarization_segments


@at_job("lost")
async def test_a_lost_device_ends_the_runner(runner: Runner, audio: Path, pipeline: PipelineSpec) -> None:
    with pytest.raises(DeviceLost):
        await heard(runner, asking(audio, SpeakerRequest(pipeline=pipeline)))
    await until(lambda: not runner.alive)


async def test_others_are_done_while_speakers_are_looked_for(
    audio: Path, pipeline: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine sleeps when only they are missing, and wakes for a new job and for their end."""
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")
    monkeypatch.setenv("GPU_DAEMON_DIARIZER", "tests.fake_diarizer:create")
    monkeypatch.setenv("FAKE_DIARIZER", f"slow={tmp_path / 'go on'}")
    runner = Runner(CPU, model_idle_s=0.2, vram_reserve_mb=0)
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    watcher = Watcher()
    first = asyncio.create_task(runner.run(asking(audio, SpeakerRequest(pipeline=pipeline)), watcher))
    second = asyncio.create_task(runner.run(asking(audio, SpeakerRequest(pipeline=pipeline), "job-2"), ignore))
    try:
        await watcher.reach(Stage.DIARIZING)
        assert (await heard(runner, run_of(audio, "job-3"))).segments
        await runner.cancel(JobId("job-2"))
        with pytest.raises(JobCancelled):
            await second
        assert not first.done()
        (tmp_path / "go on").touch()
        assert Transcript.model_validate_json((await first).transcript).diarization_segments
        await until(lambda: not runner.loaded)  # models and pipeline leave memory when nobody wants them
    finally:
        await runner.stop()
