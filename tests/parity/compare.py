"""Where what we heard differs from what the reference heard (pure)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest

from gpu_daemon.transcript.model import Segment, Transcript
from tests.parity.reference import Heard

TIME_TOLERANCE_S = 1e-6
WORD_TOLERANCE_S = 0.02 + 1e-6
PROBABILITY_TOLERANCE = 1e-3
"""Also of logarithms."""
ERROR_TOLERANCE = 0.3
"""Where chance has a part: how much worse than the worst of the reference's own tries a file's text may be."""
MEAN_ERROR_TOLERANCE = 0.05
"""The same, on average over all such files of a sweep."""


@dataclass(frozen=True, slots=True)
class Difference:
    what: str
    theirs: object
    ours: object
    seek: int | None = None
    """Of the window; None: of the file."""
    prefix: tuple[int, ...] | None = None
    """The tokens of the window that are the same, when it is the next one that differs."""

    def __str__(self) -> str:
        where = "" if self.seek is None else f"the window at {self.seek / 100:.2f} s: "
        after = "" if self.prefix is None else f" after {len(self.prefix)} tokens"
        return f"{where}{self.what}{after} is {self.ours}, the reference's {self.theirs}"


def difference(theirs: Heard, ours: Transcript) -> Difference | None:
    """The first one: in a file, what comes after it may follow from it."""
    return next(differences(theirs, ours), None)


def differences(theirs: Heard, ours: Transcript) -> Iterator[Difference]:
    if theirs.language != ours.language:
        yield Difference("language", theirs.language, ours.language)
    if not _near(theirs.language_probability, ours.language_probability, PROBABILITY_TOLERANCE):
        yield Difference("language's probability", theirs.language_probability, ours.language_probability)
    chance = theirs.random_from
    by_seek = zip_longest(_windows(theirs.segments, chance), _windows(ours.segments, chance))
    for their_window, our_window in by_seek:
        if their_window is None or our_window is None or their_window[0].seek != our_window[0].seek:
            their_seek, our_seek = (each[0].seek if each else None for each in (their_window, our_window))
            first = min(seek for seek in (their_seek, our_seek) if seek is not None)
            yield Difference("seek of the next segment", their_seek, our_seek, first)
        else:
            yield from _in_window(their_window, our_window)
    for segment in ours.segments:
        if segment.seek == chance and segment.temperature == 0:
            yield Difference("temperature", "above 0", 0, chance)


def _windows(segments: Sequence[Segment], chance: int | None) -> list[list[Segment]]:
    """Those before chance has a part."""
    certain = (segment for segment in segments if chance is None or segment.seek < chance)
    return [list(window) for _, window in groupby(certain, key=lambda segment: segment.seek)]


def _in_window(theirs: list[Segment], ours: list[Segment]) -> Iterator[Difference]:
    seek = theirs[0].seek
    their_tokens, our_tokens = ([token for each in window for token in each.tokens] for window in (theirs, ours))
    for position, (their_token, our_token) in enumerate(zip_longest(their_tokens, our_tokens)):
        if their_token != our_token:
            yield Difference("the token", their_token, our_token, seek, tuple(their_tokens[:position]))
    if len(theirs) != len(ours):
        yield Difference("number of segments", len(theirs), len(ours), seek)
    for their, our in zip(theirs, ours, strict=False):
        yield from _in_segment(their, our)


def _in_segment(their: Segment, our: Segment) -> Iterator[Difference]:
    for name in ("tokens", "text", "temperature", "compression_ratio"):
        if getattr(their, name) != getattr(our, name):
            yield Difference(name, getattr(their, name), getattr(our, name), their.seek)
    time_tolerance_s = WORD_TOLERANCE_S if their.words else TIME_TOLERANCE_S
    for name, tolerance in (
        ("start", time_tolerance_s),
        ("end", time_tolerance_s),
        ("avg_logprob", PROBABILITY_TOLERANCE),
        ("no_speech_prob", PROBABILITY_TOLERANCE),
        ("confidence", PROBABILITY_TOLERANCE),
    ):
        if not _near(getattr(their, name), getattr(our, name), tolerance):
            yield Difference(name, getattr(their, name), getattr(our, name), their.seek)
    if [word.word for word in their.words] != [word.word for word in our.words]:
        yield Difference("words", their.words, our.words, their.seek)
    for their_word, our_word in zip(their.words, our.words, strict=False):
        times = (their_word.start, our_word.start), (their_word.end, our_word.end)
        if not all(_near(*pair, WORD_TOLERANCE_S) for pair in times):
            yield Difference(f"times of the word {our_word.word!r}", times[0], times[1], their.seek)
        if not _near(their_word.confidence, our_word.confidence, PROBABILITY_TOLERANCE):
            yield Difference(
                f"confidence of the word {our_word.word!r}", their_word.confidence, our_word.confidence, their.seek
            )


def _near(theirs: float | None, ours: float | None, tolerance: float) -> bool:
    if theirs is None or ours is None:
        return theirs is ours
    return abs(theirs - ours) <= tolerance
