"""Who said which words (pure): what was heard, joined with who speaks when.

Both come from the same audio and know nothing of each other. A word is said by whoever speaks for most of its time, and
a segment in which the speaker changes is cut there.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise

from gpu_daemon.transcript.model import Diarization, Quality, Segment, SpeakerTurn, Transcript, Word

NEAR_S = 1.0
"""Whoever speaks so long before or after a word has said it, if nobody speaks meanwhile: both models place the edges of
speech a little differently, and Whisper's words begin with the pause before them."""


def with_speakers(segments: Sequence[Segment], exclusive: Sequence[SpeakerTurn]) -> tuple[Segment, ...]:
    """Segments and words with their speakers, cut where the speaker changes; None: nobody speaks anywhere near.

    `exclusive`: one speaker at most at any time. Segments without words are not cut. Each part of a segment has its own
    text and times, and the figures of the whole; the tokens, which are not known by word, are all the first part's, and
    so are their logprobs. The ids count from 0.
    """
    parts = (part for of_one in _parted(segments, exclusive) for part in of_one)
    return tuple(part.model_copy(update={"id": i}) for i, part in enumerate(parts))


def attributed(
    transcript: Transcript, turns: Sequence[SpeakerTurn], exclusive: Sequence[SpeakerTurn], diarization: Diarization
) -> Transcript:
    """The transcript with its speakers. `turns`: who speaks when, also at the same time as others.

    A part of a segment is as doubtful as the whole of it was.
    """
    parted = list(_parted(transcript.segments, exclusive))
    ids: dict[int, list[int]] = {}
    numbered: list[Segment] = []
    for whole, parts in zip(transcript.segments, parted, strict=True):
        ids[whole.id] = list(range(len(numbered), len(numbered) + len(parts)))
        numbered += [part.model_copy(update={"id": i}) for i, part in enumerate(parts, start=len(numbered))]

    def of_parts(of_wholes: Iterable[int]) -> tuple[int, ...]:
        return tuple(i for whole in of_wholes for i in ids[whole])

    quality = transcript.quality
    return transcript.model_copy(
        update={
            "segments": tuple(numbered),
            "transcription_segments": transcript.segments,
            "diarization_segments": tuple(turns),
            "diarization": diarization,
            "quality": Quality(
                vad_dropped_s=quality.vad_dropped_s,
                low_confidence_segments=of_parts(quality.low_confidence_segments),
                repetition_segments=of_parts(quality.repetition_segments),
                silence_segments=of_parts(quality.silence_segments),
            ),
        }
    )


class _Turns:
    """Asked who speaks in a stretch of time; an answer takes log n, and the turns in that stretch."""

    def __init__(self, turns: Iterable[SpeakerTurn]) -> None:
        self._turns = sorted(turns, key=lambda turn: turn.start)
        self._starts = [turn.start for turn in self._turns]
        self._ends = list(accumulate((turn.end for turn in self._turns), max))

    def speaker(self, start: float, end: float) -> str | None:
        """For most of the time; of several the first. Where nobody speaks: the nearest."""
        first = bisect_right(self._ends, start)
        after = bisect_left(self._starts, end, lo=first)
        spoken_s: dict[str, float] = {}
        for turn in self._turns[first:after]:
            overlap_s = min(end, turn.end) - max(start, turn.start)
            spoken_s[turn.speaker] = spoken_s.get(turn.speaker, 0.0) + overlap_s
        if spoken_s:
            return max(spoken_s, key=lambda speaker: spoken_s[speaker])
        return self._nearest(start, end, first)

    def _nearest(self, start: float, end: float, following: int) -> str | None:
        """`following`: which turn would be the next after the stretch."""
        before_s = start - self._ends[following - 1] if following > 0 else NEAR_S + 1
        after_s = self._starts[following] - end if following < len(self._turns) else NEAR_S + 1
        if min(before_s, after_s) > NEAR_S:
            return None
        return self._turns[following - 1 if before_s <= after_s else following].speaker


def _parted(segments: Sequence[Segment], exclusive: Sequence[SpeakerTurn]) -> Iterator[list[Segment]]:
    """The parts of each segment, at least one; their ids are the whole's."""
    turns = _Turns(exclusive)
    for segment in segments:
        speaker = turns.speaker(segment.start, segment.end)
        if not segment.words:
            yield [segment.model_copy(update={"speaker": speaker})]
            continue
        speakers = _complete([turns.speaker(word.start, word.end) for word in segment.words], speaker)
        words = [
            word.model_copy(update={"speaker": speaker}) for word, speaker in zip(segment.words, speakers, strict=True)
        ]
        yield list(_parts(segment, words))


def _complete(speakers: Sequence[str | None], otherwise: str | None) -> list[str | None]:
    """A word that nobody is near belongs to the one before it, or to the first that somebody said."""
    last = next((speaker for speaker in speakers if speaker is not None), otherwise)
    found = []
    for speaker in speakers:
        last = speaker or last
        found.append(last)
    return found


def _parts(segment: Segment, words: Sequence[Word]) -> Iterator[Segment]:
    runs = [tuple(run) for _, run in groupby(words, key=lambda word: word.speaker)]
    texts = _texts(segment.text, runs)
    for i, (run, text) in enumerate(zip(runs, texts, strict=True)):
        start = segment.start if i == 0 else _inside(run[0].start, segment)
        end = segment.end if i == len(runs) - 1 else _inside(run[-1].end, segment)
        yield segment.model_copy(
            update={
                "start": start,
                "end": max(start, end),
                "text": text,
                "speaker": run[0].speaker,
                "words": run,
                "tokens": segment.tokens if i == 0 else (),
                "logprobs": segment.logprobs if i == 0 or segment.logprobs is None else (),
            }
        )


def _texts(text: str, runs: Sequence[Sequence[Word]]) -> list[str]:
    """The text in as many pieces; joined they are the text. A word that is not in it cuts nothing off."""
    cuts, place = [], 0
    for run in runs:
        cut = None
        for word in run:
            at = text.find(word.word, place)
            if at >= 0:
                cut = at if cut is None else cut
                place = at + len(word.word)
        cuts.append(place if cut is None else cut)
    cuts = [0, *cuts[1:], len(text)]
    return [text[cut:following] for cut, following in pairwise(cuts)]


def _inside(time_s: float, segment: Segment) -> float:
    return min(max(time_s, segment.start), segment.end)
