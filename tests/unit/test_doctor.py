import pytest

from gpu_daemon.doctor.engine import Torch, judge_torch
from gpu_daemon.doctor.finding import Verdict
from gpu_daemon.doctor.machine import check_python
from gpu_daemon.gpu.detect import Device

CPU = Device(kind="cpu", index=0, name="a processor", uuid=None)
GPU = Device(kind="cuda", index=0, name="NVIDIA H200", uuid="GPU-1")
AMD = Device(kind="rocm", index=0, name="AMD Instinct MI300X", uuid=None)


def torch(
    *,
    built_for: str = "CUDA 13.0",
    driver_cuda: str | None = None,
    gpus: tuple[str, ...] = (),
    architectures: tuple[str, ...] = (),
    capabilities: tuple[str, ...] = (),
    whisper: bool = True,
) -> Torch:
    return Torch(
        version="2.11.0",
        built_for=built_for,
        driver_cuda=driver_cuda,
        gpus=list(gpus),
        architectures=list(architectures),
        capabilities=list(capabilities),
        whisper=whisper,
    )


def hopper(*architectures: str) -> Torch:
    return torch(gpus=("NVIDIA H200",), architectures=architectures, capabilities=("90",))


@pytest.mark.parametrize(
    ("found", "devices", "verdict", "said"),
    [
        (torch(), (CPU,), Verdict.GOOD, "2.11.0, made for CUDA 13.0"),
        (torch(whisper=False), (CPU,), Verdict.BAD, "openai-whisper is not installed"),
        (hopper("sm_80", "sm_90"), (GPU,), Verdict.GOOD, "2.11.0"),
        (hopper("sm_90a", "compute_120"), (GPU,), Verdict.GOOD, "2.11.0"),
        (hopper("sm_80", "sm_100"), (GPU,), Verdict.BAD, "no code for NVIDIA H200 (sm_90)"),
        (hopper(), (GPU,), Verdict.GOOD, "2.11.0"),
        (hopper("sm_90"), (CPU,), Verdict.NOTE, "sees NVIDIA H200, but DEVICES leaves it out"),
        (
            torch(driver_cuda="12.4"),
            (GPU,),
            Verdict.BAD,
            "there is NVIDIA H200; the driver's newest is CUDA 12.4",
        ),
        (torch(), (AMD,), Verdict.BAD, "sees no GPU although there is AMD Instinct MI300X"),
        (
            torch(built_for="ROCm 7.2", gpus=("AMD Instinct MI300X",), architectures=("gfx942",), capabilities=("94",)),
            (AMD,),
            Verdict.GOOD,
            "made for ROCm 7.2",
        ),
    ],
)
def test_torch_and_the_driver_in_words(found: Torch, devices: tuple[Device, ...], verdict: Verdict, said: str) -> None:
    finding = judge_torch(found, devices)
    assert finding.verdict is verdict
    assert said in finding.message
    assert (finding.fix is not None) == (verdict is Verdict.BAD)


def test_code_for_an_older_card_of_the_same_generation_runs() -> None:
    ada = torch(gpus=("NVIDIA L4",), architectures=("sm_80", "sm_90"), capabilities=("89",))
    assert judge_torch(ada, (GPU,)).verdict is Verdict.GOOD


@pytest.mark.parametrize(
    ("version", "verdict"),
    [((3, 10), Verdict.BAD), ((3, 11), Verdict.GOOD), ((3, 13), Verdict.GOOD), ((3, 14), Verdict.BAD)],
)
def test_the_pythons_that_the_packages_are_made_for(version: tuple[int, int], verdict: Verdict) -> None:
    assert check_python(version).verdict is verdict
