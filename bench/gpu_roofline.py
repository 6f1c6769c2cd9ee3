"""What a device could do at best: operations over its rate, bytes over its bandwidth (pure but for `measured`)."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from whisper.model import ModelDimensions

BYTES = 2
"""float16"""
WINDOW_S = 30.0
MEL_FRAMES = 3000


@dataclass(frozen=True, slots=True)
class Rates:
    flop_per_s: float
    bytes_per_s: float


H200 = Rates(790e12, 4.3e12)
"""As measured once with torch: a product of two 8192 x 8192 matrices, and a copy, counting what is read and written."""


@dataclass(frozen=True, slots=True)
class Roofline:
    dims: ModelDimensions

    @property
    def encoder_flop(self) -> float:
        """Of a window, with the keys and values that the decoder makes of it."""
        d, t, dims = self.dims.n_audio_state, self.dims.n_audio_ctx, self.dims
        convolutions = 6 * d * (MEL_FRAMES * dims.n_mels + t * d)
        layer = 24 * d * d * t + 4 * t * t * d
        keys_and_values = 4 * t * dims.n_text_state**2 * dims.n_text_layer
        return float(convolutions + dims.n_audio_layer * layer + keys_and_values)

    @property
    def weight_bytes(self) -> float:
        """That a step reads, however many rows it has."""
        d, dims = self.dims.n_text_state, self.dims
        return float(BYTES * (14 * d * d * dims.n_text_layer + dims.n_vocab * d))

    def row_bytes(self, n_past: float) -> float:
        """That a step reads for each row: keys and values of the audio, and of the tokens before."""
        return float(BYTES * 2 * self.dims.n_text_layer * self.dims.n_text_state * (self.dims.n_audio_ctx + n_past))

    def encoder_ms(self, rates: Rates) -> float:
        return 1000 * self.encoder_flop / rates.flop_per_s

    def step_ms(self, rates: Rates, rows: int, n_past: float) -> float:
        return 1000 * (self.weight_bytes + rows * self.row_bytes(n_past)) / rates.bytes_per_s

    def real_time_factor(self, rates: Rates, rows: int, n_tokens: int) -> float:
        """Windows encoded and decoded one after the other, as on one stream."""
        ms = self.encoder_ms(rates) + n_tokens * self.step_ms(rates, rows, n_tokens / 2) / rows
        return 1000 * WINDOW_S / ms


def measured(device: torch.device) -> Rates:
    """Of this device, with random numbers: zeros are computed faster."""
    n, dtype = (8192, torch.float16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(2 << (30 if device.type == "cuda" else 22), device=device, dtype=dtype)
    target = torch.empty_like(source)
    product_s = timed(lambda: torch.mm(a, b), device)
    copy_s = timed(lambda: target.copy_(source), device)
    return Rates(2 * n**3 / product_s, 2 * source.numel() * source.element_size() / copy_s)


def timed(work: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Seconds of one, the mean of some after three that do not count; on a CPU of one."""
    times = times if device.type == "cuda" else 1
    for _ in range(3 if device.type == "cuda" else 0):
        work()
    wait(device)
    began_s = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - began_s) / times


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
