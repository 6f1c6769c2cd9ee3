"""Recorded cards: what a driver refuses is unknown, never nought."""

import pytest

from gpu_daemon.gpu.nvml import NvidiaGpu, NvmlSource, NvmlUnusable
from gpu_daemon.gpu.reading import GpuReading
from tests import fake_nvml
from tests.fake_nvml import MIB, Card, FakeNvml, laptop, rtx_4090


def test_a_card_that_answers_everything() -> None:
    card = rtx_4090()
    assert NvmlSource(FakeNvml([card])).read(card.uuid) == GpuReading(
        util_percent=63.0,
        vram_used_mb=4200.0,
        vram_free_mb=20364.0,
        vram_total_mb=24564.0,
        temperature_c=51.0,
        power_w=187.34,
        power_limit_w=450.0,
        clock_sm_mhz=2520.0,
        clock_mem_mhz=10501.0,
        throttle=("power cap",),
        ecc_errors=None,
        fan_percent=37.0,
        by_process={4711: 3900.0},
    )


def test_a_refused_field_is_none_and_leaves_the_others() -> None:
    card = laptop()
    assert NvmlSource(FakeNvml([card])).read(card.uuid) == GpuReading(
        util_percent=None, vram_used_mb=311.0, vram_free_mb=1737.0, vram_total_mb=2048.0, temperature_c=40.0
    )


def test_a_card_that_shares_its_memory_says_nothing_of_it() -> None:
    card = Card(uuid="GPU-9", name="NVIDIA GB10", util_percent=7, memory_bytes=None)
    reading = NvmlSource(FakeNvml([card])).read(card.uuid)
    assert reading.vram_used_mb is None
    assert reading.vram_total_mb is None
    assert reading.util_percent == 7


def test_a_lost_card_has_no_figures_but_a_reason() -> None:
    card = rtx_4090()
    card.lost = True
    assert NvmlSource(FakeNvml([card])).read(card.uuid) == GpuReading(reason="NVMLError_GpuIsLost")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (0, ()),
        (0x1, ()),  # idle
        (0x2, ()),  # clocks that somebody chose
        (0x44, ("power cap", "heat (hardware)")),
        (0x1 | 0x8 | 0x1000, ("hardware slowdown",)),  # and one that a newer driver knows
    ],
)
def test_why_a_card_is_held_down(mask: int, words: tuple[str, ...]) -> None:
    card = rtx_4090()
    card.throttle = mask
    assert NvmlSource(FakeNvml([card])).read(card.uuid).throttle == words


def test_a_process_in_both_lists_counts_once_and_may_hide_its_memory() -> None:
    card = rtx_4090()
    card.processes = {10: None, 20: 5 * MIB}
    reading = NvmlSource(FakeNvml([card])).read(card.uuid)
    assert (reading.by_process, reading.processes) == ({10: None, 20: 5.0}, 2)


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
    whole = Card("GPU-1", "NVIDIA H200", slices=[part], temperature_c=66, power_mw=512_000, ecc_errors=3)
    reading = NvmlSource(FakeNvml([whole])).read("MIG-1")
    assert (reading.util_percent, reading.vram_used_mb, reading.vram_total_mb) == (None, 100.0, 18176.0)
    assert (reading.temperature_c, reading.power_w, reading.ecc_errors) == (66.0, 512.0, 3), "its card's"


@pytest.mark.parametrize("error", [fake_nvml.NVMLError_LibraryNotFound, fake_nvml.NVMLError_DriverNotLoaded])
def test_no_driver_is_no_gpus(error: type[fake_nvml.NVMLError]) -> None:
    assert NvmlSource(FakeNvml(broken=error)).gpus() == ()


def test_a_broken_driver_is_not_taken_for_none() -> None:
    broken = FakeNvml([rtx_4090()], broken=fake_nvml.NVMLError_LibRmVersionMismatch)
    with pytest.raises(NvmlUnusable):
        NvmlSource(broken).gpus()
    assert NvmlSource(broken).read(rtx_4090().uuid) == GpuReading(reason="NVMLError_LibRmVersionMismatch")


def test_the_library_is_closed_as_often_as_opened() -> None:
    nvml = FakeNvml([rtx_4090()])
    source = NvmlSource(nvml)
    source.gpus()
    with source.reader(rtx_4090().uuid) as read:
        read()
        assert nvml.open == 1
    assert nvml.open == 0
