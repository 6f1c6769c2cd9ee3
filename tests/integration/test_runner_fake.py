"""The parent's side of a runner against children that misbehave in every way; the engine is the fake one."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.errors import JobCancelled, JobError, RunnerCrashed
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobId
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.process import Runner
from gpu_daemon.runner.protocol import Run
from gpu_daemon.transcript.model import Transcript
from tests.runners import CPU, DEMO, LIMIT_S, Watcher, gone, ignore, pcm, run_of, started, until


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "audio.s16"
    tone = np.sin(np.arange(6 * SAMPLE_RATE_HZ) / 20) / 4
    path.write_bytes(pcm(tone.astype(np.float32)))
    return path


Request = Callable[..., Run]


@pytest.fixture
def request_for(audio: Path) -> Request:
    """A job that behaves as the prompt says."""

    def make(prompt: str | None = None, job_id: str = "job-1", model: str = "demo") -> Run:
        return run_of(audio, job_id, model=model, initial_prompt=prompt)

    return make


@pytest.fixture
async def runner(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runner]:
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")
    runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    yield runner
    await runner.stop()


async def test_a_job_brings_a_transcript_with_its_stages(runner: Runner, request_for: Request) -> None:
    watcher = Watcher()
    completed = await runner.run(request_for(), watcher)
    transcript = Transcript.model_validate_json(completed.transcript)
    assert transcript.duration == 6.0
    assert completed.done.duration_s == 6.0
    assert completed.done.token_count == transcript.token_count == 8
    assert completed.done.language == transcript.language == "en"
    assert set(completed.done.timings) == {"loading", "transcribing", "merging"}
    stages = [stage for stage, _ in watcher.seen]
    assert sorted(set(stages), key=stages.index)[:2] == [Stage.LOADING, Stage.TRANSCRIBING]
    assert runner.loaded == {"demo": DEMO.stat().st_size}
    assert runner.hello is not None
    assert runner.hello.device_name == "fake"


async def test_jobs_one_after_the_other(runner: Runner, request_for: Request) -> None:
    texts = [
        Transcript.model_validate_json((await runner.run(request_for(job_id=f"job-{i}"), ignore)).transcript).text
        for i in range(3)
    ]
    assert len(set(texts)) == 1
    assert texts[0]


async def test_a_ping_is_answered_while_a_job_runs(runner: Runner, request_for: Request) -> None:
    job = await started(runner, request_for("fake:sleep=60"))
    before = runner.answered_s_ago
    assert before is not None
    async with asyncio.timeout(LIMIT_S):
        while (now := runner.answered_s_ago) is not None and now >= before:
            before = now
            await asyncio.sleep(0.05)
    assert not job.done()
    await runner.cancel(JobId("job-1"))
    with pytest.raises(JobCancelled):
        await job


async def test_progress_grows_and_beats_while_the_engine_moves(runner: Runner, request_for: Request) -> None:
    watcher = Watcher()
    await runner.run(request_for("fake:sleep=1.5"), watcher)
    fractions = [fraction for stage, fraction in watcher.seen if stage is Stage.TRANSCRIBING]
    assert fractions == sorted(fractions)
    assert len(fractions) >= 4


async def test_a_cancel_is_obeyed_and_the_child_goes_on(runner: Runner, request_for: Request) -> None:
    pid = runner.pid
    job = await started(runner, request_for("fake:sleep=60"))
    await runner.cancel(JobId("job-1"), grace_s=LIMIT_S)
    with pytest.raises(JobCancelled):
        await job
    assert runner.pid == pid
    await runner.run(request_for(), ignore)


@pytest.mark.parametrize("how", ["hangs", "is stopped"])
async def test_a_child_that_ignores_a_cancel_is_killed(runner: Runner, request_for: Request, how: str) -> None:
    pid = runner.pid
    assert pid is not None
    job = await started(runner, request_for("fake:hang" if how == "hangs" else "fake:sleep=60"))
    if how == "is stopped":
        os.kill(pid, signal.SIGSTOP)
    await until(lambda: runner.is_still(0.6))  # before it hangs it may still obey
    async with asyncio.timeout(LIMIT_S):
        await runner.cancel(JobId("job-1"), grace_s=0.3)
    with pytest.raises(JobCancelled):
        await job
    assert not runner.alive
    await gone(pid)
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    await runner.run(request_for(), ignore)


async def test_cancelling_a_job_that_is_not_there_does_nothing(runner: Runner) -> None:
    await runner.cancel(JobId("unknown"))
    assert runner.ready


@pytest.mark.parametrize(
    ("prompt", "code", "retryable"),
    [("fake:oom", "gpu_oom", True), ("fake:error", "engine_error", False), ("fake:bug", "engine_error", False)],
)
async def test_an_error_of_the_engine_ends_the_job_only(
    runner: Runner, request_for: Request, prompt: str, code: str, retryable: bool
) -> None:
    with pytest.raises(JobError) as caught:
        await runner.run(request_for(prompt), ignore)
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert "/a/path" not in caught.value.message
    assert runner.ready
    await runner.run(request_for(), ignore)


async def test_after_a_lost_device_the_child_ends_itself(runner: Runner, request_for: Request) -> None:
    with pytest.raises(JobError) as caught:
        await runner.run(request_for("fake:lost"), ignore)
    assert (caught.value.code, caught.value.retryable) == ("gpu_error", True)
    async with asyncio.timeout(LIMIT_S):
        await runner.died()
    assert not runner.ready


@pytest.mark.parametrize(
    ("prompt", "how"),
    [
        ("fake:segv", "was killed by SIGSEGV"),
        ("fake:exit", "ended with exit status 7"),
        ("fake:garbage", "was killed by SIGKILL"),
    ],
)
async def test_a_child_that_dies_is_said_to_have_crashed(
    runner: Runner, request_for: Request, prompt: str, how: str
) -> None:
    with pytest.raises(RunnerCrashed, match=how) as caught:
        await runner.run(request_for(prompt), ignore)
    assert caught.value.retryable
    assert runner.loaded == {}
    if prompt == "fake:exit":
        assert "I have had enough" in caught.value.stderr
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    await runner.run(request_for(), ignore)


async def test_a_job_that_kills_its_first_runner_is_done_by_the_second(
    runner: Runner, request_for: Request, tmp_path: Path
) -> None:
    once = request_for(f"fake:once={tmp_path / 'happened'},segv")
    with pytest.raises(RunnerCrashed):
        await runner.run(once, ignore)
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    await runner.run(once, ignore)


async def test_a_stop_in_the_middle_of_a_job_loses_the_job_only(runner: Runner, request_for: Request) -> None:
    job = await started(runner, request_for("fake:hang"))
    async with asyncio.timeout(LIMIT_S):
        await runner.stop()
    with pytest.raises(RunnerCrashed, match="ended with exit status 0"):
        await job


async def test_a_child_killed_from_outside(runner: Runner, request_for: Request) -> None:
    pid = runner.pid
    assert pid is not None
    job = await started(runner, request_for("fake:sleep=60"))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunnerCrashed, match="SIGKILL"):
        await job
    assert (runner.alive, runner.pid, runner.answered_s_ago) == (False, None, None)
    with pytest.raises(RunnerCrashed):
        await runner.run(request_for(), ignore)


async def test_what_libraries_print_disturbs_nothing(runner: Runner, request_for: Request) -> None:
    await runner.run(request_for("fake:print"), ignore)
    assert runner.ready


async def test_an_abandoned_run_is_cancelled_in_the_child(runner: Runner, request_for: Request) -> None:
    job = await started(runner, request_for("fake:sleep=60"))
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    async with asyncio.timeout(LIMIT_S):
        await runner.run(request_for(job_id="job-2"), ignore)


async def test_models_are_put_away_when_idle_and_on_demand(
    monkeypatch: pytest.MonkeyPatch, request_for: Request
) -> None:
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")
    runner = Runner(CPU, model_idle_s=0.3, vram_reserve_mb=0)
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    await runner.run(request_for(), ignore)
    assert set(runner.loaded) == {"demo"}
    await until(lambda: not runner.loaded)
    await runner.stop()

    patient = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
    await patient.start()
    await patient.wait_ready(LIMIT_S)
    await patient.run(request_for(model="one"), ignore)
    await patient.run(request_for(model="two"), ignore)
    assert set(patient.loaded) == {"one", "two"}
    await patient.unload("one")
    await until(lambda: set(patient.loaded) == {"two"})
    await patient.unload()
    await until(lambda: not patient.loaded)
    await patient.stop()


async def test_stop_works_before_start_and_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")
    runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
    await runner.stop()
    await runner.kill()
    await runner.died()
    with pytest.raises(RunnerCrashed, match="not started"):
        await runner.wait_ready(1)
    await runner.start()
    pid = runner.pid
    assert pid is not None
    await runner.start()
    assert runner.pid == pid
    await runner.wait_ready(LIMIT_S)
    await runner.stop()
    await runner.stop()
    await gone(pid)


async def test_a_child_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.no_such_engine:create")
    runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
    await runner.start()
    with pytest.raises(
        RunnerCrashed, match=r"exit status 1: ModuleNotFoundError: No module named 'tests\.no_such_engine'"
    ):
        await runner.wait_ready(LIMIT_S)
    assert not runner.alive


async def test_a_child_that_does_not_get_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")
    runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
    await runner.start()
    pid = runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(RunnerCrashed, match="not ready within"):
        await runner.wait_ready(0.2)
    await gone(pid)


PARENT = """
import asyncio
from gpu_daemon.gpu.detect import Device
from gpu_daemon.runner.process import Runner

async def main():
    runner = Runner(Device(kind="cpu", index=0, name="CPU", uuid=None), model_idle_s=300, vram_reserve_mb=0)
    await runner.start()
    await runner.wait_ready(10)
    print(runner.pid, flush=True)
    await runner.died()

asyncio.run(main())
"""


async def test_the_child_does_not_outlive_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        pid = int(await parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # so that only the kernel can end it, not the end of its stream
    parent.kill()
    await parent.wait()
    await gone(pid)


def test_it_works_on_uvloop_as_well(monkeypatch: pytest.MonkeyPatch, request_for: Request) -> None:
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setenv("GPU_DAEMON_ENGINE", "tests.fake_engine:create")

    async def main() -> None:
        runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
        await runner.start()
        await runner.wait_ready(LIMIT_S)
        await runner.run(request_for(), ignore)
        with pytest.raises(RunnerCrashed, match="SIGSEGV"):
            await runner.run(request_for("fake:segv"), ignore)
        await runner.start()
        await runner.wait_ready(LIMIT_S)
        await runner.stop()
        assert not runner.alive

    uvloop.run(main())
