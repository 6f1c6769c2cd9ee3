"""How well the bundled model hears, through the whole daemon."""

from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.database.pool import ConnectionParameters
from tests.running import running_daemon
from tests.speech import Spoken, conversation, word_error_rate, write

MAX_WORD_ERROR_RATE = 0.05
MAX_TIME_ERROR_S = 0.5
LOOK_AHEAD = 5
"""Sentences that a segment may have skipped."""


def time_errors_s(spoken: Spoken, segments: list[dict[str, Any]]) -> list[float]:
    """Of the start and the end of every segment that says a whole sentence: how far from where it was spoken."""
    errors_s: list[float] = []
    position = 0
    for segment in segments:
        for number, sentence in enumerate(spoken.sentences[position : position + LOOK_AHEAD], position + 1):
            if word_error_rate(sentence.text, segment["text"]) == 0:
                errors_s += [abs(segment["start"] - sentence.start_s), abs(segment["end"] - sentence.end_s)]
                position = number
                break
    return errors_s


@pytest.mark.timeout(400)
async def test_ten_minutes_of_english_without_conditioning(tmp_path: Path, database: ConnectionParameters) -> None:
    spoken = conversation("en", 511_000, 200, pauses_s=(0.3, 1.2))
    assert spoken.duration_s > 590
    write(spoken, tmp_path / "ten-minutes.mp3", "mp3")
    async with running_daemon(tmp_path, database) as daemon:
        answer = await daemon.submit(tmp_path / "ten-minutes.mp3", condition_on_previous_text="false")
        job = await daemon.finished(answer["job_id"], timeout_s=360)
        assert job["status"] == "completed", job
        assert word_error_rate(spoken.text, job["result"]["text"]) <= MAX_WORD_ERROR_RATE
        errors_s = time_errors_s(spoken, job["result"]["segments"])
        assert len(errors_s) >= 0.95 * 2 * len(spoken.sentences)
        assert max(errors_s) <= MAX_TIME_ERROR_S


@pytest.mark.parametrize("language", ["en", "fr"])
async def test_conditioning_on_previous_text(tmp_path: Path, database: ConnectionParameters, language: str) -> None:
    spoken = conversation(language, 520_000, 60, pauses_s=(0.3, 1.2))
    write(spoken, tmp_path / "talk.flac", "flac")
    async with running_daemon(tmp_path, database) as daemon:
        job = await daemon.finished((await daemon.submit(tmp_path / "talk.flac"))["job_id"], timeout_s=110)
        assert job["result"]["language"] == language
        assert word_error_rate(spoken.text, job["result"]["text"]) <= MAX_WORD_ERROR_RATE
