"""Drivers that hang and cards that fall off the bus take nothing else down."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_daemon.errors import StartupError
from gpu_daemon.gpu import telemetry as module
from gpu_daemon.gpu.detect import Device, Machine, detect
from gpu_daemon.gpu.sampler import UsageSampler
from gpu_daemon.gpu.telemetry import Telemetry
from tests.fake_nvml import MIB, FakeNvml
from tests.made_gpus import MadeGpus, until


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What a hung call waits for: it is let go when the test ends."""
    event = threading.Event()
    yield event
    event.set()


async def test_detection_says_that_the_driver_hangs(tmp_path: Path, stuck: threading.Event) -> None:
    machine = Machine(nvml=FakeNvml(opening_hangs=stuck), root=tmp_path, masks={}, driver_timeout_s=0.05)
    with pytest.raises(StartupError, match=r"the NVIDIA driver hangs.*DEVICES=cpu"):
        await detect(("auto",), machine)


async def test_cpus_are_had_without_asking_the_driver(tmp_path: Path, stuck: threading.Event) -> None:
    machine = Machine(nvml=FakeNvml(opening_hangs=stuck), root=tmp_path, masks={}, driver_timeout_s=60)
    assert [found.kind for found in await asyncio.wait_for(detect(("cpu",), machine), 20)] == ["cpu"]


async def test_the_loop_runs_on_while_the_driver_hangs(tmp_path: Path, stuck: threading.Event) -> None:
    machine = Machine(nvml=FakeNvml(opening_hangs=stuck), root=tmp_path, masks={}, driver_timeout_s=60)
    detecting = asyncio.create_task(detect(("cuda:0",), machine))
    for _ in range(20):
        await asyncio.sleep(0)  # on this thread the call would never come back
    assert not detecting.done()
    stuck.set()
    with pytest.raises(StartupError, match="no GPU"):
        await detecting


