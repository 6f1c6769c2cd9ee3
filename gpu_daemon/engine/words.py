"""From the times of words in a window to the words of its segments (whisper.timing.add_word_timestamps; no torch here).

Whisper's attention stretches words over pauses. The reference cuts those that are too long for the window's median at
the ends of sentences and segments; so does this, rule by rule.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from gpu_daemon.engine.spoken import Spoken, SpokenWord

LONGEST_MEDIAN_S = 0.7
SENTENCE_ENDS = ".。!！?？"
PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
CLOSE_S = 0.5
"""A word within this of its segment's edge moves the edge."""


def give_words(
    segments: Sequence[Spoken], timings: Sequence[SpokenWord], *, offset_s: float, last_end_s: float, eot: int
) -> None:
    """`timings`: of all segments' words, from the start of the window, which is at `offset_s`.

    `last_end_s`: when the speech before this window ended. Changes the segments, and consumes the timings.
    """
    lengths = [timing.end - timing.start for timing in timings if timing.end != timing.start]
    usual_s = min(LONGEST_MEDIAN_S, median(lengths)) if lengths else 0.0
    longest_s = 2 * usual_s
    if lengths:
        _cut_at_sentences(timings, longest_s)
    _join_punctuation(timings)
    left = iter(timings)
    for segment in segments:
        segment.words = list(_words_of(segment, left, offset_s, eot))
        if segment.words:
            _cut_after_pause(segment.words, last_end_s, usual_s)
            _fit(segment, usual_s)
            last_end_s = segment.end


def _cut_at_sentences(timings: Sequence[SpokenWord], longest_s: float) -> None:
    for before, timing in pairwise(timings):
        if timing.end - timing.start > longest_s:
            if timing.word in SENTENCE_ENDS:
                timing.end = timing.start + longest_s
            elif before.word in SENTENCE_ENDS:
                timing.start = timing.end - longest_s


def _join_punctuation(timings: Sequence[SpokenWord]) -> None:
    """Marks go to the word that they stand at; what is left of them has no text."""
    following = len(timings) - 1
    for at in range(len(timings) - 2, -1, -1):
        mark, word = timings[at], timings[following]
        if mark.word.startswith(" ") and mark.word.strip() in PREPENDED:
            word.word, word.tokens = mark.word + word.word, mark.tokens + word.tokens
            mark.word, mark.tokens = "", []
        else:
            following = at
    previous = 0
    for at in range(1, len(timings)):
        word, mark = timings[previous], timings[at]
        if not word.word.endswith(" ") and mark.word in APPENDED:
            word.word, word.tokens = word.word + mark.word, word.tokens + mark.tokens
            mark.word, mark.tokens = "", []
        else:
            previous = at


def _words_of(segment: Spoken, left: Iterator[SpokenWord], offset_s: float, eot: int) -> Iterator[SpokenWord]:
    n_left = sum(token < eot for token in segment.tokens)
    while n_left > 0 and (timing := next(left, None)) is not None:
        n_left -= len(timing.tokens)
        if timing.word:
            timing.start, timing.end = round(offset_s + timing.start, 2), round(offset_s + timing.end, 2)
            yield timing


def _cut_after_pause(words: list[SpokenWord], last_end_s: float, usual_s: float) -> None:
    """The first word after a pause, or the second, has swallowed the pause."""
    first, longest_s = words[0], 2 * usual_s
    second = words[1] if len(words) > 1 else None
    if first.end - last_end_s <= 4 * usual_s:
        return
    if first.end - first.start <= longest_s and (second is None or second.end - first.start <= 2 * longest_s):
        return
    if second is not None and second.end - second.start > longest_s:
        first.end = second.start = max(second.end / 2, second.end - longest_s)
    first.start = max(0.0, first.end - longest_s)


def _fit(segment: Spoken, usual_s: float) -> None:
    """Segment and words agree on where they begin and end: on the segment's time where a word is far too long."""
    first, last = segment.words[0], segment.words[-1]
    if segment.start < first.end and segment.start - CLOSE_S > first.start:
        first.start = max(0.0, min(first.end - usual_s, segment.start))
    else:
        segment.start = first.start
    if segment.end > last.start and segment.end + CLOSE_S < last.end:
        last.end = max(last.start + usual_s, segment.end)
    else:
        segment.end = last.end
