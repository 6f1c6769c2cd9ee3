"""The channels of a recording as its speakers (no torch here)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpu_daemon.engine.base import Pcm, Transcription
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import Segment, Word

FRAMES_PER_S = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    pcm: Pcm
    """Of the whole file."""
    skip_samples: int
    """Silence before the first word, which the engine was not given; all of it: there is nothing to hear."""
    speaker: str | None
    """None: it may be more than one."""
    transcription: Transcription | None
    """None: there is nothing to hear."""

    @property
    def duration_s(self) -> float:
        return len(self.pcm) / SAMPLE_RATE_HZ

    @property
    def skipped_s(self) -> float:
        return self.skip_samples / SAMPLE_RATE_HZ

    @property
    def fraction(self) -> float:
        return 1.0 if self.transcription is None else self.transcription.fraction

    @property
    def ended(self) -> bool:
        return self.transcription is None or self.transcription.ended

    def complete_until_s(self, heard: Sequence[Segment]) -> float:
        """What is heard from now on begins no earlier."""
        if self.ended:
            return math.inf
        return self.skipped_s if not heard else self.placed(heard[-1]).start

    def placed(self, segment: Segment) -> Segment:
        """On the timeline of the file, and said by its speaker."""
        return shifted(segment, self.skip_samples, self.duration_s, self.speaker)


class Said(NamedTuple):
    segment: Segment
    channel: Channel


class Merge:
    """The segments of all channels in the order in which they begin; one that was told keeps its place."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels
        self._taken = [0] * len(channels)
        self.said: list[Said] = []

    def take(self, heard: Sequence[Sequence[Segment]]) -> None:
        """`heard`: of each channel all there is so far. Those that others may still come before are left."""
        until_s = min(
            (channel.complete_until_s(heard[number]) for number, channel in enumerate(self._channels)), default=math.inf
        )
        only = len(self._channels) == 1
        fronts = [self._front(number, heard[number]) for number in range(len(self._channels))]
        while ready := [(front.start, number) for number, front in enumerate(fronts) if front is not None]:
            start_s, number = min(ready)
            if start_s >= until_s and not only:
                return
            front = fronts[number]
            assert front is not None
            self.said.append(Said(front.model_copy(update={"id": len(self.said)}), self._channels[number]))
            self._taken[number] += 1
            fronts[number] = self._front(number, heard[number])

    def _front(self, number: int, heard: Sequence[Segment]) -> Segment | None:
        """The next of the channel."""
        taken = self._taken[number]
        return self._channels[number].placed(heard[taken]) if taken < len(heard) else None


def shifted(segment: Segment, skip_samples: int, duration_s: float, speaker: str | None = None) -> Segment:
    """From the timeline of what the engine heard to that of the file, whose first samples it was not given."""
    offset_s = skip_samples / SAMPLE_RATE_HZ

    def moved(time_s: float) -> float:
        # Whisper's last window is padded to 30 s, and it may place an end in the padding.
        return round(min(max(time_s + offset_s, 0.0), duration_s), 3)

    words = tuple(
        Word.model_copy(word, update={"start": moved(word.start), "end": moved(word.end), "speaker": speaker})
        for word in segment.words
    )
    return segment.model_copy(
        update={
            "start": moved(segment.start),
            "end": moved(segment.end),
            "seek": segment.seek + round(offset_s * FRAMES_PER_S),
            "words": words,
            "speaker": speaker,
        }
    )