def test_a_hung_driver_does_not_keep_the_process_from_ending() -> None:
    script = (
        "import asyncio, threading\n"
        "from gpu_daemon.gpu.driver_call import DriverHangs, driver_call\n"
        "async def main():\n"
        "    try: await driver_call(threading.Event().wait, timeout_s=0.05)\n"
        "    except DriverHangs: print('hangs')\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "hangs\n", "")


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeGpus:
    monkeypatch.setattr(module, "RESTART_S", 0.05)
    return MadeGpus(tmp_path / "gpus", monkeypatch, 2)


def watched(gpus: MadeGpus, data_dir: Path, *, stale_s: float = 2.0, renew_s: float = 60.0) -> Telemetry:
    """Worker 1 has no GPU."""
    first, second = gpus.devices()
    cpu = Device(kind="cpu", index=0, name="CPU", uuid=None)
    return Telemetry(
        {0: first, 1: cpu, 2: second},
        data_dir,
        runner_pids=lambda: {4711},
        interval_s=0.05,
        stale_s=stale_s,
        renew_s=renew_s,
    )


async def test_readings_by_worker(gpus: MadeGpus, tmp_path: Path) -> None:
    telemetry = watched(gpus, tmp_path)
    await telemetry.start()
    assert [reading.read_at_s for reading in telemetry.latest().values()] == [None, None]
    await until(lambda: all(reading.util_percent for reading in telemetry.latest().values()))
    readings = telemetry.latest()
    assert list(readings) == [0, 2]
    assert (readings[0].util_percent, readings[0].throttle, readings[0].processes) == (63.0, ("power cap",), 1)
    assert (readings[2].vram_ours_mb, readings[2].vram_others_mb) == (3900.0, 300.0)
    gpus.change(1, util_percent=99, processes=None)
    await until(lambda: telemetry.latest()[2].util_percent == 99.0)
    assert (telemetry.latest()[2].vram_ours_mb, telemetry.latest()[2].processes) == (None, None)
    await until(lambda: (host := telemetry.host()) is not None and host.cpu_percent is not None)
    host = telemetry.host()
    assert host is not None
    assert host.memory_used_mb is not None
    assert host.memory_total_mb is not None
    assert host.disk_free_mb is not None
    assert 0 < host.memory_used_mb < host.memory_total_mb
    assert host.disk_free_mb > 0
    pid = gpus.reader_pid()
    await telemetry.stop()
    await telemetry.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_gpu_whose_driver_hangs_silences_no_other(
    gpus: MadeGpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = watched(gpus, tmp_path, stale_s=0.5)
    await telemetry.start()
    await until(lambda: all(reading.util_percent for reading in telemetry.latest().values()))
    let_go = gpus.hang(0)
    await until(lambda: telemetry.latest()[0].reason is not None)
    gpus.change(1, util_percent=7)
    await until(lambda: telemetry.latest()[2].util_percent == 7.0)
    assert telemetry.latest()[0].vram_used_mb is None
    assert "has not answered" in str(telemetry.latest()[0].reason)
    monkeypatch.setattr(module, "ANSWER_S", 60.0)
    async with asyncio.timeout(20):  # no job waits for it
        for _ in range(20):
            async with UsageSampler(telemetry, 0) as usage:
                pass
    summary = usage.summary()
    assert summary is not None
    assert summary["util_avg_percent"] is None
    let_go()
    await until(lambda: telemetry.latest()[0].util_percent == 63.0)
    gpus.hang(0)
    gpus.hang(1)
    await until(lambda: all(reading.reason for reading in telemetry.latest().values()))
    async with asyncio.timeout(20):
        await telemetry.stop()


async def test_a_gpu_that_falls_off_the_bus_and_comes_back(gpus: MadeGpus, tmp_path: Path) -> None:
    telemetry = watched(gpus, tmp_path, stale_s=20, renew_s=0.5)
    await telemetry.start()
    await until(lambda: telemetry.latest()[0].util_percent == 63.0)
    async with UsageSampler(telemetry, 0) as usage:
        await until(lambda: telemetry.latest()[0].util_percent == 63.0)
        before = gpus.reader_pid()
        gpus.change(0, lost=True)
        await until(lambda: telemetry.latest()[0].reason == "NVMLError_GpuIsLost")
        assert telemetry.latest()[0].vram_total_mb is None
    summary = usage.summary()
    assert summary is not None
    assert summary["util_avg_percent"] == 63.0, "what was known before still counts, and the loss counts for nothing"
    assert summary["vram_total_mb"] == 24564.0
    await until(lambda: gpus.reader_pid() != before)  # it is looked for anew
    gpus.change(0, lost=False)
    await until(lambda: telemetry.latest()[0].util_percent == 63.0)
    await telemetry.stop()


async def test_a_driver_that_takes_its_reader_down(gpus: MadeGpus, tmp_path: Path) -> None:
    telemetry = watched(gpus, tmp_path)
    await telemetry.start()
    await until(lambda: telemetry.latest()[0].util_percent == 63.0)
    gpus.change(0, util_percent=11)
    os.kill(gpus.reader_pid(), signal.SIGKILL)
    await until(lambda: telemetry.latest()[0].util_percent == 11.0)
    await telemetry.stop()


async def test_a_short_job_has_figures_of_its_own(
    gpus: MadeGpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 20.0)  # the machine may be busy
    first, _ = gpus.devices()
    telemetry = Telemetry({0: first}, tmp_path, interval_s=30)
    await telemetry.start()
    await until(lambda: telemetry.latest()[0].util_percent == 63.0)
    await until(lambda: (telemetry.latest()[0].read_s_ago or 0) > module.FRESH_S)
    gpus.change(0, util_percent=97, memory_bytes=(6100 * MIB, 24564 * MIB))
    async with UsageSampler(telemetry, 0) as usage:
        pass
    summary = usage.summary()
    assert summary is not None
    assert (summary["index"], summary["util_avg_percent"], summary["vram_used_max_mb"]) == (0, 97.0, 6100.0)
    await telemetry.stop()


async def test_a_job_on_a_cpu_has_no_figures_of_a_gpu(tmp_path: Path) -> None:
    telemetry = Telemetry({0: Device(kind="cpu", index=0, name="CPU", uuid=None)}, tmp_path)
    await telemetry.start()
    async with UsageSampler(telemetry, 0) as usage:
        pass
    assert usage.summary() is None
    assert telemetry.latest() == {}
    await telemetry.stop()
