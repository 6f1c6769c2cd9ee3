"""AMD GPUs as the amdgpu driver shows them in sysfs: no library to install, nothing that torch has to be loaded for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_daemon.gpu.reading import MIB, GpuReading

TOPOLOGY = Path("sys/class/kfd/kfd/topology/nodes")
COMPUTE_DEVICE = Path("dev/kfd")


@dataclass(frozen=True, slots=True)
class AmdGpu:
    name: str
    uuid: str | None
    """`GPU-` and 16 hex digits as ROCR_VISIBLE_DEVICES takes it; None: the card has no number of its own."""
    render_minor: int


class SysfsSource:
    """`root` is `/`; tests make a tree elsewhere."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def gpus(self) -> tuple[AmdGpu, ...]:
        """In the order of ROCm, which is that of the KFD topology. Empty where there is no amdgpu driver."""
        try:
            nodes = sorted((self._root / TOPOLOGY).iterdir(), key=lambda node: int(node.name))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        found = (self._gpu(node) for node in nodes)
        return tuple(gpu for gpu in found if gpu is not None)

    def may_compute(self) -> bool:
        """Whether this process may open the compute device; in containers it is often left out."""
        return os.access(self._root / COMPUTE_DEVICE, os.R_OK | os.W_OK)

    def read(self, render_minor: int) -> GpuReading:
        device = self._drm(render_minor)
        used, total = _number(device / "mem_info_vram_used"), _number(device / "mem_info_vram_total")
        sensors = next(iter(sorted(device.glob("hwmon/hwmon*"))), None)
        millidegrees = microwatts = None
        if sensors is not None:
            millidegrees = _number(sensors / "temp1_input")
            microwatts = _number(sensors / "power1_average")
            if microwatts is None:  # newer cards call it so
                microwatts = _number(sensors / "power1_input")
        return GpuReading(
            util_percent=_number(device / "gpu_busy_percent"),
            vram_used_mb=None if used is None else used / MIB,
            vram_total_mb=None if total is None else total / MIB,
            temperature_c=None if millidegrees is None else millidegrees / 1e3,
            power_w=None if microwatts is None else microwatts / 1e6,
        )

    def _gpu(self, node: Path) -> AmdGpu | None:
        """None for a CPU, and for a GPU that this container was not given: its properties cannot be read."""
        try:
            properties = _properties((node / "properties").read_text())
        except OSError:
            return None
        if not properties.get("simd_count"):
            return None
        render_minor = properties.get("drm_render_minor", 0)
        if not (self._root / f"dev/dri/renderD{render_minor}").exists():
            return None
        unique_id = properties.get("unique_id", 0)
        return AmdGpu(
            name=self._name(render_minor, properties.get("gfx_target_version", 0)),
            uuid=f"GPU-{unique_id:016x}" if unique_id else None,
            render_minor=render_minor,
        )

    def _name(self, render_minor: int, gfx_version: int) -> str:
        try:
            product = (self._drm(render_minor) / "product_name").read_text().strip()
        except OSError:
            product = ""
        # 90402 is 9.4.2, which the tools call gfx942; the last two are hexadecimal (9.0.10 is gfx90a).
        major, minor, step = gfx_version // 10000, gfx_version // 100 % 100, gfx_version % 100
        return product or f"AMD gfx{major}{minor:x}{step:x}"

    def _drm(self, render_minor: int) -> Path:
        return self._root / f"sys/class/drm/renderD{render_minor}/device"


def _properties(text: str) -> Mapping[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
