"""Which devices the daemon works on."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar

import pynvml

from gpu_daemon.errors import StartupError
from gpu_daemon.gpu.driver_call import DriverHangs, driver_call
from gpu_daemon.gpu.nvml import NvidiaGpu, NvmlModule, NvmlSource, NvmlUnusable
from gpu_daemon.gpu.sysfs import AmdGpu, SysfsSource
from gpu_daemon.logs import log

DRIVER_TIMEOUT_S = 15.0  # a cold driver without persistence mode needs several seconds for each card
ON_THE_CPU = "set DEVICES=cpu to work without a GPU"
WANTED = re.compile(r"cpu|cuda(?::(\d+))?")
Gpu = TypeVar("Gpu", NvidiaGpu, AmdGpu)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    kind: Literal["cpu", "cuda", "rocm"]
    index: int
    """As DEVICES counts: the N of cuda:N; for a CPU, which of its workers."""
    name: str
    uuid: str | None
    rocm_ordinal: int | None = None
    """What HIP_VISIBLE_DEVICES calls it, which the operator's own ROCR_VISIBLE_DEVICES shifts."""
    render_minor: int | None = None
    """The N of an AMD GPU's /dev/dri/renderDN."""

    def environment(self) -> dict[str, str]:
        """What shows a child process this device and no other; it must be set before torch is imported."""
        if self.kind == "cuda":
            return {"CUDA_VISIBLE_DEVICES": self.uuid or str(self.index), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if self.kind == "rocm":
            # HIP listens to both names, and versions differ in which one wins.
            ordinal = str(self.index if self.rocm_ordinal is None else self.rocm_ordinal)
            return {"HIP_VISIBLE_DEVICES": ordinal, "CUDA_VISIBLE_DEVICES": ordinal}
        # An empty mask hides every GPU from CUDA, but HIP may take it for no mask at all.
        return {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}


def _torch_version() -> str | None:
    """From the package's metadata: the daemon itself never imports torch."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What detection looks at; tests bring another."""

    nvml: NvmlModule = pynvml
    root: Path = Path("/")
    torch_version: str | None = field(default_factory=_torch_version)
    masks: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """The operator's own CUDA_VISIBLE_DEVICES and the like, meant for the drivers: what they hide stays hidden."""
    driver_timeout_s: float = DRIVER_TIMEOUT_S

    @property
    def torch_kind(self) -> Literal["cpu", "cuda", "rocm"] | None:
        """What the installed torch was built for; None: there is no torch, so it rules nothing out."""
        if self.torch_version is None:
            return None
        local = self.torch_version.partition("+")[2]
        return "cpu" if local.startswith("cpu") else "rocm" if local.startswith("rocm") else "cuda"


async def detect(wanted: tuple[str, ...], machine: Machine | None = None) -> tuple[Device, ...]:
    """The devices that DEVICES names, in its order. `auto`: every NVIDIA GPU, else every AMD GPU, else one CPU.

    Raises StartupError naming DEVICES, and when the NVIDIA driver hangs. Touches no driver when only CPUs are wanted.
    """
    for name in wanted:
        if name != "auto" and WANTED.fullmatch(name) is None:
            raise StartupError(f"DEVICES: {name!r} is no device; say auto, cpu or cuda:N, for example cuda:0,cuda:1")
    automatic = wanted == ("auto",)
    gpus: tuple[Device, ...] = ()
    if any(name != "cpu" for name in wanted):
        gpus = await _gpus(machine or Machine(), automatic=automatic)
    if automatic:
        return gpus or (_cpu(0),)
    cpus = 0
    devices = []
    for name in wanted:
        if name == "cpu":
            devices.append(_cpu(cpus))
            cpus += 1
        else:
            devices.append(_named(name, gpus))
    return tuple(devices)


def _named(name: str, gpus: Sequence[Device]) -> Device:
    match = WANTED.fullmatch(name)
    index = int(match[1] or 0) if match else 0
    if index < len(gpus):
        return gpus[index]
    present = ", ".join(f"cuda:{gpu.index} {gpu.name}" for gpu in gpus) or "no GPU"
    raise StartupError(f"DEVICES: {name} is not there; this machine has {present}; {ON_THE_CPU}")


async def _gpus(machine: Machine, *, automatic: bool) -> tuple[Device, ...]:
    """Those that the installed torch can use. With `automatic`, what keeps a GPU from being used is only a warning."""
    reasons: list[str] = []
    nvidia = await _nvidia(machine, reasons)
    amd = _amd(machine, reasons)
    usable = {"cuda": nvidia, "rocm": amd, "cpu": ()}.get(machine.torch_kind or "", nvidia or amd)
    if not usable and (nvidia or amd):
        reasons.append(
            f"the installed torch {machine.torch_version} cannot use {(nvidia or amd)[0].name}; "
            f"install the torch made for it (requirements-{'cuda' if nvidia else 'rocm'}.txt)"
        )
    if reasons and not usable:
        if not automatic:
            raise StartupError(f"DEVICES: {'; '.join(reasons)}; {ON_THE_CPU}")
        log.warning("gpu.unusable", reason="; ".join(reasons))
    return usable


async def _nvidia(machine: Machine, reasons: list[str]) -> tuple[Device, ...]:
    source = NvmlSource(machine.nvml)
    try:
        found = await driver_call(source.gpus, timeout_s=machine.driver_timeout_s)
    except DriverHangs as error:
        raise StartupError(
            f"the NVIDIA driver hangs: it did not answer within {machine.driver_timeout_s:g} s "
            f"(does nvidia-smi answer?); restart the machine, or {ON_THE_CPU}"
        ) from error
    except NvmlUnusable as error:
        reasons.append(f"the NVIDIA driver does not work: {error}")
        return ()
    seen = _visible(found, machine.masks.get("CUDA_VISIBLE_DEVICES"))
    return tuple(Device(kind="cuda", index=index, name=gpu.name, uuid=gpu.uuid) for index, gpu in enumerate(seen))


def _amd(machine: Machine, reasons: list[str]) -> tuple[Device, ...]:
    source, masks = SysfsSource(machine.root), machine.masks
    runtime = _visible(source.gpus(), masks.get("ROCR_VISIBLE_DEVICES"))
    if runtime and not source.may_compute():
        reasons.append("/dev/kfd cannot be opened: the daemon's user must be in the group render (see ls -l /dev/kfd)")
        return ()
    ordinals = {gpu.render_minor: ordinal for ordinal, gpu in enumerate(runtime)}
    seen = _visible(runtime, masks.get("HIP_VISIBLE_DEVICES", masks.get("CUDA_VISIBLE_DEVICES")))
    return tuple(
        Device(
            kind="rocm",
            index=index,
            name=gpu.name,
            uuid=gpu.uuid,
            rocm_ordinal=ordinals[gpu.render_minor],
            render_minor=gpu.render_minor,
        )
        for index, gpu in enumerate(seen)
    )


def _visible(gpus: Sequence[Gpu], mask: str | None) -> tuple[Gpu, ...]:
    """As the runtimes read a mask: numbers or (beginnings of) UUIDs; the first that fits nothing ends the list."""
    if mask is None:
        return tuple(gpus)
    seen: list[Gpu] = []
    for part in (part.strip() for part in mask.split(",")):
        if part.isdigit():
            fitting = [gpus[int(part)]] if int(part) < len(gpus) else []
        else:
            fitting = [gpu for gpu in gpus if part and gpu.uuid is not None and gpu.uuid.startswith(part)]
        if len(fitting) != 1 or fitting[0] in seen:
            break
        seen.append(fitting[0])
    return tuple(seen)


def _cpu(index: int) -> Device:
    return Device(kind="cpu", index=index, name=_cpu_name(), uuid=None)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
