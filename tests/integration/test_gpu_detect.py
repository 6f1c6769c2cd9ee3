from pathlib import Path
from typing import Any

import pytest
import structlog

from gpu_daemon.errors import StartupError
from gpu_daemon.gpu.detect import Device, Machine, detect
from tests import fake_nvml
from tests.amdgpu_tree import amdgpu_tree, mi300x, rx_7900
from tests.fake_nvml import FakeNvml, rtx_4090


def machine(
    root: Path, *cards: fake_nvml.Card, torch: str | None = "2.11.0", broken: Any = None, **masks: str
) -> Machine:
    return Machine(nvml=FakeNvml(list(cards), broken=broken), root=root, torch_version=torch, masks=masks)


async def test_auto_takes_every_nvidia_gpu(tmp_path: Path) -> None:
    devices = await detect(("auto",), machine(tmp_path, rtx_4090(0), rtx_4090(1)))
    assert devices == (
        Device(kind="cuda", index=0, name="NVIDIA GeForce RTX 4090", uuid=rtx_4090(0).uuid),
        Device(kind="cuda", index=1, name="NVIDIA GeForce RTX 4090", uuid=rtx_4090(1).uuid),
    )
    assert devices[1].environment()["CUDA_VISIBLE_DEVICES"] == rtx_4090(1).uuid


async def test_auto_takes_every_amd_gpu_where_torch_is_for_rocm(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128), rx_7900(129))
    devices = await detect(("auto",), machine(root, torch="2.11.0+rocm7.2"))
    assert [(device.kind, device.index, device.name) for device in devices] == [
        ("rocm", 0, "AMD gfx942"),
        ("rocm", 1, "AMD gfx1100"),
    ]
    assert devices[1].environment() == {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}


async def test_auto_is_one_cpu_where_there_is_no_gpu(tmp_path: Path) -> None:
    (device,) = await detect(("auto",), machine(tmp_path, broken=fake_nvml.NVMLError_LibraryNotFound))
    assert (device.kind, device.index, device.uuid) == ("cpu", 0, None)
    assert device.name
    assert device.environment()["CUDA_VISIBLE_DEVICES"] == ""


async def test_two_cpus(tmp_path: Path) -> None:
    devices = await detect(("cpu", "cpu"), machine(tmp_path))
    assert [(device.kind, device.index) for device in devices] == [("cpu", 0), ("cpu", 1)]


async def test_devices_in_the_order_they_are_named(tmp_path: Path) -> None:
    devices = await detect(("cuda:1", "cpu", "cuda:0"), machine(tmp_path, rtx_4090(0), rtx_4090(1)))
    assert [(device.kind, device.index) for device in devices] == [("cuda", 1), ("cpu", 0), ("cuda", 0)]


async def test_cuda_names_an_amd_gpu_too(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128), rx_7900(129))
    (device,) = await detect(("cuda:1",), machine(root, torch="2.11.0+rocm7.2"))
    assert (device.kind, device.index, device.render_minor) == ("rocm", 1, 129)


async def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"DEVICES: cuda:1 is not there; this machine has cuda:0 NVIDIA GeForce"):
        await detect(("cuda:1",), machine(tmp_path, rtx_4090()))
    with pytest.raises(StartupError, match=r"DEVICES: cuda:0 is not there; this machine has no GPU"):
        await detect(("cuda:0",), machine(tmp_path))


@pytest.mark.parametrize("name", ["gpu0", "cuda:x", "cuda:-1", "cpu:1"])
async def test_a_name_that_means_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartupError, match=r"DEVICES: .* is no device"):
        await detect((name,), machine(tmp_path, rtx_4090()))


async def test_what_the_operator_hides_stays_hidden(tmp_path: Path) -> None:
    cards = [rtx_4090(number) for number in range(3)]
    by_number = await detect(("auto",), machine(tmp_path, *cards, CUDA_VISIBLE_DEVICES="2,0"))
    assert [(device.index, device.uuid) for device in by_number] == [(0, cards[2].uuid), (1, cards[0].uuid)]
    by_uuid = await detect(("auto",), machine(tmp_path, *cards, CUDA_VISIBLE_DEVICES=cards[1].uuid))
    assert [device.uuid for device in by_uuid] == [cards[1].uuid]
    cut_short = await detect(("auto",), machine(tmp_path, *cards, CUDA_VISIBLE_DEVICES="1,7,0"))
    assert [device.uuid for device in cut_short] == [cards[1].uuid]
    (none,) = await detect(("auto",), machine(tmp_path, *cards, CUDA_VISIBLE_DEVICES=""))
    assert none.kind == "cpu"


async def test_masks_of_rocm_are_counted_one_inside_the_other(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, rx_7900(128), rx_7900(129), rx_7900(130))
    masks = {"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}
    (device,) = await detect(("auto",), machine(root, torch="2.11.0+rocm7.2", **masks))
    assert (device.index, device.render_minor) == (0, 130)
    assert device.environment()["HIP_VISIBLE_DEVICES"] == "1", "the runner's own view is still shifted by ROCR"


async def test_an_amd_laptop_with_the_default_torch_works_on_the_cpu(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, rx_7900(128))
    looked_at = machine(root, broken=fake_nvml.NVMLError_LibraryNotFound)
    with structlog.testing.capture_logs() as lines:
        (device,) = await detect(("auto",), looked_at)
    assert device.kind == "cpu"
    assert "torch 2.11.0 cannot use AMD gfx1100" in lines[0]["reason"]
    assert "requirements-rocm.txt" in lines[0]["reason"]
    with pytest.raises(StartupError, match=r"DEVICES: the installed torch 2\.11\.0 cannot use AMD gfx1100"):
        await detect(("cuda:0",), looked_at)


async def test_torch_without_cuda_on_a_machine_with_a_gpu(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        (device,) = await detect(("auto",), machine(tmp_path, rtx_4090(), torch="2.11.0+cpu"))
    assert device.kind == "cpu"
    assert "requirements-cuda.txt" in lines[0]["reason"]


async def test_without_torch_nothing_is_ruled_out(tmp_path: Path) -> None:
    (device,) = await detect(("auto",), machine(tmp_path, rtx_4090(), torch=None))
    assert device.kind == "cuda"


async def test_a_compute_device_that_may_not_be_opened(tmp_path: Path) -> None:
    root = amdgpu_tree(tmp_path, mi300x(128), with_kfd=False)
    looked_at = machine(root, torch="2.11.0+rocm7.2")
    with pytest.raises(StartupError, match=r"DEVICES: /dev/kfd cannot be opened.*render"):
        await detect(("cuda:0",), looked_at)
    with structlog.testing.capture_logs() as lines:
        (device,) = await detect(("auto",), looked_at)
    assert device.kind == "cpu"
    assert lines[0]["event"] == "gpu.unusable"


async def test_a_driver_that_does_not_work(tmp_path: Path) -> None:
    looked_at = machine(tmp_path, rtx_4090(), broken=fake_nvml.NVMLError_LibRmVersionMismatch)
    with structlog.testing.capture_logs() as lines:
        (device,) = await detect(("auto",), looked_at)
    assert device.kind == "cpu"
    assert "the NVIDIA driver does not work" in lines[0]["reason"]
    with pytest.raises(StartupError, match=r"DEVICES: the NVIDIA driver does not work"):
        await detect(("cuda:0",), looked_at)
