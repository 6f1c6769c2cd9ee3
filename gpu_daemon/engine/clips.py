"""Which parts of a file are decoded, from where there is speech in it (pure, no torch)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gpu_daemon.engine.base import Samples
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

FRAME_SAMPLES = 160
"""Of Whisper's spectrogram: the unit in which it seeks, and so that of a clip."""
FRAMES_PER_S = SAMPLE_RATE_HZ // FRAME_SAMPLES
WINDOW_FRAMES = 30 * FRAMES_PER_S
"""What Whisper hears at once."""
PAD_FRAMES = round(0.4 * FRAMES_PER_S)
"""Before and after speech: the detector says late that it begins, and Whisper's own times are no finer."""
ACCURATE_PAUSE_FRAMES = 2 * FRAMES_PER_S
"""A silence that is shorter is decoded with the speech around it: each clip costs a window of its own."""
FAST_PAUSE_FRAMES = 5 * FRAMES_PER_S
"""Longer, as in fast mode the clips are no longer than a window: silence that shares one with speech costs nothing."""
HUSH_FRAMES = round(0.2 * FRAMES_PER_S)
"""A long piece is cut in the middle of so much, where it is quietest."""


class Span(NamedTuple):
    """On the timeline of the audio, which the frames of `Plan.clips` divide evenly."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    clips: tuple[Span, ...]
    """In order of time, apart from each other; none: there is nothing to be decoded."""
    independent: bool
    """Each is decoded as if the others were not there."""
    dropped_s: float


def whole(n_samples: int) -> Plan:
    n_frames = n_samples // FRAME_SAMPLES
    return Plan((Span(0.0, n_frames / FRAMES_PER_S),), independent=False, dropped_s=0.0)


def accurate(speech: Sequence[Span], n_samples: int) -> Plan:
    """The speech with a margin, decoded one after the other."""
    clips: list[_Frames] = []
    for start, end in _padded(speech, n_samples // FRAME_SAMPLES):
        if clips and start - clips[-1].end < ACCURATE_PAUSE_FRAMES - 2 * PAD_FRAMES:
            clips[-1] = _Frames(clips[-1].start, end)
        else:
            clips.append(_Frames(start, end))
    return _plan(clips, n_samples, independent=False)


def fast(speech: Sequence[Span], audio: Samples) -> Plan:
    """The speech with a margin, in pieces that Whisper hears at once; none depends on another."""
    pieces: list[_Frames] = []
    for long in _padded(speech, len(audio) // FRAME_SAMPLES):
        for start, end in _cut(long, audio):
            pause = start - pieces[-1].end if pieces else 0
            if pieces and end - pieces[-1].start <= WINDOW_FRAMES and pause < FAST_PAUSE_FRAMES - 2 * PAD_FRAMES:
                pieces[-1] = _Frames(pieces[-1].start, end)
            else:
                pieces.append(_Frames(start, end))
    return _plan(pieces, len(audio), independent=True)


class _Frames(NamedTuple):
    start: int
    end: int


def _padded(speech: Sequence[Span], n_frames: int) -> list[_Frames]:
    """Where the margins of two would overlap, they meet in the middle."""
    spans = [
        _Frames(math.floor(start_s * FRAMES_PER_S), min(n_frames, math.ceil(end_s * FRAMES_PER_S)))
        for start_s, end_s in speech
    ]
    middles = [(before.end + after.start) // 2 for before, after in pairwise(spans)]
    padded = (
        [
            _Frames(max(span.start - PAD_FRAMES, earliest), min(span.end + PAD_FRAMES, latest))
            for span, earliest, latest in zip(spans, [0, *middles], [*middles, n_frames], strict=True)
        ]
        if spans
        else []
    )
    return [span for span in padded if span.start < span.end]


def _cut(span: _Frames, audio: Samples) -> list[_Frames]:
    """No longer than a window each."""
    pieces: list[_Frames] = []
    start, end = span
    while end - start > WINDOW_FRAMES:
        cut = _quietest(audio, start + WINDOW_FRAMES // 2, start + WINDOW_FRAMES)
        pieces.append(_Frames(start, cut))
        start = cut
    return [*pieces, _Frames(start, end)]


def _quietest(audio: Samples, start: int, end: int) -> int:
    """The frame between them, of which the least is heard around it."""
    # A float64 copy: the squares of a whole piece are added up.
    samples = audio[start * FRAME_SAMPLES : end * FRAME_SAMPLES].astype(np.float64)  # float64[n_frames * 160]
    power = (samples**2).reshape(-1, FRAME_SAMPLES).sum(axis=1)  # float64[n_frames]
    around = np.convolve(power, np.ones(HUSH_FRAMES), mode="valid")  # float64[n_frames - HUSH_FRAMES + 1]
    return start + HUSH_FRAMES // 2 + int(around.argmin())


def _plan(clips: Sequence[_Frames], n_samples: int, *, independent: bool) -> Plan:
    decoded_s = sum(end - start for start, end in clips) / FRAMES_PER_S
    return Plan(
        tuple(Span(start / FRAMES_PER_S, end / FRAMES_PER_S) for start, end in clips),
        independent=independent,
        dropped_s=max(0.0, round(n_samples / SAMPLE_RATE_HZ - decoded_s, 3)),
    )
