"""Runners that fail as GPUs make them fail; what the daemon then thinks of the job, and of the device."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.database.pool import ConnectionParameters, Pool
from tests.faults.test_cancel import FREE_WITHIN_S
from tests.receiver import Receiver
from tests.running import CANCELLED_WITHIN_S, FAKE_ENGINE, RunningDaemon, descendants, running_daemon
from tests.speech import conversation, write


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "one.wav"
    write(conversation("en", 500_060, 1), path, "wav")
    return path


async def worker(daemon: RunningDaemon, index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = (await daemon.json("/workers"))["workers"][index]
    return found


async def ends(daemon: RunningDaemon, audio: Path, prompt: str, **fields: str) -> tuple[str, int, str | None]:
    """State, attempts and error code of a job that behaves so."""
    submitted = await daemon.submit(audio, initial_prompt=prompt, **fields)
    job = await daemon.finished(submitted["job_id"])
    return job["status"], job["attempt"], job["error"] and job["error"]["code"]


async def test_out_of_memory_is_tried_again_in_fresh_runners(
    tmp_path: Path, database: ConnectionParameters, audio: Path, receiver: Receiver
) -> None:
    """Fault 10, as far as the engine has it: it does not halve its batch yet."""
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        assert await ends(daemon, audio, f"fake:once={tmp_path / 'once'},oom") == ("completed", 2, None)
        pids = [(await daemon.line("runner.ready", nth=nth))["pid"] for nth in (1, 2)]
        assert pids[0] != pids[1]
        assert await ends(daemon, audio, "fake:oom", callback_url=receiver.url) == ("failed", 3, "gpu_oom")
        (request,) = await receiver.wait_for(1, timeout_s=20)
        assert request.json()["error_code"] == "gpu_oom"
        assert await ends(daemon, audio, "") == ("completed", 1, None)
        # However often: that is no fault of the device.
        for _ in range(2):
            assert await ends(daemon, audio, "fake:oom") == ("failed", 3, "gpu_oom")
        assert await ends(daemon, audio, "") == ("completed", 1, None)
        assert len(descendants(daemon.pid)) == 1
        assert not list((daemon.data_dir / "jobs").iterdir())


async def test_after_a_sticky_error_the_runner_is_replaced_and_the_next_job_is_unharmed(
    tmp_path: Path, database: ConnectionParameters, audio: Path
) -> None:
    """Fault 11. The next job is waiting already: it is not given to the child that is about to end."""
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        held = await daemon.submit(audio, initial_prompt=f"fake:until={tmp_path / 'go'}")
        await daemon.line("job.started", job_id=held["job_id"])
        sticky = await daemon.submit(audio, initial_prompt=f"fake:once={tmp_path / 'once'},lost")
        others = [await daemon.submit(audio) for _ in range(3)]
        (tmp_path / "go").touch()
        for job_id, attempts in ((sticky["job_id"], 2), *((other["job_id"], 1) for other in others)):
            job = await daemon.finished(job_id)
            assert (job["status"], job["attempt"]) == ("completed", attempts)
        assert (await worker(daemon))["restarts"] == 1
        assert len(descendants(daemon.pid)) == 1


async def test_what_takes_the_device_away_in_the_search_for_speakers_costs_no_transcript(
    tmp_path: Path, database: ConnectionParameters, audio: Path
) -> None:
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, FAKE_DIARIZER="lost") as daemon:
        assert await ends(daemon, audio, "") == ("completed", 1, None)
        submitted = await daemon.submit(audio, diarize="true")
        job = await daemon.finished(submitted["job_id"])
        assert (job["status"], job["attempt"]) == ("completed", 3)
        assert job["result"]["text"]
        assert {segment["speaker"] for segment in job["result"]["segments"]} == {None}
        assert job["result"]["diarization"]["error_code"] == "gpu_error"
        assert "only a new process can clear" in job["result"]["diarization"]["error"]
        assert (await worker(daemon))["restarts"] == 2
        alone = await daemon.submit(audio, task="diarize")
        assert (await daemon.finished(alone["job_id"]))["error"]["code"] == "gpu_error"


async def test_a_hung_runner_that_ignores_sigterm_is_killed(
    tmp_path: Path, database: ConnectionParameters, audio: Path
) -> None:
    """Fault 12, by a cancel and by the stall limit."""
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, STALL_TIMEOUT_S="15", MAX_ATTEMPTS="1") as daemon:
        deaf = await daemon.submit(audio, initial_prompt="fake:deaf")
        started = await daemon.line("job.started", job_id=deaf["job_id"])
        pid = (await worker(daemon, started["worker"]))["pid"]
        while (await daemon.job(deaf["job_id"]))["stage"] != "transcribing":
            await asyncio.sleep(0.02)
        async with asyncio.timeout(FREE_WITHIN_S):
            response = await daemon.client.post(f"/jobs/{deaf['job_id']}/cancel")
        assert response.json()["status"] == "cancelled"
        assert await daemon.cancel_took_s(deaf["job_id"]) < CANCELLED_WITHIN_S
        assert pid not in descendants(daemon.pid)
        assert await ends(daemon, audio, "fake:deaf") == ("failed", 1, "stalled")
        assert await ends(daemon, audio, "") == ("completed", 1, None)
        assert len(descendants(daemon.pid)) == 1


async def test_a_device_on_which_three_jobs_kill_their_runners_is_quarantined_until_it_is_resumed(
    tmp_path: Path, database: ConnectionParameters, audio: Path
) -> None:
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, MAX_ATTEMPTS="1") as daemon:
        for _ in range(2):
            assert await ends(daemon, audio, "fake:segv") == ("failed", 1, "runner_crashed")
        assert await ends(daemon, audio, "") == ("completed", 1, None)  # which clears the device
        for _ in range(3):
            assert await ends(daemon, audio, "fake:segv") == ("failed", 1, "runner_crashed")
        line = await daemon.line("worker.quarantined", worker=0)
        assert line["level"] == "error"
        assert descendants(daemon.pid) == set()
        waiting = await daemon.submit(audio)
        quarantined = await worker(daemon)
        assert (quarantined["state"], quarantined["pid"]) == ("quarantined", None)
        assert "3 runners died within 10 minutes" in quarantined["error"]
        assert "SIGSEGV" in quarantined["error"]
        ready = await daemon.json("/health/ready", status=503)
        assert "quarantined" in ready["reason"]
        health = await daemon.json("/health")
        assert (health["status"], "SIGSEGV" in health["reason"]) == ("error", True)
        assert (await daemon.json("/dashboard/state"))["workers"][0]["state"] == "quarantined"
        assert (await daemon.job(waiting["job_id"]))["status"] == "queued"
        response = await daemon.client.post("/workers/0/resume")
        assert (response.status_code, response.json()["error"]) == (200, None)
        assert (await daemon.finished(waiting["job_id"]))["attempt"] == 1
        assert (await daemon.json("/health"))["status"] == "ready"


async def test_one_bad_file_does_not_take_the_only_device_down(
    tmp_path: Path, database: ConnectionParameters, audio: Path
) -> None:
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, MAX_ATTEMPTS="5") as daemon:
        assert await ends(daemon, audio, "fake:segv") == ("failed", 5, "runner_crashed")
        assert await ends(daemon, audio, "") == ("completed", 1, None)


async def test_a_quarantined_device_leaves_its_jobs_to_the_others(
    tmp_path: Path, database: ConnectionParameters, audio: Path, pool: Pool
) -> None:
    """Runners that are killed while idle, too: there is no job to blame."""
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, DEVICES="cpu,cpu") as daemon:
        for nth in (1, 2, 3):
            pid = (await daemon.line("runner.ready", worker=0, nth=nth))["pid"]
            os.kill(pid, signal.SIGKILL)
        await daemon.line("worker.quarantined", worker=0)
        for _ in range(3):
            assert await ends(daemon, audio, "") == ("completed", 1, None)
        assert await pool.fetch("SELECT DISTINCT worker_index FROM jobs") == [(1,)]
        states = [(await worker(daemon, index))["state"] for index in (0, 1)]
        assert states == ["quarantined", "idle"]
        assert (await daemon.json("/health/ready"))["status"] == "ready"
        assert (await daemon.client.post("/workers/0/resume")).status_code == 200
        await daemon.line("runner.ready", worker=0, nth=4)
        assert len(descendants(daemon.pid)) == 2


async def test_a_device_that_computes_wrongly_gets_no_job_and_the_others_go_on(
    tmp_path: Path, database: ConnectionParameters, audio: Path
) -> None:
    """Fault 41. It would be told by nothing but the text."""
    liar = {"GPU_DAEMON_ENGINE": "tests.lying_engine:create", "HONEST": str(tmp_path / "honest"), "DEVICES": "cpu,cpu"}
    async with running_daemon(tmp_path, database, **liar) as daemon:
        refused = await daemon.line("runner.start_failed", timeout_s=90)  # nonsense takes as long as a window can
        bad = refused["worker"]
        assert "CPU computes wrongly and is not used: " in refused["error"]
        jobs = [await daemon.submit(audio) for _ in range(2)]
        for submitted in jobs:
            job = await daemon.finished(submitted["job_id"])
            assert (job["status"], job["attempt"]) == ("completed", 1)
        shown = await worker(daemon, bad)
        assert shown["state"] in ("starting", "restarting")
        assert shown["error"] == refused["error"]
        assert (await worker(daemon, 1 - bad))["error"] is None
        assert (await daemon.client.get("/health/ready")).status_code == 200
