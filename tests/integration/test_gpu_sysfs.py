from pathlib import Path

from gpu_daemon.gpu.reading import GpuReading
from gpu_daemon.gpu.sysfs import AmdGpu, SysfsSource
from tests.amdgpu_tree import amdgpu_tree, figures, mi300x, process, rx_7900


def test_gpus_in_the_order_of_the_topology(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128), *(rx_7900(minor) for minor in range(129, 139)))
    gpus = SysfsSource(root).gpus()
    assert gpus[0] == AmdGpu("AMD gfx942", "GPU-9a1b2c3d4e5f6071", 128)
    assert gpus[1] == AmdGpu("AMD gfx1100", None, 129)
    assert [gpu.render_minor for gpu in gpus] == list(range(128, 139)), "node 10 comes after node 9"


def test_the_name_of_the_product_when_the_card_says_it(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128))
    figures(root, 128, product_name="AMD Instinct MI300X OAM")
    assert SysfsSource(root).gpus()[0].name == "AMD Instinct MI300X OAM"


def test_hexadecimal_steppings(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, "simd_count 416\ngfx_target_version 90010\ndrm_render_minor 128\n")
    assert SysfsSource(root).gpus()[0].name == "AMD gfx90a"


def test_no_driver(tmp_path: Path) -> None:
    assert SysfsSource(tmp_path).gpus() == ()
    assert not SysfsSource(tmp_path).may_compute()


def test_a_gpu_that_the_container_was_not_given(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128), rx_7900(129))
    (root / "dev/dri/renderD128").unlink()
    assert [gpu.render_minor for gpu in SysfsSource(root).gpus()] == [129]


def test_a_node_that_may_not_be_read(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128), rx_7900(129))
    properties = root / "sys/class/kfd/kfd/topology/nodes/1/properties"
    properties.unlink()
    properties.mkdir()  # root may read everything, but nobody can read a directory as a file
    assert [gpu.render_minor for gpu in SysfsSource(root).gpus()] == [129]


def test_a_reading(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128))
    figures(
        root,
        128,
        gpu_busy_percent="41",
        mem_info_vram_used=str(3 * 2**30),
        mem_info_vram_total=str(192 * 2**30),
        temp1_input_in_hwmon="47500",
        power1_average_in_hwmon="215000000",
        power1_cap_in_hwmon="750000000",
        freq1_input_in_hwmon="2100000000",
        pp_dpm_mclk="0: 96Mhz \n1: 900Mhz *\n2: 1300Mhz ",
        pwm1_in_hwmon="51",
        pwm1_max_in_hwmon="255",
    )
    (root / "sys/class/drm/renderD128/device/ras").mkdir()
    (root / "sys/class/drm/renderD128/device/ras/umc_err_count").write_text("ue: 2\nce: 11\n")
    process(root, 4711, 1, 2 * 2**30)
    process(root, 900, 2, 2**30)  # of another GPU
    assert SysfsSource(root).read(128) == GpuReading(
        util_percent=41.0,
        vram_used_mb=3072.0,
        vram_free_mb=193536.0,
        vram_total_mb=196608.0,
        temperature_c=47.5,
        power_w=215.0,
        power_limit_w=750.0,
        clock_sm_mhz=2100.0,
        clock_mem_mhz=900.0,
        throttle=None,
        ecc_errors=2,
        fan_percent=20.0,
        by_process={4711: 2048.0},
    )


def test_power_under_its_newer_name_and_figures_that_fail(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, rx_7900(128))
    figures(root, 128, gpu_busy_percent="not a number", power1_input_in_hwmon="36000000")
    assert SysfsSource(root).read(128) == GpuReading(power_w=36.0)


def test_a_card_that_is_gone_has_no_figures(tmp_path: Path) -> None:
    assert SysfsSource(tmp_path).read(128) == GpuReading(reason="the driver does not show it")
