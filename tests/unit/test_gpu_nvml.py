"""Recorded cards: what a driver refuses is unknown, never nought."""

import pytest

from gpu_daemon.gpu.nvml import NvidiaGpu, NvmlSource, NvmlUnusable
from gpu_daemon.gpu.reading import GpuReading
from tests import fake_nvml
from tests.fake_nvml import MIB, Card, FakeNvml, laptop, rtx_4090


def test_a_card_that_answers_everything() -> None:
    card = rtx_4090()
    assert NvmlSource(FakeNvml([card])).read(card.uuid) == GpuReading(
        util_percent=63.0, vram_used_mb=4200.0, vram_total_mb=24564.0, temperature_c=51.0, power_w=187.34
    )


def test_a_refused_field_is_none_and_leaves_the_others() -> None:
    card = laptop()
    assert NvmlSource(FakeNvml([card])).read(card.uuid) == GpuReading(
        util_percent=None, vram_used_mb=311.0, vram_total_mb=2048.0, temperature_c=40.0, power_w=None
    )


def test_a_card_that_shares_its_memory_says_nothing_of_it() -> None:
    card = Card(uuid="GPU-9", name="NVIDIA GB10", util_percent=7, memory_bytes=None)
    reading = NvmlSource(FakeNvml([card])).read(card.uuid)
    assert reading.vram_used_mb is None
    assert reading.vram_total_mb is None
    assert reading.util_percent == 7


def test_a_lost_card_has_no_figures() -> None:
    card = rtx_4090()
    card.lost = True
    assert NvmlSource(FakeNvml([card])).read(card.uuid) == GpuReading()


def test_a_card_in_mig_mode_is_its_slices() -> None:
    slices = [Card("MIG-1", "NVIDIA H200 MIG 3g.71gb"), None, Card("MIG-2", "NVIDIA H200 MIG 3g.71gb"), None]
    card = Card("GPU-1", "NVIDIA H200", slices=list(slices))
    assert NvmlSource(FakeNvml([card, rtx_4090()])).gpus() == (
        NvidiaGpu("MIG-1", "NVIDIA H200 MIG 3g.71gb"),
        NvidiaGpu("MIG-2", "NVIDIA H200 MIG 3g.71gb"),
        NvidiaGpu(rtx_4090().uuid, "NVIDIA GeForce RTX 4090"),
    )


def test_a_slice_is_read_by_its_uuid() -> None:
    part = Card("MIG-1", "NVIDIA H200 MIG 1g.18gb", util_percent=None, memory_bytes=(100 * MIB, 18176 * MIB))
    reading = NvmlSource(FakeNvml([Card("GPU-1", "NVIDIA H200", slices=[part])])).read("MIG-1")
    assert (reading.util_percent, reading.vram_used_mb, reading.vram_total_mb) == (None, 100.0, 18176.0)


@pytest.mark.parametrize("error", [fake_nvml.NVMLError_LibraryNotFound, fake_nvml.NVMLError_DriverNotLoaded])
def test_no_driver_is_no_gpus(error: type[fake_nvml.NVMLError]) -> None:
    assert NvmlSource(FakeNvml(broken=error)).gpus() == ()


def test_a_broken_driver_is_not_taken_for_none() -> None:
    broken = FakeNvml([rtx_4090()], broken=fake_nvml.NVMLError_LibRmVersionMismatch)
    with pytest.raises(NvmlUnusable):
        NvmlSource(broken).gpus()
    assert NvmlSource(broken).read(rtx_4090().uuid) == GpuReading()


def test_the_library_is_closed_as_often_as_opened() -> None:
    nvml = FakeNvml([rtx_4090()])
    source = NvmlSource(nvml)
    source.gpus()
    with source.reader(rtx_4090().uuid) as read:
        read()
        assert nvml.open == 1
    assert nvml.open == 0
