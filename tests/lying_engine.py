"""The real engine on devices of which one can compute: GPU_DAEMON_ENGINE=tests.lying_engine:create.

The first runner that makes the file HONEST of the environment is sound; those that find it compute nonsense.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F

from gpu_daemon.engine import transcribe

attention = F.scaled_dot_product_attention


def create(device: str, vram_reserve_mb: int) -> transcribe.WhisperEngine:
    try:
        Path(os.environ["HONEST"]).touch(exist_ok=False)
    except FileExistsError:
        F.scaled_dot_product_attention = scrambled  # type: ignore[assignment]  # called like it
    return transcribe.create(device, vram_reserve_mb)


def scrambled(*given: torch.Tensor, **options: object) -> torch.Tensor:
    """What a kernel made for another GPU may do: the heads change places."""
    return attention(*given, **options).flip(1)  # type: ignore[arg-type]
