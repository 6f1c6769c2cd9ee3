"""A daemon whose runner is on the GPU: a kernel that goes astray costs a runner, a cancel comes through in time."""

import wave
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.engine.base import Audio
from tests.gpu.device import IS_DRY, N_TOGETHER, marks
from tests.gpu.recordings import recording
from tests.running import running_daemon

pytestmark = marks
DEVICES = {"DEVICES": "cpu" if IS_DRY else "auto", "JOBS_PER_GPU": str(N_TOGETHER)}
START_S = 120.0
CANCELLED_WITHIN_S = 5.0 * (4 if IS_DRY else 1)
"""What is promised; a dry run is on a machine that has other things to do."""


def written(path: Path, audio: Audio) -> Path:
    """As the engine hears it: no ffmpeg is needed."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((audio * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture
def sentence(tmp_path: Path) -> Path:
    return written(tmp_path / "sentence.wav", recording("en-sentence"))


async def test_an_illegal_access_costs_a_runner_and_no_job(
    tmp_path: Path, database: ConnectionParameters, sentence: Path
) -> None:
    faulty = {"GPU_DAEMON_ENGINE": "tests.gpu.faulty_engine:create", "FAULTY": str(tmp_path / "faulty")}
    async with running_daemon(tmp_path, database, **DEVICES, **faulty) as daemon:
        first = await daemon.line("runner.ready", START_S)
        hit = await daemon.finished((await daemon.submit(sentence, trim_silence="false"))["job_id"], START_S)
        second = await daemon.line("runner.ready", START_S, nth=2)
        assert (hit["status"], hit["attempt"]) == ("completed", 2)
        assert first["pid"] != second["pid"]
        next_one = await daemon.finished((await daemon.submit(sentence, trim_silence="false"))["job_id"], START_S)
        assert (next_one["status"], next_one["attempt"]) == ("completed", 1)


async def test_a_cancel_in_the_middle_of_a_batch(
    tmp_path: Path, database: ConnectionParameters, sentence: Path
) -> None:
    minutes = np.tile(recording("en-sentence"), 60 if IS_DRY else 600)[: 30 * 60 * 16_000]
    long = written(tmp_path / "long.wav", minutes)
    async with running_daemon(tmp_path, database, **DEVICES) as daemon:
        await daemon.line("runner.ready", START_S)
        victim = (await daemon.submit(long, trim_silence="false"))["job_id"]
        others = [(await daemon.submit(sentence, trim_silence="false"))["job_id"] for _ in range(N_TOGETHER - 1)]
        await daemon.in_runner(victim, START_S)
        answer = await daemon.client.post(f"/jobs/{victim}/cancel")
        assert answer.status_code == 200, answer.text
        assert await daemon.cancel_took_s(victim) < CANCELLED_WITHIN_S
        for job_id in others:
            assert (await daemon.finished(job_id, START_S))["status"] == "completed"
        assert len([line for line in daemon.lines if line.get("event") == "runner.ready"]) == 1
