"""Our figures against nvidia-smi's, on a real card."""

import shutil
import subprocess

import pynvml
import pytest

from gpu_daemon.gpu.detect import detect
from gpu_daemon.gpu.nvml import NvmlSource

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
    for uuid, total, used, temperature in _nvidia_smi("uuid", "memory.total", "memory.used", "temperature.gpu"):
        reading = source.read(uuid)
        assert reading.vram_total_mb == pytest.approx(float(total), abs=1)
        assert reading.vram_used_mb == pytest.approx(float(used), abs=256)
        assert reading.temperature_c == pytest.approx(float(temperature), abs=5)


async def test_every_card_is_found() -> None:
    cards = {uuid for uuid, mode in _nvidia_smi("uuid", "mig.mode.current") if mode != "Enabled"}
    devices = await detect(("auto",))
    assert cards <= {device.uuid for device in devices}
    assert {device.kind for device in devices} == {"cuda"}
