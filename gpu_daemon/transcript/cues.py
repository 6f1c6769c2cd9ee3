"""Which words are shown together, and for how long (pure): the rules of openai-whisper's subtitle writers."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpu_daemon.transcript.model import Segment, Word

LONG_PAUSE_S = 3.0
"""From word to word; cues that are cut by lines and not by segments end there. Whisper's."""
UNLIMITED = 1000
LEADING_BLANKS = re.compile(r"^(\s*)(.*)$", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class CueOptions:
    """Called as whisper's command line calls them; whatever is given here needs the times of words."""

    max_line_width: int | None = None
    """Characters."""
    max_line_count: int | None = None
    """Lines in a cue; without `max_line_width` it changes nothing."""
    max_words_per_line: int | None = None
    """Without effect where both of the above are given."""
    highlight_words: bool = False
    """A cue for each word, in which it is underlined."""

    @property
    def need_words(self) -> bool:
        return self != PLAIN


PLAIN = CueOptions()


@dataclass(frozen=True, slots=True)
class Cue:
    start_ms: int
    end_ms: int
    speaker: str | None
    before: str
    """Lines are separated by \\n; none is blank."""
    underlined: str = ""
    after: str = ""


def have_words(segments: Sequence[Segment]) -> bool:
    """False: somebody speaks, and nobody knows when which word was said."""
    return any(segment.words for segment in segments) or not any(segment.text.strip() for segment in segments)


def cues(segments: Sequence[Segment], options: CueOptions = PLAIN) -> Iterator[Cue]:
    if not any(segment.words for segment in segments):
        for segment in segments:
            if text := one_line(segment.text).strip():
                yield Cue(_ms(segment.start), _ms(segment.end), segment.speaker, text)
        return
    for subtitle in _subtitles(segments, options):
        yield from subtitle.highlighted() if options.highlight_words else (subtitle.whole(),)


def one_line(text: str) -> str:
    """A blank line would end a cue, a tab a field."""
    return " ".join(text.replace("\t", " ").splitlines())


@dataclass(slots=True)
class _Subtitle:
    """Words that are shown together; their texts have the blanks and line breaks between them."""

    speaker: str | None
    words: list[Word]
    texts: list[str]

    def whole(self) -> Cue:
        return Cue(_ms(self.words[0].start), _ms(self.words[-1].end), self.speaker, "".join(self.texts))

    def highlighted(self) -> Iterator[Cue]:
        last_ms = _ms(self.words[0].start)
        for i, word in enumerate(self.words):
            start_ms, end_ms = _ms(word.start), _ms(word.end)
            if last_ms != start_ms:
                yield Cue(last_ms, start_ms, self.speaker, "".join(self.texts))
            found = LEADING_BLANKS.match(self.texts[i])
            assert found is not None
            before, after = "".join(self.texts[:i]) + found[1], "".join(self.texts[i + 1 :])
            yield Cue(start_ms, end_ms, self.speaker, before, found[2], after)
            last_ms = end_ms


def _subtitles(segments: Sequence[Segment], options: CueOptions) -> Iterator[_Subtitle]:
    by_segment = options.max_line_count is None or options.max_line_width is None
    width = options.max_line_width or UNLIMITED
    lines = options.max_line_count
    line_length, line_count = 0, 1
    last_start_s: float | None = None
    shown: _Subtitle | None = None
    for segment, first, word in _words(segments, options.max_words_per_line or UNLIMITED):
        text, speaker = one_line(word.word), word.speaker or segment.speaker
        long_pause = not by_segment and last_start_s is not None and word.start - last_start_s > LONG_PAUSE_S
        ends = shown is not None and ((first and by_segment) or speaker != shown.speaker)
        if line_length > 0 and line_length + len(text) <= width and not long_pause and not ends:
            line_length += len(text)
        else:
            text = text.strip()
            line_length = len(text)
            if shown is not None and (ends or (lines is not None and (long_pause or line_count >= lines))):
                yield shown
                shown, line_count = None, 1
            elif shown is not None:
                line_count += 1
                text = f"\n{text}"
        if shown is None:
            shown = _Subtitle(speaker, [], [])
        shown.words.append(word)
        shown.texts.append(text)
        last_start_s = word.start
    if shown is not None:
        yield shown


def _words(segments: Sequence[Segment], per_line: int) -> Iterator[tuple[Segment, bool, Word]]:
    """With its segment, and whether it is the first of it or of `per_line` words. A segment without the times of its
    words is one long word."""
    for segment in segments:
        words = [word for word in segment.words if word.word.strip()]
        if not words and segment.text.strip():
            words = [Word(word=segment.text, start=segment.start, end=segment.end, confidence=segment.confidence)]
        for i, word in enumerate(words):
            yield segment, i % per_line == 0, word


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
