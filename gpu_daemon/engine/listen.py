"""The loop of whisper.transcribe over one file, turned inside out: it asks for windows, and is told what was heard.

Whoever answers may answer many of these loops at once, which is where the speed comes from: inside a file each window
depends on the one before it, on its text by the prompt and on its end by where the next one begins.
"""

import math
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE
from whisper.tokenizer import Tokenizer
from whisper.utils import compression_ratio

from gpu_daemon.engine.sequence import Decoded
from gpu_daemon.engine.spoken import Spoken, SpokenWord
from gpu_daemon.engine.words import APPENDED, PREPENDED, give_words
from gpu_daemon.errors import NotANumber
from gpu_daemon.jobs.model import JobOptions

FRAMES_PER_STAMP = 2
STAMP_S = FRAMES_PER_STAMP * HOP_LENGTH / SAMPLE_RATE
HOT = 0.5
"""What was said at a higher temperature is no prompt for the next window."""
SEED = 0
PUNCTUATION = PREPENDED + APPENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """Asks for what is said in some frames of the file; the answer is a Decoded."""

    start: int
    """Frames of 10 ms."""
    end: int
    prompt: tuple[int, ...]
    sot_index: int
    temperature: float
    group: int
    beams: bool
    seed: int
    logprobs: bool
    """Of single tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Align:
    """Asks when the words of this text were said in the window that was decoded last; the answer is SpokenWords."""

    text_tokens: tuple[int, ...]
    n_frames: int


Question = Decode | Align
Conversation = Generator[Question, Any, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Result:
    decoded: Decoded
    temperature: float
    avg_logprob: float
    compression_ratio: float


class Listener:
    """Of one file, or of one clip of it that is heard by itself."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: JobOptions,
        *,
        n_frames: int,
        n_text_ctx: int,
        clips: Sequence[tuple[int, int]],
        prompt: str | None,
        prompt_for_all: bool,
    ) -> None:
        """`n_frames`: of the whole file; `clips`: (start, end) in frames. `prompt_for_all`: not for the first only."""
        self.seek = clips[0][0] if clips else 0
        """Frames; all before it is done."""
        self.over = False
        self.segments: list[Spoken] = []
        """Those emptied, because they were instantaneous or said nothing, have no tokens."""
        self.tokens: list[int] = []
        """All that was said, with timestamps; first the tokens of the prompt."""
        self._tokenizer = tokenizer
        self._options = options
        self._n_frames = n_frames
        self._max_prompt = n_text_ctx // 2 - 1
        self._clips = clips
        self._prompt_for_all = prompt_for_all
        self._given: list[int] = [] if prompt is None else tokenizer.encode(" " + prompt.strip())
        self.tokens += self._given
        self._prompt_from = 0
        self._last_speech_s = 0.0

    @property
    def text(self) -> str:
        return str(self._tokenizer.decode(self.tokens[len(self._given) :]))

    @property
    def n_to_hear(self) -> int:
        """Frames."""
        return sum(end - start for start, end in self._clips)

    @property
    def n_heard(self) -> int:
        return self.n_to_hear if self.over else sum(max(0, min(self.seek, end) - start) for start, end in self._clips)

    def run(self) -> Conversation:
        for start, end in self._clips:
            self.seek = start
            while self.seek < end:
                yield from self._window(min(N_FRAMES, self._n_frames - self.seek, end - self.seek))
        self.over = True

    def _window(self, n_frames: int) -> Conversation:
        start = self.seek
        result = yield from self._decode(start, n_frames)
        if self._is_silent(result):
            self.seek = start + n_frames
            return
        segments, self.seek = self._cut(result, n_frames)
        if self._options.word_timestamps:
            believed = yield from self._find_words(segments, start, n_frames, whole=self._is_whole(result.decoded))
            if not believed:
                return
        for segment in segments:
            if segment.start == segment.end or not segment.text.strip():
                segment.text, segment.tokens, segment.logprobs, segment.words = "", [], [], []
        self.segments += segments
        self.tokens += [token for segment in segments for token in segment.tokens]
        if not self._options.condition_on_previous_text or result.temperature > HOT:
            self._prompt_from = len(self.tokens)

    def _decode(self, start: int, n_frames: int) -> Generator[Question, Any, _Result]:
        """Hotter and hotter, until it makes sense."""
        options = self._options
        prompt, sot_index = self._prompt()
        for number, temperature in enumerate(options.temperature):
            beams = options.beam_size is not None and temperature == 0
            group = options.beam_size if beams else options.best_of if temperature > 0 else None
            decoded: Decoded = yield Decode(
                start=start,
                end=start + n_frames,
                prompt=prompt,
                sot_index=sot_index,
                temperature=temperature,
                group=group or 1,
                beams=beams,
                # From the place in the file: the same file gives the same text.
                seed=random.Random(f"{SEED} {start} {number}").getrandbits(40),  # noqa: S311 - not for secrets
                logprobs=options.logprobs,
            )
            if not math.isfinite(decoded.sum_logprob):
                raise NotANumber("the model computes what is not a number")
            result = _Result(
                decoded=decoded,
                temperature=temperature,
                avg_logprob=decoded.sum_logprob / (len(decoded.tokens) + 1),
                compression_ratio=compression_ratio(self._tokenizer.decode(decoded.tokens).strip()),
            )
            if not self._needs_another(result):
                break
        return result

    def _prompt(self) -> tuple[tuple[int, ...], int]:
        """With the index of the start of the transcript in it."""
        before = self.tokens[self._prompt_from :]
        if self._prompt_for_all:
            n_left = self._max_prompt - len(self._given)
            before = self._given + self.tokens[max(len(self._given), self._prompt_from) :][-n_left:]
        before = before[-self._max_prompt :]
        start = [self._tokenizer.sot_prev, *before] if before else []
        return (*start, *self._tokenizer.sot_sequence), len(start)

    def _needs_another(self, result: _Result) -> bool:
        options = self._options
        repeats = result.compression_ratio > options.compression_ratio_threshold
        unsure = result.avg_logprob < options.logprob_threshold
        silent = unsure and result.decoded.no_speech_prob > options.no_speech_threshold
        return (repeats or unsure) and not silent

    def _is_silent(self, result: _Result) -> bool:
        return (
            result.decoded.no_speech_prob > self._options.no_speech_threshold
            and result.avg_logprob <= self._options.logprob_threshold
        )

    def _cut(self, result: _Result, n_frames: int) -> tuple[list[Spoken], int]:
        """The segments between the timestamps, and where the next window begins."""
        tokens, stamp0 = list(result.decoded.tokens), self._tokenizer.timestamp_begin
        is_stamp, whole = [token >= stamp0 for token in tokens], self._is_whole(result.decoded)
        cuts = [at for at in range(1, len(tokens)) if is_stamp[at - 1] and is_stamp[at]]
        offset_s = self.seek * HOP_LENGTH / SAMPLE_RATE

        def segment(start_s: float, end_s: float, begin: int, end: int) -> Spoken:
            return Spoken(
                seek=self.seek,
                start=start_s,
                end=end_s,
                text=self._tokenizer.decode([token for token in tokens[begin:end] if token < self._tokenizer.eot]),
                tokens=tokens[begin:end],
                temperature=result.temperature,
                avg_logprob=result.avg_logprob,
                compression_ratio=result.compression_ratio,
                no_speech_prob=result.decoded.no_speech_prob,
                logprobs=list(result.decoded.logprobs[begin:end]),
            )

        if not cuts:
            stamps = [token - stamp0 for token in tokens if token >= stamp0]
            length_s = stamps[-1] * STAMP_S if stamps and stamps[-1] != 0 else n_frames * HOP_LENGTH / SAMPLE_RATE
            return [segment(offset_s, offset_s + length_s, 0, len(tokens))], self.seek + n_frames
        ends = [*cuts, len(tokens)] if whole else cuts
        segments = []
        for begin, end in zip([0, *ends], ends, strict=False):
            first, last = (offset_s + (tokens[at] - stamp0) * STAMP_S for at in (begin, end - 1))
            segments.append(segment(first, last, begin, end))
        # What is unfinished is heard again.
        end = self.seek + (n_frames if whole else (tokens[cuts[-1] - 1] - stamp0) * FRAMES_PER_STAMP)
        return segments, end

    def _is_whole(self, decoded: Decoded) -> bool:
        """It ends with a single timestamp: nothing is said after it."""
        return [token >= self._tokenizer.timestamp_begin for token in decoded.tokens[-2:]] == [False, True]

    def _find_words(
        self, segments: list[Spoken], start: int, n_frames: int, *, whole: bool
    ) -> Generator[Question, Any, bool]:
        """False: what was heard is not to be believed, and is heard again from `seek`."""
        eot = self._tokenizer.eot
        text_tokens = tuple(token for segment in segments for token in segment.tokens if token < eot)
        timings: list[SpokenWord] = (yield Align(text_tokens=text_tokens, n_frames=n_frames)) if text_tokens else []
        offset_s = start * HOP_LENGTH / SAMPLE_RATE
        give_words(segments, timings, offset_s=offset_s, last_end_s=self._last_speech_s, eot=eot)
        end_s = _end(segments)
        if not whole and end_s is not None and end_s > offset_s:
            self.seek = round(end_s * FRAMES_PER_SECOND)
        if self._options.hallucination_silence_threshold is not None and not self._skip_hallucinations(
            segments, start, n_frames, self._options.hallucination_silence_threshold, whole=whole
        ):
            return False
        end_s = _end(segments)
        if end_s is not None:
            self._last_speech_s = end_s
        return True

    def _skip_hallucinations(
        self, segments: list[Spoken], start: int, n_frames: int, threshold_s: float, *, whole: bool
    ) -> bool:
        """Unlikely words beside a long silence are taken away, and heard again from after the silence.

        False: nothing is left.
        """
        offset_s = start * HOP_LENGTH / SAMPLE_RATE
        window_end_s = (start + N_FRAMES) * HOP_LENGTH / SAMPLE_RATE
        end_s = _end(segments)
        if not whole and end_s is not None and end_s > offset_s:
            if window_end_s - end_s > threshold_s:
                self.seek = round(end_s * FRAMES_PER_SECOND)
            else:
                self.seek = start + n_frames
        first = next((segment for segment in segments if segment.words), None)
        if first is not None and _is_anomalous(first):
            gap_s = first.start - offset_s
            if gap_s > threshold_s:
                self.seek = start + round(gap_s * FRAMES_PER_SECOND)
                return False
        before_s = self._last_speech_s
        for at, segment in enumerate(segments):
            if not segment.words:
                continue
            if _is_anomalous(segment):
                after = next((one for one in segments[at + 1 :] if one.words), None)
                after_s = offset_s + n_frames * HOP_LENGTH / SAMPLE_RATE if after is None else after.words[0].start
                silence_before = (
                    segment.start - before_s > threshold_s
                    or segment.start < threshold_s
                    or segment.start - offset_s < 2.0
                )
                silence_after = (
                    after_s - segment.end > threshold_s
                    or (after is not None and _is_anomalous(after))
                    or window_end_s - segment.end < 2.0
                )
                if silence_before and silence_after:
                    self.seek = round(max(offset_s + 1, segment.start) * FRAMES_PER_SECOND)
                    if self._n_frames * HOP_LENGTH / SAMPLE_RATE - segment.end < threshold_s:
                        self.seek = self._n_frames
                    del segments[at:]
                    break
            before_s = segment.end
        return True


def _end(segments: Sequence[Spoken]) -> float | None:
    """Of the last word, in seconds; of the last segment where there are no words."""
    words = [word for segment in segments for word in segment.words]
    return words[-1].end if words else segments[-1].end if segments else None


def _is_anomalous(segment: Spoken) -> bool:
    """Its words are improbable, or much too short or long."""
    words = [word for word in segment.words if word.word not in PUNCTUATION][:8]
    score = sum(_anomaly(word) for word in words)
    return bool(segment.words) and (score >= 3 or score + 0.01 >= len(words))


def _anomaly(word: SpokenWord) -> float:
    length_s = word.end - word.start
    unlikely = 1.0 if word.probability < 0.15 else 0.0
    return unlikely + max(0.0, 0.133 - length_s) * 15 + max(0.0, length_s - 2.0)
