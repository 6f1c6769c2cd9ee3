"""Other ways to hear a file than whisper.transcribe's, end to end: a real daemon, ffmpeg, and the demo checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.engine.base import Audio
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.media import ffmpeg
from tests.runners import pcm
from tests.running import running_daemon
from tests.speech import Spoken, conversation, word_error_rate, write

OFF_BY_S = 0.5


def write_call(path: Path, *sides: Spoken) -> Path:
    """Each in a channel of an MP3 file."""
    channels = np.zeros((max(len(side.samples) for side in sides), len(sides)), np.float32)
    for number, side in enumerate(sides):
        channels[: len(side.samples), number] = side.samples
    raw = ("-f", "s16le", "-ar", str(SAMPLE_RATE_HZ), "-ac", str(len(sides)), "-i", "pipe:0")
    ffmpeg(*raw, "-ar", "44100", "-b:a", "128k", "-f", "mp3", path, given=pcm(channels))
    return path


def later(spoken: Spoken, seconds: float) -> Spoken:
    lead: Audio = np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)
    return Spoken(
        spoken.language,
        np.concatenate([lead, spoken.samples]),
        tuple(each._replace(start_s=each.start_s + seconds, end_s=each.end_s + seconds) for each in spoken.sentences),
    )


def text_of(segments: list[dict[str, Any]]) -> str:
    return "".join(segment["text"] for segment in segments)


async def test_each_channel_of_a_call_is_a_speaker(tmp_path: Path, database: ConnectionParameters) -> None:
    caller = conversation("en", 620_001, 1, lead_silence_s=1.0)
    answer = later(conversation("fr", 620_002, 1), caller.duration_s)
    write_call(tmp_path / "call.mp3", caller, answer)
    write_call(tmp_path / "alone.mp3", caller)
    async with running_daemon(tmp_path, database) as daemon:
        submitted = await daemon.submit(tmp_path / "call.mp3", channel_mode="split", word_timestamps="true")
        alone = await daemon.submit(tmp_path / "alone.mp3", channel_mode="split")
        job = await daemon.finished(submitted["job_id"])
        assert job["status"] == "completed", job
        segments = job["result"]["segments"]
        assert [segment["start"] for segment in segments] == sorted(segment["start"] for segment in segments)
        for number, side in enumerate((caller, answer)):
            said = [segment for segment in segments if segment["speaker"] == f"SPEAKER_{number:02d}"]
            assert word_error_rate(side.text, text_of(said)) == 0, said
            assert abs(said[0]["start"] - side.sentences[0].start_s) <= OFF_BY_S
            assert abs(said[-1]["end"] - side.sentences[-1].end_s) <= OFF_BY_S
            assert {word["speaker"] for segment in said for word in segment["words"]} == {said[0]["speaker"]}
        job = await daemon.finished(alone["job_id"])
        assert word_error_rate(caller.text, job["result"]["text"]) == 0
        assert {segment["speaker"] for segment in job["result"]["segments"]} == {"SPEAKER_00"}


async def test_pauses_are_dropped_and_the_times_stay_the_file_s(tmp_path: Path, database: ConnectionParameters) -> None:
    """In both modes. The reference would place what comes after a long pause at the start of its window."""
    spoken = conversation("en", 620_003, 4, pauses_s=(8.0, 9.0), lead_silence_s=3.0)
    silence_s = spoken.duration_s - sum(each.end_s - each.start_s for each in spoken.sentences)
    write(spoken, tmp_path / "talk.flac", "flac")
    noise = np.random.default_rng(0).normal(0, 0.05, 12 * SAMPLE_RATE_HZ).astype(np.float32)
    write(Spoken("en", noise, ()), tmp_path / "noise.wav", "wav")
    async with running_daemon(tmp_path, database) as daemon:
        given: list[dict[str, str]] = [{"mode": "fast"}, {"vad_filter": "true"}, {"mode": "fast", "trim_silence": "no"}]
        jobs = [await daemon.submit(tmp_path / "talk.flac", word_timestamps="true", **fields) for fields in given]
        for fields, submitted in zip(given, jobs, strict=True):
            job = await daemon.finished(submitted["job_id"])
            assert job["status"] == "completed", job
            result = job["result"]
            assert result["mode"] == fields.get("mode", "accurate")
            assert word_error_rate(spoken.text, result["text"]) == 0, result["text"]
            # Each sentence keeps a margin of 0.4 s on either side, and detection is some tenths off.
            assert result["quality"]["vad_dropped_s"] == pytest.approx(silence_s - 4 * 0.8, abs=4 * 0.4)
            assert len(result["segments"]) == len(spoken.sentences)
            for segment, sentence in zip(result["segments"], spoken.sentences, strict=True):
                assert word_error_rate(sentence.text, segment["text"]) == 0
                assert abs(segment["start"] - sentence.start_s) <= OFF_BY_S
                assert abs(segment["end"] - sentence.end_s) <= OFF_BY_S
                assert segment["words"][0]["start"] >= segment["start"] - 0.001
            assert result["quality"] == {
                "vad_dropped_s": result["quality"]["vad_dropped_s"],
                "low_confidence_segments": [],
                "repetition_segments": [],
                "silence_segments": [],
            }

        # Where nobody speaks, all is dropped.
        for fields in ({"mode": "fast"}, {"vad_filter": "true"}):
            job = await daemon.finished((await daemon.submit(tmp_path / "noise.wav", **fields))["job_id"])
            assert job["status"] == "completed", job
            result = job["result"]
            assert (result["text"], result["segments"]) == ("", [])
            assert result["quality"]["vad_dropped_s"] == pytest.approx(12.0, abs=0.1)
