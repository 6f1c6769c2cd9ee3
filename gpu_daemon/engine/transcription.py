"""A file on its way through the engine."""

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from whisper.audio import N_FRAMES

from gpu_daemon.engine.base import Samples
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.clips import FRAMES_PER_S, Plan
from gpu_daemon.engine.features import Mel
from gpu_daemon.engine.listen import Listener, Question
from gpu_daemon.engine.spoken import Spoken
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from gpu_daemon.transcript.model import Quality, Segment, TokenLogprob, Transcript, Word

Planning = Generator[float, None, Plan]


class Pause:
    """Asks to be called again: what is done in between is nobody else's business, but takes time."""


@dataclass(frozen=True, slots=True)
class Recognise:
    """Asks for the language of these frames; the answer is a code and its probability."""

    start: int
    end: int


Talk = Generator["Question | Pause | Recognise", Any, None]


@dataclass(eq=False, slots=True)
class Asker:
    """A conversation with whoever computes: what it asks next depends on the answers."""

    of: "WhisperTranscription"
    talk: Talk
    window: tuple[int, int] | None = None
    """In frames: what it asked for last."""


class WhisperTranscription:
    """Transcription of one file with one model: first one conversation, then one for each clip heard by itself."""

    def __init__(
        self, model: WhisperModel, audio: Samples, options: JobOptions, plan: Callable[[Samples, JobOptions], Planning]
    ) -> None:
        self.model = model
        self.mel = Mel(audio, model.dims.n_mels, model.net.device)
        self.tokenizer = model.tokenizer()
        self.features: dict[tuple[int, int], Tensor] = {}
        """[1500, d] by window: each is computed once."""
        self._audio = audio
        self._options = options
        self._planning = plan(audio, options)
        self._plan: Plan | None = None
        self._clips: list[tuple[int, int]] = []
        """In frames."""
        self._language = options.language
        self._probability: float | None = None
        self._listeners: list[Listener] = []
        self._left: set[Asker] = set()
        self._segments: list[Segment] = []
        self._error: Exception | None = None

    def begin(self) -> Asker:
        return self._asker(self._open())

    @property
    def ended(self) -> bool:
        return self._error is not None or not self._left

    @property
    def fraction(self) -> float:
        if self.ended:
            return 1.0
        heard = sum(listener.n_heard for listener in self._listeners)
        return min(1.0, heard / max(1, sum(listener.n_to_hear for listener in self._listeners)))

    def fail(self, error: Exception) -> None:
        self._error = error
        self._left.clear()
        self.features.clear()

    def heard(self) -> tuple[Segment, ...]:
        """What has been said so far: of clips that are heard at once, up to the first that is not done."""
        new = itertools.islice(self._spoken(), len(self._segments), None)
        self._segments += (self._segment(number, spoken) for number, spoken in enumerate(new, len(self._segments)))
        return tuple(self._segments)

    def result(self) -> Transcript:
        if self._error is not None:
            raise self._error
        segments = self.heard()
        return Transcript(
            text="".join(listener.text for listener in self._listeners).strip(),
            language=self._language or "en",
            language_probability=self._probability,
            duration=len(self._audio) / SAMPLE_RATE_HZ,
            model=self.model.name,
            token_count=sum(len(segment.tokens) for segment in segments),
            segments=segments,
            quality=Quality(vad_dropped_s=0.0 if self._plan is None else self._plan.dropped_s),
        )

    def forget(self, window: tuple[int, int] | None) -> None:
        """The features of a window that nobody is at."""
        if window is not None and not any(asker.window == window for asker in self._left):
            self.features.pop(window, None)

    def ends(self, asker: Asker) -> list[Asker]:
        """This one has nothing more to ask; those that now begin."""
        self._left.discard(asker)
        if self._listeners or self._plan is None:
            return []
        self.tokenizer = self.model.tokenizer(self._language or "en", self._options.task.value)
        prompt, prompt_for_all = prompt_of(self.model, self._options)
        self._listeners = [
            Listener(
                self.tokenizer,
                self._options,
                n_frames=self.mel.n_frames,
                n_text_ctx=self.model.dims.n_text_ctx,
                clips=together,
                prompt=prompt,
                prompt_for_all=prompt_for_all,
            )
            for together in ([[clip] for clip in self._clips] if self._plan.independent else [self._clips])
        ]
        return [self._asker(listener.run()) for listener in self._listeners]

    def _open(self) -> Talk:
        for _ in self.mel.measure():
            yield Pause()
        while self._plan is None:
            try:
                next(self._planning)
                yield Pause()
            except StopIteration as planned:
                self._plan = planned.value
                self._clips = [(round(a * FRAMES_PER_S), round(b * FRAMES_PER_S)) for a, b in planned.value.clips]
        if self._language is None and self.model.is_multilingual and self._clips:
            # whisper listens to the first 30 s of a file, speech or not.
            window = self._clips[0] if self._plan.independent else (0, N_FRAMES)
            self._language, self._probability = yield Recognise(*window)

    def _asker(self, talk: Talk) -> Asker:
        asker = Asker(self, talk)
        self._left.add(asker)
        return asker

    def _spoken(self) -> Iterator[Spoken]:
        for listener in self._listeners:
            yield from (segment for segment in listener.segments if segment.tokens)
            if not listener.over:
                return

    def _segment(self, number: int, spoken: Spoken) -> Segment:
        return Segment(
            id=number,
            start=spoken.start,
            end=spoken.end,
            text=spoken.text,
            confidence=math.exp(min(0.0, spoken.avg_logprob)),
            avg_logprob=spoken.avg_logprob,
            no_speech_prob=spoken.no_speech_prob,
            compression_ratio=spoken.compression_ratio,
            temperature=spoken.temperature,
            seek=spoken.seek,
            tokens=tuple(spoken.tokens),
            logprobs=tuple(self._logprobs(spoken)) if self._options.logprobs else None,
            words=tuple(
                Word(word=word.word, start=word.start, end=word.end, confidence=word.probability)
                for word in spoken.words
            ),
        )

    def _logprobs(self, spoken: Spoken) -> Iterator[TokenLogprob]:
        """Of the text: timestamps are none."""
        for token, logprob in zip(spoken.tokens, spoken.logprobs, strict=True):
            if token < self.tokenizer.eot:
                yield TokenLogprob.of(self.tokenizer.encoding.decode_single_token_bytes(token), logprob)


def prompt_of(model: WhisperModel, options: JobOptions) -> tuple[str | None, bool]:
    """The prompt, and whether every window gets it or the first one only."""
    parts = [part.strip() for part in (options.initial_prompt, options.hotwords) if part and part.strip()]
    if not parts:
        return None, False
    # A special token in a prompt is refused by the tokenizer; without its mark it is text.
    words = " ".join(parts).replace("<|", "<").split(" ")
    if options.hotwords:
        # One that fills the context would leave none for the text before, and whisper would then count backwards.
        encode = model.tokenizer().encode
        while len(encode(" " + " ".join(words))) > model.dims.n_text_ctx // 2 - 2:
            del words[0]
    return " ".join(words), bool(options.hotwords)


def check(model: WhisperModel, options: JobOptions) -> None:
    """Raises JobError when the model cannot do that."""
    if options.task.value == "translate" and not model.can_translate:
        raise JobError(
            f"the model {model.name} cannot translate; use another model, or task=transcribe",
            code="task_not_supported",
        )
    if options.language is not None and options.language not in model.languages:
        knows = "knows English only" if not model.is_multilingual else f"does not know the language {options.language}"
        raise JobError(
            f"the model {model.name} {knows}; use another model, or language=auto", code="language_not_supported"
        )
