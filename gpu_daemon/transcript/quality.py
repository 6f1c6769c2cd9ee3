"""Which segments a reader should doubt (pure)."""

import re
from collections.abc import Hashable, Sequence

from gpu_daemon.transcript.model import Quality, Segment

LOW_AVG_LOGPROB = -1.0
HIGH_COMPRESSION_RATIO = 2.4
NO_SPEECH_PROB = 0.6
"""All three from openai-whisper. Past the first two it decodes a window again, hotter: past them still, no temperature
cured it. Past the third it skips a window, unless it is sure of the words: that is how it invents them with confidence.
"""
SEGMENT_REPEATS = 3
"""So many segments in a row that say the same are a loop, or so many turns of a few segments."""
SEGMENT_UNIT = 4
PAUSE_S = 30.0
"""A window of silence ends a loop: what is said again after it is an announcement."""
PHRASE_REPEATS = 4
PHRASE_UNIT = 24
"""Words."""
WORD_REPEATS = 8
"""A word alone is repeated in speech too: digits, yes, no."""
UNSPACED_LETTERS = 20
"""A longer "word" is a phrase in a script without spaces, and is looked at letter by letter."""
SILENT_DB = -60.0
"""Of full scale: what a quiet room leaves in a recording."""
BELOW_LOUDEST_DB = 45.0
"""No voice is so much fainter than the others in its recording."""


def assess(segments: Sequence[Segment], levels_db: Sequence[float], *, vad_dropped_s: float = 0.0) -> Quality:
    """`levels_db`: of each segment, how loud its audio gets; -inf where it is all zeros."""
    silent_db = max([SILENT_DB, *(level_db - BELOW_LOUDEST_DB for level_db in levels_db)])
    repetition = {segment.id for segment in segments if segment.compression_ratio > HIGH_COMPRESSION_RATIO}
    for speaker in {segment.speaker for segment in segments}:
        repetition |= _repeated([segment for segment in segments if segment.speaker == speaker])
    return Quality(
        vad_dropped_s=vad_dropped_s,
        low_confidence_segments=tuple(segment.id for segment in segments if segment.avg_logprob < LOW_AVG_LOGPROB),
        repetition_segments=tuple(sorted(repetition)),
        silence_segments=tuple(
            segment.id
            for segment, level_db in zip(segments, levels_db, strict=True)
            if segment.text.strip() and (level_db < silent_db or segment.no_speech_prob > NO_SPEECH_PROB)
        ),
    )


def _repeated(segments: Sequence[Segment]) -> set[int]:
    """Ids, of the segments of one speaker: what two say to each other in turn is no loop."""
    said = [(segment, words) for segment in segments if (words := tuple(_words(segment.text)))]
    found = {segment.id for segment, words in said if _loops(words, PHRASE_UNIT, PHRASE_REPEATS, WORD_REPEATS)}
    runs: list[list[tuple[Segment, Hashable]]] = []
    for segment, words in said:
        if not runs or segment.start > runs[-1][-1][0].end + PAUSE_S:
            runs.append([])
        runs[-1].append((segment, words))
    for run in runs:
        found |= {run[place][0].id for place in _loops([words for _, words in run], SEGMENT_UNIT, SEGMENT_REPEATS)}
    return found


def _words(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return [part for word in words for part in (word if len(word) > UNSPACED_LETTERS else [word])]


def _loops(items: Sequence[Hashable], longest: int, repeats: int, repeats_of_one: int | None = None) -> set[int]:
    """The places of items in a phrase of up to `longest` that comes so many times in a row."""
    found: set[int] = set()
    for length in range(1, min(longest, len(items) // 2) + 1):
        needed = length * ((repeats_of_one if length == 1 and repeats_of_one else repeats) - 1)
        run = 0
        for place in range(length, len(items) + 1):
            if place < len(items) and items[place] == items[place - length]:
                run += 1
                continue
            if run >= needed:
                found.update(range(place - run - length, place))
            run = 0
    return found
