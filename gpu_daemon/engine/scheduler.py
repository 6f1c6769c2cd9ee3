"""Who is computed next: windows of all files of one model, batched.

In the manner of nano-vllm: a Sequence is a window to be decoded, the Batch holds those that are, and this decides which
window is encoded, which gets a place, and what happens when memory runs out. Everything runs in the thread that calls
`step`, but for the alignment of words, which takes no device.
"""

from collections import Counter, deque
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu_daemon import clock
from gpu_daemon.engine.align import Text, attend, word_timings
from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.faults import is_sticky
from gpu_daemon.engine.graphs import Recorder
from gpu_daemon.engine.listen import Align, Decode, Question
from gpu_daemon.engine.sequence import Sequence
from gpu_daemon.engine.spoken import SpokenWord
from gpu_daemon.engine.transcription import Asker, Pause, Recognise, WhisperTranscription
from gpu_daemon.errors import JobError

STEP_S = 0.25
"""So long a step goes on at most, unless a single layer takes longer."""
PAUSED_S = 0.05
"""So much of a step goes to what needs no device, while there is something that does."""


@dataclass(eq=False, slots=True)
class Limits:
    """What fits into the memory of the device: halved each time that it does not, and kept while the process lives."""

    windows: int
    """Decoded at once."""
    encoded: int
    """Encoded at once."""

    def halve(self) -> bool:
        """False: they cannot get smaller."""
        smallest = self.windows == self.encoded == 1
        self.windows, self.encoded = max(1, self.windows // 2), max(1, self.encoded // 2)
        return not smallest


Kind = tuple[int, bool]
"""Hypotheses of a window, and whether they are beams: what shares a batch."""
GREEDY: Kind = (1, False)


def _kind(question: Decode) -> Kind:
    return question.group, question.beams


@dataclass(frozen=True, eq=False, slots=True)
class _Encoding:
    windows: list[tuple[WhisperTranscription, tuple[int, int]]]
    layers: Generator[None, None, Tensor]


class Scheduler:
    def __init__(
        self, model: WhisperModel, limits: Limits, threads: ThreadPoolExecutor, recorder: Recorder | None = None
    ) -> None:
        self.model = model
        self.encoded_windows = 0
        self.transcriptions: list[WhisperTranscription] = []
        self._limits = limits
        self._threads = threads
        self._recorder = recorder
        self._paused: deque[Asker] = deque()
        self._recognising: deque[tuple[Asker, Recognise]] = deque()
        self._waiting: deque[tuple[Asker, Decode]] = deque()
        self._decoding: dict[Sequence, tuple[Asker, Decode]] = {}
        self._aligning: deque[tuple[Asker, Align]] = deque()
        self._timing: dict[Future[list[SpokenWord]], Asker] = {}
        self._encoding: _Encoding | None = None
        self._batches: dict[Kind, Batch] = {}

    def add(self, transcription: WhisperTranscription) -> None:
        self.transcriptions.append(transcription)
        self._paused.append(transcription.begin())

    @torch.inference_mode()
    def drop(self, transcription: WhisperTranscription) -> None:
        self.transcriptions = [one for one in self.transcriptions if one is not transcription]
        self._paused = deque(one for one in self._paused if one.of is not transcription)
        self._recognising = deque(one for one in self._recognising if one[0].of is not transcription)
        self._waiting = deque(one for one in self._waiting if one[0].of is not transcription)
        self._aligning = deque(one for one in self._aligning if one[0].of is not transcription)
        self._timing = {future: one for future, one in self._timing.items() if one.of is not transcription}
        for sequence, (asker, _) in list(self._decoding.items()):
            if asker.of is transcription:
                del self._decoding[sequence]
                for batch in self._batches.values():
                    batch.drop(sequence)
        if not self.transcriptions:
            self._batches.clear()

    def step(self) -> None:
        try:
            with torch.inference_mode():
                self._step(clock.monotonic() + STEP_S)
            return
        except torch.OutOfMemoryError:
            pass  # handled below: inside this clause the traceback would keep the tensors of the failed work alive
        self._shrink()

    def _step(self, until_s: float) -> None:
        self._hear_from_threads()
        self._go_on_after_pauses(until_s)
        self._encode(until_s)
        if self._encoding is None:
            self._recognise()
            self._admit()
            self._decode(until_s)
            self._align()

    # Conversations.

    def _answer(self, asker: Asker, answer: Any) -> None:
        """An error in what follows from it ends that file alone."""
        if asker.of not in self.transcriptions:
            return
        try:
            question = asker.talk.send(answer)
        except StopIteration:
            for successor in asker.of.ends(asker):
                self._answer(successor, None)
            asker.of.forget(asker.window)
            if asker.of.ended:
                self.drop(asker.of)
        except Exception as error:
            if is_sticky(error):
                raise
            self._fail(asker.of, error)
        else:
            self._ask(asker, question)

    def _ask(self, asker: Asker, question: Question | Pause | Recognise) -> None:
        match question:
            case Pause():
                self._paused.append(asker)
            case Recognise():
                self._turn_to(asker, (question.start, question.end))
                self._recognising.append((asker, question))
            case Decode():
                self._turn_to(asker, (question.start, question.end))
                self._waiting.append((asker, question))
            case Align():
                self._aligning.append((asker, question))

    def _fail(self, transcription: WhisperTranscription, error: Exception) -> None:
        transcription.fail(error)
        self.drop(transcription)

    def _turn_to(self, asker: Asker, window: tuple[int, int]) -> None:
        before, asker.window = asker.window, window
        asker.of.forget(before)

    # Work, one kind after the other.

    def _hear_from_threads(self) -> None:
        if not self._timing:
            return
        idle = not (self._paused or self._recognising or self._waiting or self._decoding or self._aligning)
        wait(self._timing, timeout=STEP_S if idle else 0, return_when=FIRST_COMPLETED)
        for future in [future for future in self._timing if future.done()]:
            asker = self._timing.pop(future)
            try:
                words = future.result()
            except Exception as error:
                self._fail(asker.of, error)
            else:
                self._answer(asker, words)

    def _go_on_after_pauses(self, until_s: float) -> None:
        """Each in turn."""
        if self._recognising or self._waiting or self._decoding or self._aligning:
            until_s = min(until_s, clock.monotonic() + PAUSED_S)
        while self._paused and clock.monotonic() < until_s:
            self._answer(self._paused.popleft(), None)

    def _encode(self, until_s: float) -> None:
        """A layer at a time: a large model on a CPU takes long for all of them. All who will have a place come first: a
        step of the decoder takes as long for few as for many."""
        while clock.monotonic() < until_s:
            if self._encoding is None:
                wanted = self._to_encode()
                if not wanted:
                    return
                mel = torch.stack([transcription.mel.frames(*window) for transcription, window in wanted])
                self._encoding = _Encoding(wanted, self.model.net.encoder.layers(mel.to(self.model.net.dtype)))
            try:
                next(self._encoding.layers)
            except StopIteration as encoded:
                for number, (transcription, window) in enumerate(self._encoding.windows):
                    transcription.features[window] = encoded.value[number]
                self.encoded_windows += len(self._encoding.windows)
                self._encoding = None

    def _to_encode(self) -> list[tuple[WhisperTranscription, tuple[int, int]]]:
        """Of those who ask for a language, and of those who will have a place."""
        asking: list[Asker] = [asker for asker, _ in self._recognising]
        free = {kind: self._n_free(kind) for kind in {_kind(question) for _, question in self._waiting}}
        for asker, question in self._in_turn():
            free[_kind(question)] -= 1
            if free[_kind(question)] >= 0:
                asking.append(asker)
        wanted: list[tuple[WhisperTranscription, tuple[int, int]]] = []
        for asker in asking:
            assert asker.window is not None
            if asker.window not in asker.of.features and (asker.of, asker.window) not in wanted:
                wanted.append((asker.of, asker.window))
        return wanted[: self._limits.encoded]

    def _in_turn(self) -> list[tuple[Asker, Decode]]:
        """One window of each file before a second of any: a file may ask for hundreds at once."""
        count = Counter(asker.of for asker, _ in self._decoding.values())
        turns = []
        for item in self._waiting:
            turns.append((count[item[0].of], item))
            count[item[0].of] += 1
        return [item for _, item in sorted(turns, key=lambda turn: turn[0])]

    def _recognise(self) -> None:
        ready = [(asker, asked) for asker, asked in self._recognising if asker.window in asker.of.features]
        if not ready:
            return
        features = torch.stack([asker.of.features[asked.start, asked.end] for asker, asked in ready])
        tokenizer = self.model.tokenizer()
        tokens = torch.full((len(ready), 1), tokenizer.sot, device=features.device)
        hidden, _ = self.model.net.decoder.read(tokens, features)
        languages = list(tokenizer.all_language_tokens)
        probabilities = self.model.net.decoder.logits(hidden[:, 0])[:, languages].softmax(-1).tolist()
        self._recognising = deque(item for item in self._recognising if item not in ready)
        for (asker, _), of_each in zip(ready, probabilities, strict=True):
            best = max(range(len(languages)), key=of_each.__getitem__)
            self._answer(asker, (tokenizer.all_language_codes[best], of_each[best]))

    def _admit(self) -> None:
        by_kind: dict[Kind, list[tuple[Asker, Decode]]] = {}
        for asker, question in self._in_turn():
            together = by_kind.setdefault(_kind(question), [])
            if asker.window in asker.of.features and len(together) < self._n_free(_kind(question)):
                together.append((asker, question))
        for kind, admitted in by_kind.items():
            if admitted:
                self._waiting = deque(item for item in self._waiting if item not in admitted)
                self._admit_to(kind, admitted)

    def _admit_to(self, kind: Kind, admitted: list[tuple[Asker, Decode]]) -> None:
        sequences = {
            Sequence(
                prompt=question.prompt,
                sot_index=question.sot_index,
                features=asker.of.features[question.start, question.end],
                temperature=question.temperature,
                seed=question.seed,
                logprobs=question.logprobs,
            ): (asker, question)
            for asker, question in admitted
        }
        self._decoding |= sequences
        batch = self._batches.get(kind)
        if batch is None:
            batch = self._batches[kind] = Batch(self.model, group=kind[0], beams=kind[1], recorder=self._recorder)
        batch.make_room(len(sequences), at_most=self._capacity(kind))
        batch.admit(list(sequences))

    def _capacity(self, kind: Kind) -> int:
        """In windows."""
        return max(1, self._limits.windows // kind[0])

    def _n_free(self, kind: Kind) -> int:
        batch = self._batches.get(kind)
        return self._capacity(kind) - (0 if batch is None else len(batch.sequences))

    def _decode(self, until_s: float) -> None:
        """Until somebody is done: then there may be a place for another."""
        for kind, batch in list(self._batches.items()):
            done = batch.take_done()
            while batch.sequences and not done and clock.monotonic() < until_s:
                batch.step()
                done = batch.take_done()
            if not batch.sequences and kind != GREEDY:
                self._batches.pop(kind, None)
            for sequence in done:
                if sequence in self._decoding:  # nor has its file been dropped since
                    asker, _ = self._decoding.pop(sequence)
                    self._answer(asker, sequence.decoded)

    def _align(self) -> None:
        together = list(self._aligning)[: self._limits.encoded]
        if not together:
            return
        texts = []
        for asker, asked in together:
            assert asker.window is not None
            features = asker.of.features[asker.window]
            texts.append(Text(asker.of.tokenizer, asked.text_tokens, features, asked.n_frames))
        looked = attend(self.model, texts)
        for (asker, _), text, attention in zip(together, texts, looked, strict=True):
            self._aligning.popleft()
            self._timing[self._threads.submit(word_timings, attention, text.tokenizer)] = asker

    # Memory.

    def _shrink(self) -> None:
        """Smaller batches from now on; what was being decoded is decoded again, from its start."""
        in_hand = list(self._decoding.values())
        busy = self._encoding.windows if self._encoding is not None else []
        self._encoding = None
        self._decoding.clear()
        self._batches.clear()
        self._waiting.extendleft(reversed(in_hand))
        if not self._limits.halve():
            transcription = in_hand[0][0].of if in_hand else busy[0][0] if busy else self.transcriptions[0]
            self._fail(transcription, JobError("the GPU ran out of memory", code="gpu_oom", retryable=True))
        if self.model.net.device.type == "cuda":
            torch.cuda.empty_cache()
