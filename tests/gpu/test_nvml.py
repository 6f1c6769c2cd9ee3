"""Our figures against nvidia-smi's, on a real card."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest

from gpu_daemon.gpu.detect import detect
from gpu_daemon.gpu.nvml import NvmlSource
from gpu_daemon.gpu.telemetry import Telemetry
from tests.made_gpus import until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no nvidia-smi, so no NVIDIA GPU here"),
]


def _nvidia_smi(*fields: str) -> list[list[str]]:
    output = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    return [[part.strip() for part in line.split(",")] for line in output.splitlines() if line]


def test_reading_agrees_with_nvidia_smi() -> None:
    source = NvmlSource(pynvml)
    asked = ("uuid", "memory.total", "memory.used", "temperature.gpu", "enforced.power.limit", "clocks.max.sm")
    for uuid, total, used, temperature, limit, fastest in _nvidia_smi(*asked):
        reading = source.read(uuid)
        assert reading.reason is None
        assert reading.power_limit_w == (pytest.approx(float(limit), abs=1) if limit[0].isdigit() else None)
        assert reading.clock_sm_mhz is not None
        assert 0 < reading.clock_sm_mhz <= float(fastest)
        assert reading.throttle is not None
        assert reading.vram_total_mb == pytest.approx(float(total), abs=1)
        assert reading.vram_used_mb == pytest.approx(float(used), abs=256)
        assert reading.temperature_c == pytest.approx(float(temperature), abs=5)


async def test_the_readings_of_every_card_arrive(tmp_path: Path) -> None:
    telemetry = Telemetry(dict(enumerate(await detect(("auto",)))), tmp_path, interval_s=0.2)
    await telemetry.start()
    await until(lambda: all(reading.read_at_s is not None for reading in telemetry.latest().values()))
    readings = telemetry.latest()
    assert readings
    for reading in readings.values():
        assert reading.reason is None
        assert reading.vram_total_mb is not None
    async with asyncio.timeout(5):
        await telemetry.stop()


async def test_every_card_is_found() -> None:
    cards = {uuid for uuid, mode in _nvidia_smi("uuid", "mig.mode.current") if mode != "Enabled"}
    devices = await detect(("auto",))
    assert cards <= {device.uuid for device in devices}
    assert {device.kind for device in devices} == {"cuda"}
