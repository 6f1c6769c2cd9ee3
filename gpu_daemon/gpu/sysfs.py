"""AMD GPUs as the amdgpu driver shows them in sysfs: no library to install, nothing that torch has to be loaded for."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_daemon.gpu.reading import MIB, GpuReading

TOPOLOGY = Path("sys/class/kfd/kfd/topology/nodes")
PROCESSES = Path("sys/class/kfd/kfd/proc")
COMPUTE_DEVICE = Path("dev/kfd")
BDF = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
LEVEL = re.compile(r"(?i)(\d+)Mhz \*")


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
        """Every field on its own. A part of a card that was divided (CPX and the like) shows next to nothing here."""
        device = self._drm(render_minor)
        if not device.is_dir():
            return GpuReading(reason="the driver does not show it")
        used, total = _number(device / "mem_info_vram_used"), _number(device / "mem_info_vram_total")
        sensors = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "hwmon")
        fan, fan_most = _number(sensors / "pwm1"), _number(sensors / "pwm1_max")
        return GpuReading(
            util_percent=_number(device / "gpu_busy_percent"),
            vram_used_mb=_scaled(used, 1 / MIB),
            vram_free_mb=None if used is None or total is None else (total - used) / MIB,
            vram_total_mb=_scaled(total, 1 / MIB),
            # The edge of the chip, which Instinct cards do not measure; then its hottest place.
            temperature_c=_scaled(_first_number(sensors / "temp1_input", sensors / "temp2_input"), 1e-3),
            power_w=_scaled(_first_number(sensors / "power1_average", sensors / "power1_input"), 1e-6),
            power_limit_w=_scaled(_number(sensors / "power1_cap"), 1e-6),
            clock_sm_mhz=_clock_mhz(sensors / "freq1_input", device / "pp_dpm_sclk"),
            clock_mem_mhz=_clock_mhz(sensors / "freq2_input", device / "pp_dpm_mclk"),
            ecc_errors=_uncorrected(device / "ras/umc_err_count"),
            fan_percent=None if fan is None or not fan_most else 100 * fan / fan_most,
            by_process=self._by_process(render_minor),
        )

    def bdf(self, render_minor: int) -> str | None:
        """Where the card is on the bus, `0000:c1:00.0`; None: a part of a card that was divided."""
        name = self._drm(render_minor).resolve().name
        return name if BDF.fullmatch(name) else None

    def _by_process(self, render_minor: int) -> dict[int, float | None] | None:
        gpu_id = self._gpu_id(render_minor)
        try:
            processes = list((self._root / PROCESSES).iterdir())
        except OSError:
            return None
        if gpu_id is None:
            return None
        used = {process.name: _number(process / f"vram_{gpu_id}") for process in processes}
        return {int(pid): size / MIB for pid, size in used.items() if size is not None and pid.isdigit()}

    def _gpu_id(self, render_minor: int) -> int | None:
        for node in (self._root / TOPOLOGY).glob("*"):
            try:
                properties = _properties((node / "properties").read_text())
            except OSError:
                continue
            if properties.get("drm_render_minor") == render_minor:
                number = _number(node / "gpu_id")
                return None if not number else int(number)
        return None

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


def _first_number(*paths: Path) -> float | None:
    return next((number for path in paths if (number := _number(path)) is not None), None)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _clock_mhz(hertz: Path, levels: Path) -> float | None:
    """Levels are lines like `1: 2100Mhz *`; the star is at the present one."""
    measured = _number(hertz)
    if measured is not None:
        return measured / 1e6
    try:
        found = LEVEL.search(levels.read_text())
    except (OSError, ValueError):
        return None
    return None if found is None else float(found[1])


def _uncorrected(path: Path) -> int | None:
    """Lines `ue: 0` and `ce: 0`."""
    try:
        found = re.search(r"^ue: (\d+)", path.read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return None if found is None else int(found[1])
