"""torch is looked at in a process of its own: its import takes seconds, and a sick driver may hang it."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from gpu_daemon.doctor.finding import Finding, bad, good, note
from gpu_daemon.gpu.detect import Device

TIMEOUT_S = 90.0
INSTALL = "pip install -r requirements-cuda.txt (right without a GPU too; for AMD: make TORCH=rocm venv)"
PROBE = """
import ctypes, importlib.util, json
driver_cuda = None
try:
    version = ctypes.c_int()
    if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
        driver_cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
except OSError:
    pass
import torch
cuda, version = torch.cuda, torch.version
gpus = range(cuda.device_count() if cuda.is_available() else 0)
print(json.dumps({
    "version": torch.__version__,
    "built_for": f"ROCm {version.hip}" if version.hip else f"CUDA {version.cuda}" if version.cuda else "CPUs",
    "driver_cuda": driver_cuda,
    "gpus": [cuda.get_device_name(i) for i in gpus],
    "architectures": cuda.get_arch_list() if gpus else [],
    "capabilities": ["%d%d" % cuda.get_device_capability(i) for i in gpus],
    "whisper": importlib.util.find_spec("whisper") is not None,
}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Torch:
    version: str
    built_for: str
    driver_cuda: str | None
    """The newest CUDA that the NVIDIA driver can run."""
    gpus: list[str]
    architectures: list[str]
    capabilities: list[str]
    """Of each GPU, as `90`."""
    whisper: bool


class TorchBroken(Exception):
    """The message is the last it said."""


async def probe_torch() -> Torch:
    """Raises TorchBroken."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", PROBE),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise TorchBroken(f"importing it did not end within {TIMEOUT_S:.0f} s: the GPU's driver hangs") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise TorchBroken(lines[-1] if lines else f"importing it ended with status {process.returncode}")
    said: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
    return Torch(**said)


def judge_torch(torch: Torch, devices: tuple[Device, ...]) -> Finding:
    """`devices`: what the daemon would work on (pure)."""
    what = f"{torch.version}, made for {torch.built_for}"
    wanted = [device for device in devices if device.kind != "cpu"]
    if not torch.whisper:
        return bad("torch", f"{what}, but openai-whisper is not installed", INSTALL)
    if wanted and not torch.gpus:
        behind = f"; the driver's newest is CUDA {torch.driver_cuda}" if torch.driver_cuda else ""
        return bad(
            "torch",
            f"{what}, sees no GPU although there is {wanted[0].name}{behind}",
            "update the GPU's driver, install the torch made for it, or set DEVICES=cpu",
        )
    for name, capability in zip(torch.gpus, torch.capabilities, strict=True):
        if torch.built_for.startswith("CUDA") and not _runs(capability, torch.architectures):
            return bad(
                "torch",
                f"{what}, has no code for {name} (sm_{capability})",
                "install a torch made for an older CUDA, or set DEVICES=cpu",
            )
    if torch.gpus and not wanted:
        return note("torch", f"{what}, sees {torch.gpus[0]}, but DEVICES leaves it out")
    return good("torch", what)


def _runs(capability: str, architectures: list[str]) -> bool:
    """Code for sm_80 also runs on 8.6 and 8.9: later minor versions of the same major one. No list: not known."""
    made_for = [one.removeprefix("sm_").rstrip("af") for one in architectures if one.startswith("sm_")]
    return not made_for or any(one[:-1] == capability[:-1] and int(one) <= int(capability) for one in made_for)
