"""Where there is speech: silero-vad 6, computed for many frames at once.

Only its LSTM looks back. What comes before is the same for every frame, so that a block of frames goes through it as a
batch, and the LSTM takes the block in one call: the probabilities are those of the model as it is published, frame by
frame, without its loop in Python, some twenty times as fast. The package itself is never imported: that would set
torch to one thread.
"""

import importlib.util
import warnings
from collections.abc import Generator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gpu_daemon.engine.base import Samples
from gpu_daemon.engine.clips import Plan, Span, accurate, fast, whole
from gpu_daemon.engine.level import as_floats
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions, Mode

FRAME_SAMPLES = 512
CONTEXT_SAMPLES = 64
"""Of the frame before."""
N_BINS = 129
BLOCK_FRAMES = 512
"""16 s, a few milliseconds of work: larger blocks leave the cache, and are slower."""

# silero-vad's own defaults.
THRESHOLD = 0.5
LEAVE_THRESHOLD = 0.35
MIN_SPEECH_SAMPLES = 250 * SAMPLE_RATE_HZ // 1000
MIN_SILENCE_SAMPLES = 100 * SAMPLE_RATE_HZ // 1000
PAD_SAMPLES = 30 * SAMPLE_RATE_HZ // 1000


class VoiceDetector:
    """On the CPU, in the thread that calls it."""

    def __init__(self) -> None:
        weights = _weights()
        self._spectrum = weights["stft.forward_basis_buffer"]  # float32[2 * N_BINS, 1, 256]
        self._layers = [
            (weights[f"encoder.{n}.reparam_conv.weight"], weights[f"encoder.{n}.reparam_conv.bias"], stride)
            for n, stride in enumerate((1, 2, 2, 1))
        ]
        self._out_weight = weights["decoder.decoder.2.weight"].squeeze(-1)  # float32[1, 128]
        self._out_bias = weights["decoder.decoder.2.bias"]
        self._memory = torch.nn.LSTM(128, 128)
        self._memory.requires_grad_(False)
        for name, parameter in self._memory.named_parameters():
            parameter.copy_(weights[f"decoder.rnn.{name.removesuffix('_l0')}"])

    def probabilities(self, audio: Samples) -> Generator[float, None, list[float]]:
        """Of speech, for each frame of 512 samples. Yields the fraction done, some fifty times a second."""
        found: list[float] = []
        state: tuple[torch.Tensor, torch.Tensor] | None = None
        n_frames = -(-len(audio) // FRAME_SAMPLES)
        for first in range(0, n_frames, BLOCK_FRAMES):
            block = _block(audio, first, min(BLOCK_FRAMES, n_frames - first))
            with torch.inference_mode():
                said, state = self._heard(block, state)
            found += said.tolist()
            yield len(found) / n_frames
        return found

    def _heard(
        self, frames: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """`frames`: float32[n_frames, 576]; the answer: float32[n_frames], and what the next block is to be given."""
        x = F.pad(frames, (0, CONTEXT_SAMPLES), mode="reflect").unsqueeze(1)
        x = F.conv1d(x, self._spectrum, stride=128)  # float32[n_frames, 2 * N_BINS, 4]
        x = (x[:, :N_BINS] ** 2 + x[:, N_BINS:] ** 2).sqrt()
        for weight, bias, stride in self._layers:
            x = F.relu(F.conv1d(x, weight, bias, stride=stride, padding=1))
        x, state = self._memory(x.transpose(1, 2), state)  # float32[n_frames, 1, 128]: a sequence of batch 1
        return torch.sigmoid(F.linear(F.relu(x), self._out_weight, self._out_bias)).flatten(), state


def plan(detector: VoiceDetector, audio: Samples, options: JobOptions) -> Generator[float, None, Plan]:
    """What is decoded of a file. Yields the fraction done of looking for it."""
    if not options.speech_only:
        return whole(len(audio))
    speech = spans((yield from detector.probabilities(audio)), len(audio))
    return fast(speech, audio) if options.mode is Mode.FAST else accurate(speech, len(audio))


def spans(probabilities: Sequence[float], n_samples: int) -> tuple[Span, ...]:
    """As silero-vad's `get_speech_timestamps` makes them of the same probabilities."""
    return tuple(
        Span(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ)
        for start, end in _padded(_speech(probabilities, n_samples), n_samples)
    )


def _speech(probabilities: Sequence[float], n_samples: int) -> list[list[int]]:
    """Start and end in samples."""
    found: list[list[int]] = []
    start: int | None = None
    quiet_since: int | None = None
    for number, probability in enumerate(probabilities):
        now = FRAME_SAMPLES * number
        if probability >= THRESHOLD:
            quiet_since = None
            start = now if start is None else start
        elif start is not None and probability < LEAVE_THRESHOLD:
            quiet_since = now if quiet_since is None else quiet_since
            if now - quiet_since >= MIN_SILENCE_SAMPLES:
                if quiet_since - start > MIN_SPEECH_SAMPLES:
                    found.append([start, quiet_since])
                start = quiet_since = None
    if start is not None and n_samples - start > MIN_SPEECH_SAMPLES:
        found.append([start, n_samples])
    return found


def _padded(found: list[list[int]], n_samples: int) -> list[list[int]]:
    """Where there is no room for two margins, each gets half."""
    padded = [list(span) for span in found]
    for before, after in pairwise(padded):
        margin = min(PAD_SAMPLES, (after[0] - before[1]) // 2)
        before[1] += margin
        after[0] -= margin
    if padded:
        padded[0][0] = max(0, padded[0][0] - PAD_SAMPLES)
        padded[-1][1] = min(n_samples, padded[-1][1] + PAD_SAMPLES)
    return padded


def _block(audio: Samples, first: int, n_frames: int) -> torch.Tensor:
    """float32[n_frames, 576]: frames, each behind the end of the one before; zeros stand before and after the file."""
    block = np.zeros(CONTEXT_SAMPLES + n_frames * FRAME_SAMPLES, np.float32)
    start = first * FRAME_SAMPLES - CONTEXT_SAMPLES
    samples = as_floats(audio[max(0, start) : (first + n_frames) * FRAME_SAMPLES])
    offset = max(0, -start)
    block[offset : offset + len(samples)] = samples
    return torch.from_numpy(block).unfold(0, CONTEXT_SAMPLES + FRAME_SAMPLES, FRAME_SAMPLES)


def _weights() -> dict[str, torch.Tensor]:
    """Those for 16 kHz. (The wheel's safetensors hold an older network.)"""
    package = importlib.util.find_spec("silero_vad")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("silero-vad is not installed", name="silero_vad")
    path = Path(package.origin).parent / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have its newer format
        model = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]  # torch is half typed
    prefix = "_model."
    return {
        name.removeprefix(prefix): tensor.detach()
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
