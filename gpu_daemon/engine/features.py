"""The log-mel spectrogram of a file, window by window, with the peak of the whole file.

The same numbers as `whisper.log_mel_spectrogram(audio, padding=30 s)`, which makes it in one piece and keeps it: 1.8 GB
for four hours. A frame depends on 400 samples only, and on the loudest of all frames: two passes, and nothing to keep.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, mel_filters

from gpu_daemon.engine.base import Samples
from gpu_daemon.engine.copies import sent
from gpu_daemon.engine.level import FULL_SCALE

FLOOR = 1e-10
RANGE = 8.0
"""Nothing is quieter than the peak by more: powers of ten."""
OVERLAP_FRAMES = 3
"""So many frames of the silence behind the audio still hear its end."""
PIECE_FRAMES = 6000


class Mel:
    def __init__(self, audio: Samples, n_mels: int, device: torch.device) -> None:
        self._audio = audio
        self._device = device
        self._filters = mel_filters(device, n_mels)
        self._hann = torch.hann_window(N_FFT, device=device)
        self._peak: Tensor | None = None
        self.n_frames = len(audio) // HOP_LENGTH
        """Of the audio itself, 10 ms each; the 30 s of silence behind it come on top."""

    def measure(self) -> Iterator[None]:
        """Finds the peak, with a pause after each minute of audio; to be exhausted before the first `frames`."""
        peak = torch.full((), FLOOR, device=self._device)
        n_heard = self.n_frames + OVERLAP_FRAMES
        for start in range(0, n_heard, PIECE_FRAMES):
            peak = torch.maximum(peak, self._powers(start, min(start + PIECE_FRAMES, n_heard)).max())
            yield
        self._peak = peak.log10()

    def frames(self, start: int, end: int) -> Tensor:
        """float32[n_mels, 3000]; zeros after `end`, as whisper's windows have (not silence)."""
        assert self._peak is not None
        log_powers = torch.maximum(self._powers(start, end).log10(), self._peak - RANGE)
        return F.pad((log_powers + 4.0) / 4.0, (0, N_FRAMES - (end - start)))

    def _powers(self, start: int, end: int) -> Tensor:
        """float32[n_mels, end - start]"""
        first, last = start * HOP_LENGTH - N_FFT // 2, (end - 1) * HOP_LENGTH + N_FFT // 2
        spectrum = torch.stft(
            self._samples(first, last), N_FFT, HOP_LENGTH, window=self._hann, center=False, return_complex=True
        )
        powers: Tensor = self._filters @ (spectrum.abs() ** 2)
        return powers.clamp(min=FLOOR)

    def _samples(self, first: int, last: int) -> Tensor:
        """float32[last - first] of the audio with silence behind it; mirrored at its start, as torch.stft does.

        What was decoded goes to the device as it is, which is half as much.
        """
        samples = np.zeros(last - first, self._audio.dtype)
        mirrored = self._audio[1 : 1 + max(0, -first)][::-1]
        heard = self._audio[max(0, first) : last]
        n_before = max(0, -first)
        samples[n_before - len(mirrored) : n_before] = mirrored
        samples[n_before : n_before + len(heard)] = heard
        there = sent(torch.from_numpy(samples), self._device)
        return there.float() / FULL_SCALE if samples.dtype == np.int16 else there.float()
