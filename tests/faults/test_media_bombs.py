"""Files that are made to hurt, sent to a daemon: each is refused or fails by name, and nothing is left of it.

What each of them is, and what ffmpeg makes of it, is in tests/integration/test_audio_refusals.py.
"""

import os
from pathlib import Path

import pytest

from gpu_daemon.database.pool import ConnectionParameters
from tests.integration.test_audio_refusals import REFUSED
from tests.invariants import violations, watch
from tests.media import ffmpeg, flac_claiming
from tests.receiver import Receiver
from tests.running import descendants
from tests.serving import ServedDaemon, served_daemon

QUIET_HOUR = ("-f", "lavfi", "-i", "anullsrc=sample_rate=8000:channel_layout=mono", "-t", "3600")


async def _fails(served: ServedDaemon, audio: bytes, receiver: Receiver) -> str:
    """The code, wherever it was found out: at the submission or by the job."""
    response = await served.post(audio, callback_url=receiver.url)
    if response.status_code != 202:
        assert 400 <= response.status_code < 500, response.text
        return str(response.json()["error"]["code"])
    job = await served.finished(response.json()["job_id"])
    assert job["status"] == "failed"
    assert job["attempt"] == 1, "another attempt would not cure it"
    return str(job["error"]["code"])


async def test_what_cannot_be_heard_is_refused_and_the_next_job_is_done(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults 20 and 21."""
    await watch(database)
    async with served_daemon(tmp_path, database, monkeypatch, max_duration_s=60) as served:
        for kind, (_, make) in REFUSED.items():
            (tmp_path / "made").mkdir(exist_ok=True)
            code = await _fails(served, make(tmp_path / "made"), receiver)
            assert code in ("not_media", "decode_failed", "missing_field", "empty_file"), kind
        bomb = flac_claiming(ffmpeg(*QUIET_HOUR, "-frame_size", "16384", "-f", "flac", "pipe:1"), 8_000)
        assert len(bomb) < 150_000
        assert await _fails(served, bomb, receiver) == "too_long"
        good = await served.submit(callback_url=receiver.url)
        assert (await served.finished(good))["status"] == "completed"
        jobs = [job["job_id"] for job in (await served.json("/jobs", limit=500))["jobs"]]
        await receiver.wait_for(len(jobs))
        assert await violations(database, served.settings.jobs_dir, receiver.requests, told=jobs) == []
        assert not any(b"ffmpeg" in _command(pid) for pid in descendants(os.getpid()))


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
