"""The real engine, in whose first runner a kernel goes astray: GPU_DAEMON_ENGINE=tests.gpu.faulty_engine:create.

The runner that makes the file FAULTY of the environment is the one; those that find it are sound.
"""

import os
from pathlib import Path

import torch

from gpu_daemon.engine import transcribe
from gpu_daemon.engine.batch import Batch

AFTER_STEPS = 5


def create(device: str, vram_reserve_mb: int) -> transcribe.WhisperEngine:
    engine = transcribe.create(device, vram_reserve_mb)  # whose self-test is sound
    try:
        Path(os.environ["FAULTY"]).touch(exist_ok=False)
    except FileExistsError:
        return engine
    step, left = Batch.step, AFTER_STEPS

    def spoilt(batch: Batch) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            read_astray(device)
        step(batch)

    Batch.step = spoilt  # type: ignore[assignment, method-assign]
    return engine


def read_astray(device: str) -> None:
    """Launched and not waited for: some later call gets the error, as it is with a bug in a kernel."""
    if device == "cpu":
        raise RuntimeError("CUDA error: device-side assert triggered")
    far = torch.full((1,), 1 << 40, device="cuda")
    torch.zeros(8, device="cuda").index_select(0, far)
