"""AMD's own library beside a made sysfs tree: what the one does not say is taken from the other."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from gpu_daemon.gpu.amdsmi import AmdSmiSource, installed, read_amd
from gpu_daemon.gpu.reading import GpuReading
from gpu_daemon.gpu.sysfs import SysfsSource
from tests.amdgpu_tree import amdgpu_tree, figures, mi300x, on_the_bus
from tests.fake_amdsmi import BDF, NOT_THERE, AmdSmiLibraryException, FakeAmdSmi

FULL = GpuReading(
    util_percent=87.0,
    vram_used_mb=20480.0,
    vram_free_mb=176112.0,
    vram_total_mb=196592.0,
    temperature_c=61.0,
    power_w=412.0,
    power_limit_w=750.0,
    clock_sm_mhz=2100.0,
    clock_mem_mhz=1300.0,
    throttle=("power cap", "heat (memory)"),
    ecc_errors=2,
    by_process={4711: 18432.0, 900: None},
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = amdgpu_tree(tmp_path, mi300x(128))
    figures(root, 128, gpu_busy_percent="41", mem_info_vram_used=str(2**30), mem_info_vram_total=str(2**34))
    on_the_bus(root, 128, BDF)
    return root


def test_a_card_that_answers_everything() -> None:
    assert AmdSmiSource(FakeAmdSmi()).read(BDF) == FULL


def test_every_refusal_costs_its_own_field_only() -> None:
    for function in FakeAmdSmi().answers:
        smi = FakeAmdSmi()
        for refusal in (AmdSmiLibraryException(), dict[str, str](), NOT_THERE, None):
            smi.answers[function] = refusal
            reading = AmdSmiSource(smi).read(BDF)
            different = [name for name in GpuReading.__slots__ if getattr(reading, name) != getattr(FULL, name)]
            assert 1 <= len(different) <= 3, function
            assert {getattr(reading, name) for name in different} <= {None}, (function, refusal)


def test_units_and_names_of_older_versions() -> None:
    smi = FakeAmdSmi()
    smi.answers["amdsmi_get_power_info"] = {"average_socket_power": 203}
    smi.answers["amdsmi_get_power_cap_info"] = {"power_cap": 300}
    smi.answers["amdsmi_get_clock_info"] = {"GFX": {"cur_clk": 1700}, "MEM": {"cur_clk": 1600}}
    smi.answers["amdsmi_get_gpu_process_list"] = [object()]
    reading = AmdSmiSource(smi).read(BDF)
    assert (reading.power_w, reading.power_limit_w) == (203.0, 300.0)
    assert (reading.clock_sm_mhz, reading.clock_mem_mhz) == (1700.0, 1600.0)
    assert reading.by_process is None


def test_what_the_library_does_not_say_comes_from_sysfs(root: Path) -> None:
    smi, sysfs = FakeAmdSmi(), SysfsSource(root)
    figures(root, 128, pwm1_in_hwmon="51", pwm1_max_in_hwmon="255")
    smi.answers["amdsmi_get_gpu_activity"] = {"gfx_activity": NOT_THERE}
    reading = read_amd(sysfs, smi, 128)
    assert (reading.util_percent, reading.fan_percent) == (41.0, 20.0), "of sysfs"
    assert (reading.vram_used_mb, reading.power_w) == (20480.0, 412.0), "of the library"
    assert read_amd(sysfs, None, 128).vram_used_mb == 1024.0


def test_a_card_that_the_library_does_not_know(root: Path) -> None:
    smi = FakeAmdSmi()
    on_the_bus_elsewhere = SysfsSource(root)
    (root / "sys/class/drm/renderD128/device").unlink()
    assert read_amd(on_the_bus_elsewhere, smi, 128).reason == "the driver does not show it"


def test_a_part_of_a_card_has_no_place_on_the_bus(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128))
    figures(root, 128, gpu_busy_percent="41")
    assert SysfsSource(root).bdf(128) is None
    assert read_amd(SysfsSource(root), FakeAmdSmi(), 128).vram_used_mb is None, "it is not its card's"


@pytest.mark.parametrize("fails", [False, True])
def test_the_library_is_used_where_it_opens(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    module = ModuleType("amdsmi")

    def amdsmi_init() -> None:
        if fails:
            raise OSError("libamd_smi.so: cannot open shared object file")

    module.__dict__["amdsmi_init"] = amdsmi_init
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    assert (installed() is module) is not fails
