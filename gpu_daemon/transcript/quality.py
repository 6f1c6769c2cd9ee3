"""Which segments a reader should doubt (pure)."""

from collections.abc import Sequence
from itertools import groupby

from gpu_daemon.transcript.model import Quality, Segment

LOW_AVG_LOGPROB = -1.0
HIGH_COMPRESSION_RATIO = 2.4
"""Both from openai-whisper: past them it decodes a window again, hotter. Past them still: no temperature cured it."""
LOOP_LENGTH = 3
"""So many segments in a row that say the same are a loop."""


def assess(segments: Sequence[Segment]) -> Quality:
    low_confidence = tuple(segment.id for segment in segments if segment.avg_logprob < LOW_AVG_LOGPROB)
    repetition = {segment.id for segment in segments if segment.compression_ratio > HIGH_COMPRESSION_RATIO}
    for text, group in groupby(segments, key=lambda segment: segment.text.strip().casefold()):
        same = list(group)
        if text and len(same) >= LOOP_LENGTH:
            repetition |= {segment.id for segment in same}
    return Quality(low_confidence_segments=low_confidence, repetition_segments=tuple(sorted(repetition)))
