"""What the rest of the daemon relies on of an NVML: the recorded one and, where there is a card, the real one."""

import pynvml
import pytest

from gpu_daemon.gpu.nvml import NvmlModule, NvmlSource
from gpu_daemon.gpu.reading import GpuReading
from tests.fake_nvml import FakeNvml, laptop, rtx_4090


@pytest.fixture(params=["recorded", "real"])
def nvml(request: pytest.FixtureRequest) -> NvmlModule:
    if request.param == "recorded":
        return FakeNvml([rtx_4090(), laptop()])
    if not NvmlSource(pynvml).gpus():
        pytest.skip("no NVIDIA GPU here")
    real: NvmlModule = pynvml
    return real


def test_cards_have_names_and_uuids(nvml: NvmlModule) -> None:
    for gpu in NvmlSource(nvml).gpus():
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        assert gpu.name


def test_a_reading_is_within_what_is_possible(nvml: NvmlModule) -> None:
    source = NvmlSource(nvml)
    for gpu in source.gpus():
        reading = source.read(gpu.uuid)
        assert reading.vram_used_mb is not None
        assert reading.vram_total_mb is not None
        assert 0 <= reading.vram_used_mb <= reading.vram_total_mb
        assert reading.vram_total_mb > 256
        assert reading.util_percent is None or 0 <= reading.util_percent <= 100
        assert reading.temperature_c is None or 0 < reading.temperature_c < 120
        assert reading.power_w is None or 0 < reading.power_w < 2000
        assert reading.vram_free_mb is not None
        assert reading.vram_used_mb + reading.vram_free_mb <= reading.vram_total_mb
        assert reading.power_limit_w is None or 0 < reading.power_limit_w < 2000
        assert reading.clock_sm_mhz is None or 0 < reading.clock_sm_mhz < 10_000
        assert reading.clock_mem_mhz is None or 0 < reading.clock_mem_mhz < 50_000
        assert reading.fan_percent is None or 0 <= reading.fan_percent <= 200
        assert reading.reason is None


def test_an_unknown_card_has_no_figures(nvml: NvmlModule) -> None:
    reading = NvmlSource(nvml).read("GPU-00000000-0000-0000-0000-000000000000")
    assert reading.reason
    assert reading == GpuReading(reason=reading.reason)


def test_many_readings_through_one_opening(nvml: NvmlModule) -> None:
    source = NvmlSource(nvml)
    with source.reader(source.gpus()[0].uuid) as read:
        totals = {read().vram_total_mb for _ in range(3)}
    assert len(totals) == 1
    assert None not in totals
