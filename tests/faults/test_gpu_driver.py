"""Drivers that hang and cards that fall off the bus take nothing else down."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from gpu_daemon.clock import monotonic
from gpu_daemon.errors import StartupError
from gpu_daemon.gpu.detect import Device, Machine, detect
from gpu_daemon.gpu.nvml import NvmlSource
from gpu_daemon.gpu.reading import GpuReading
from gpu_daemon.gpu.sampler import Reader, UsageSampler
from tests.fake_nvml import FakeNvml, rtx_4090


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What a hung call waits for: it is let go when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def device() -> Device:
    return Device(kind="cuda", index=1, name="NVIDIA GeForce RTX 4090", uuid=f"GPU-{uuid4()}")


def threads_named(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def test_detection_says_that_the_driver_hangs(tmp_path: Path, stuck: threading.Event) -> None:
    machine = Machine(nvml=FakeNvml(opening_hangs=stuck), root=tmp_path, masks={}, driver_timeout_s=0.05)
    with pytest.raises(StartupError, match=r"the NVIDIA driver hangs.*DEVICES=cpu"):
        await detect(("auto",), machine)


async def test_cpus_are_had_without_asking_the_driver(tmp_path: Path, stuck: threading.Event) -> None:
    machine = Machine(nvml=FakeNvml(opening_hangs=stuck), root=tmp_path, masks={}, driver_timeout_s=60)
    assert [found.kind for found in await asyncio.wait_for(detect(("cpu",), machine), 1)] == ["cpu"]


async def test_the_loop_runs_on_while_the_driver_hangs(tmp_path: Path, stuck: threading.Event) -> None:
    machine = Machine(nvml=FakeNvml(opening_hangs=stuck), root=tmp_path, masks={}, driver_timeout_s=60)
    detecting = asyncio.create_task(detect(("cuda:0",), machine))
    for _ in range(20):
        began = monotonic()
        await asyncio.sleep(0)
        assert monotonic() - began < 0.5
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


async def test_a_job_on_a_card_that_works() -> None:
    nvml = FakeNvml([rtx_4090()])
    reader = partial(NvmlSource(nvml).reader, rtx_4090().uuid)
    async with UsageSampler(device(), reader=reader) as usage:
        pass
    summary = usage.summary()
    assert summary is not None
    assert (summary["index"], summary["util_avg_percent"], summary["vram_used_max_mb"]) == (1, 63.0, 4200.0)
    assert nvml.open == 0


async def test_a_job_on_a_cpu_has_no_figures_of_a_gpu() -> None:
    async with UsageSampler(Device(kind="cpu", index=0, name="CPU", uuid=None)) as usage:
        pass
    assert usage.summary() is None


async def test_a_card_that_falls_off_the_bus_in_the_middle_of_a_job() -> None:
    card = rtx_4090()
    source = NvmlSource(FakeNvml([card]))
    loop = asyncio.get_running_loop()
    before, after = asyncio.Event(), asyncio.Event()
    taken: list[GpuReading] = []

    def read() -> GpuReading:
        reading = source.read(card.uuid)
        taken.append(reading)
        loop.call_soon_threadsafe((after if card.lost else before).set)
        return reading

    async with UsageSampler(device(), reader=_constant(read), interval_s=0.01) as usage:
        await asyncio.wait_for(before.wait(), 5)
        card.lost = True
        await asyncio.wait_for(after.wait(), 5)
    summary = usage.summary()
    assert GpuReading() in taken
    assert summary is not None
    assert summary["util_avg_percent"] == 63.0, "what was known before still counts, and the loss counts for nothing"
    assert summary["vram_total_mb"] == 24564.0


async def test_a_card_whose_readings_hang_costs_one_thread_and_no_job(stuck: threading.Event) -> None:
    card, hung = rtx_4090(), device()
    reader = partial(NvmlSource(FakeNvml([card], hangs=stuck)).reader, card.uuid)
    threads = threads_named("gpu-usage")
    for _ in range(3):
        async with UsageSampler(hung, reader=reader) as usage:
            pass
        summary = usage.summary()
        assert summary is not None
        assert summary["util_avg_percent"] is None
    assert threads_named("gpu-usage") == threads + 1


async def test_a_card_is_read_again_when_its_driver_has_come_back(stuck: threading.Event) -> None:
    card, revived = rtx_4090(), device()
    reader = partial(NvmlSource(FakeNvml([card], hangs=stuck)).reader, card.uuid)
    async with UsageSampler(revived, reader=reader):
        pass
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "gpu-usage"]
    stuck.set()
    await asyncio.to_thread(thread.join, 5)
    async with UsageSampler(revived, reader=reader) as usage:
        pass
    summary = usage.summary()
    assert summary is not None
    assert summary["util_avg_percent"] == 63.0


async def test_a_reader_that_breaks_costs_the_figures_only() -> None:
    def broken() -> GpuReading:
        raise ValueError("a driver that answers nonsense")

    async with UsageSampler(device(), reader=_constant(broken)) as usage:
        pass
    summary = usage.summary()
    assert summary is not None
    assert summary["vram_total_mb"] is None


def _constant(read: Callable[[], GpuReading]) -> Reader:
    return lambda: nullcontext(read)
