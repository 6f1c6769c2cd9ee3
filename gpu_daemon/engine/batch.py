"""Windows that are decoded together, a token for each in every step."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer

from gpu_daemon.engine.beams import Beams, Hypothesis
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.copies import Copy, is_late, sent
from gpu_daemon.engine.graphs import Graphs, Recorder
from gpu_daemon.engine.model import Memory
from gpu_daemon.engine.rows import Rows, Rules, hypothesis, resized, sampled
from gpu_daemon.engine.sequence import Decoded, Sequence

NOISES = 512
"""More than a sequence can have tokens, each of which is drawn with a noise of its own."""
LENGTH_STEP = 64
"""Self-attention reads the past in pieces of so many tokens: few shapes, and little that is read in vain."""
WINDOWS_STEP = 8
"""Recorded steps are of 1, 2, 4 and multiples of so many windows: few shapes, and little that is computed in vain."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step depends on that is not on the device."""

    n_windows: int
    """Those that are computed; beyond those that are taken, what comes out changes nothing."""
    longest: int
    """Tokens of the past that are read."""
    hot: bool
    """Some are drawn at a temperature."""


class Batch:
    """Places for windows of `group` hypotheses each; the taken ones always lie in front.

    Nothing in a step waits for the device: which rows are done is asked one step late, and what they said another. What
    a row that is done says in between does not count.
    """

    def __init__(self, model: WhisperModel, *, group: int, beams: bool, recorder: Recorder | None = None) -> None:
        """`recorder`: of steps; None: each is launched kernel by kernel, as those of beams are in any case."""
        self._net = model.net
        self._dims = model.dims
        self._device = model.net.device
        self._late = is_late(self._device)
        self._tokenizer: Tokenizer = model.tokenizer()
        self._rules = Rules(self._tokenizer, model.dims.n_vocab, self._device)
        self._group = group
        self._capacity = 0
        self._memory = Memory.empty(model.dims, 0, group, model.net.dtype, self._device)
        self._rows = Rows(0, model.dims.n_text_ctx, self._device)
        self._beams: list[Beams] | None = [] if beams else None
        self._recorder = None if beams else recorder
        self._graphs = Graphs(self._recorder)
        self._lengths: list[int] = []
        """Of each window, with its prompt; at least what the device has."""
        self._no_speech = torch.zeros(0, device=self._device)
        self._flags: deque[_Flags] = deque()
        """Of the last steps."""
        self._endings: list[_Ending] = []
        self.sequences: list[Sequence] = []
        """One for each place that is taken."""

    def make_room(self, n: int, *, at_most: int) -> None:
        """For so many more windows; doubled when it is too small, up to `at_most` places in all."""
        needed = len(self.sequences) + n
        if needed <= self._capacity:
            return
        self._capacity = min(at_most, max(needed, 2 * self._capacity))
        n_rows = self._capacity * self._group
        self._graphs = Graphs(self._recorder)  # the others are of memory that is now given back
        self._memory = self._memory.resized(self._capacity)
        self._rows = self._rows.resized(n_rows)
        self._no_speech = resized(self._no_speech, self._capacity)

    def admit(self, sequences: list[Sequence]) -> None:
        """Reads their prompts and says their first tokens; there is room for them."""
        first = len(self.sequences)
        windows = torch.arange(first, first + len(sequences), device=self._device)
        longest = max(len(sequence.prompt) for sequence in sequences)
        padded = [[*sequence.prompt, *[0] * (longest - len(sequence.prompt))] for sequence in sequences]
        prompts = sent(torch.tensor(padded), self._device)
        features = torch.stack([sequence.features for sequence in sequences])
        hidden, _ = self._net.decoder.read(prompts, features, keep=(self._memory, windows))
        asked = sent(torch.tensor([(one.sot_index, len(one.prompt) - 1) for one in sequences]), self._device)
        # float32[n, 2, n_vocab]
        logits = self._net.decoder.logits(hidden.gather(1, asked[:, :, None].expand(-1, -1, hidden.shape[2])))
        self._no_speech[windows] = logits[:, 0].softmax(-1)[:, self._tokenizer.no_speech]
        self.sequences += sequences
        rows = slice(first * self._group, len(self.sequences) * self._group)
        about = torch.tensor([one for sequence in sequences for one in self._start(sequence)], dtype=torch.float64)
        self._rows.start(rows, prompts.repeat_interleave(self._group, dim=0), sent(about, self._device))
        hot = any(sequence.temperature > 0 for sequence in sequences)
        self._say(logits[:, 1].repeat_interleave(self._group, dim=0), rows, hot=hot)
        self._advance(range(first, len(self.sequences)))

    def step(self) -> None:
        """Raises RuntimeError when the device does not go on: without it, nobody would ever be done."""
        shape = self._shape()
        if max(self._lengths) > self._dims.n_text_ctx + LENGTH_STEP:
            raise RuntimeError("a window goes on beyond its limit: the device does not do what it is asked")
        self._graphs.run(shape, lambda: self._step(shape))
        self._advance(range(len(self.sequences)))

    def take_done(self) -> list[Sequence]:
        """Those that have ended, with what was decoded; their places have been free since that was known.

        What was decoded is copied to the host while the next step is on its way, and waited for when there is none.
        """
        due, self._endings = self._endings, []
        ended = [sequence for sequence in self._known_done() if sequence in self.sequences]
        if ended:
            self._endings.append(self._ending(ended))
            for sequence in ended:
                self.drop(sequence)
        if not (self._late and self.sequences):
            due += self._endings
            self._endings = []
        return [sequence for ending in due for sequence in self._heard(ending)]

    def drop(self, sequence: Sequence) -> None:
        if sequence in self.sequences:
            self._free(self.sequences.index(sequence))

    def _start(self, sequence: Sequence) -> list[tuple[int, int, float, int]]:
        """Of each of its hypotheses what `Rows.start` is told; a float64 holds seeds of 40 bits exactly."""
        length = len(sequence.prompt)
        limit = min(length + self._dims.n_text_ctx // 2, self._dims.n_text_ctx + 1)
        self._lengths.append(length)
        if self._beams is not None:
            self._beams.append(Beams(self._group, sequence.prompt, self._rules.eot, limit))
        return [
            (length, limit, sequence.temperature, sequence.seed + hypothesis * NOISES)
            for hypothesis in range(self._group)
        ]

    def _shape(self) -> Shape:
        taken = len(self.sequences)
        few = 1 << (taken - 1).bit_length() if taken <= WINDOWS_STEP else -(-taken // WINDOWS_STEP) * WINDOWS_STEP
        return Shape(
            n_windows=taken if self._recorder is None else min(few, self._capacity),
            longest=min(-(-max(self._lengths) // LENGTH_STEP) * LENGTH_STEP, self._dims.n_text_ctx),
            hot=any(sequence.temperature > 0 for sequence in self.sequences),
        )

    def _step(self, shape: Shape) -> None:
        """May be recorded: what it reads and what it writes is on the device, in the same place each time."""
        rows = slice(0, shape.n_windows * self._group)
        last = (self._rows.length[rows, None] - 1).clamp(min=0)  # nobody's has none
        hidden = self._net.decoder.step(
            self._rows.tokens[rows].gather(1, last)[:, 0],
            last[:, 0].clamp(max=self._dims.n_text_ctx - 1),
            self._memory,
            n_windows=shape.n_windows,
            longest=shape.longest,
        )
        self._say(self._net.decoder.logits(hidden), rows, hot=shape.hot)

    def _say(self, logits: Tensor, rows: slice, *, hot: bool) -> None:
        """`logits`: float32[n, n_vocab] of these rows."""
        self._rules.apply(logits, self._rows, rows)
        if self._beams is not None:
            self._say_beams(logits.log_softmax(-1), range(rows.start // self._group, rows.stop // self._group))
            return
        tokens = sampled(logits, self._rows, rows) if hot else logits.argmax(-1)
        logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        self._rows.say(rows, tokens, logprobs, eot=self._rules.eot, first_stamp=self._rules.first_stamp)

    def _say_beams(self, logprobs: Tensor, windows: range) -> None:
        """Beam search looks at its candidates on the host, as the reference does."""
        assert self._beams is not None
        rows = slice(windows.start * self._group, windows.stop * self._group)
        best = logprobs.topk(self._group + 1)
        # In one copy: each waits for the device.
        sums, of_each = torch.stack((self._rows.sum_logprob[rows, None] + best.values, best.values)).tolist()
        candidates = best.indices.tolist()
        sources, tokens, scores, done = [], [], [], []
        for number, window in enumerate(windows):
            here = slice(number * self._group, (number + 1) * self._group)
            beams = self._beams[window]
            step = beams.advance(candidates[here], sums[here], of_each[here])
            sources += [window * self._group + source for source in step.sources]
            tokens += step.tokens
            scores += step.scores
            done += [beams.done] * self._group
        source = torch.tensor(sources, device=self._device)
        self._rows.move(source, rows)
        longest = max(self._lengths[window] for window in windows)
        self._memory.past[:, :, rows, :, :longest] = self._memory.past[:, :, source, :, :longest]
        said = torch.tensor(tokens, device=self._device)
        nothing = torch.zeros(len(tokens), device=self._device)
        self._rows.say(rows, said, nothing, eot=self._rules.eot, first_stamp=self._rules.first_stamp)
        self._rows.sum_logprob[rows] = torch.tensor(scores, device=self._device)
        self._rows.done[rows] = torch.tensor(done, device=self._device)

    def _advance(self, windows: range) -> None:
        """These have said one more token."""
        for window in windows:
            self._lengths[window] += 1
        done = self._rows.done[: len(self.sequences) * self._group].view(-1, self._group).all(1)
        self._flags.append(_Flags(tuple(self.sequences), Copy(done)))

    def _known_done(self) -> list[Sequence]:
        """By the last flags that there is no need to wait for: those of the last step are on their way, so that the
        device always has something to do."""
        known = None
        while len(self._flags) > self._late:
            known = self._flags.popleft()
        return [] if known is None else known.read()

    def _ending(self, sequences: list[Sequence]) -> "_Ending":
        windows = [self.sequences.index(sequence) for sequence in sequences]
        rows = [window * self._group + hypothesis for window in windows for hypothesis in range(self._group)]
        return _Ending(
            sequences,
            said=Copy(self._rows.said(sent(torch.tensor(rows), self._device))),
            no_speech=Copy(self._no_speech[sent(torch.tensor(windows), self._device)]),
            beams=None if self._beams is None else [self._beams[window] for window in windows],
        )

    def _heard(self, ending: "_Ending") -> list[Sequence]:
        """With what was decoded: the likeliest by its length, which is without the end of text."""
        eot = self._rules.eot
        for number, sequence in enumerate(ending.sequences):
            best = max(
                ending.hypotheses(number, self._group),
                key=lambda one: one.sum_logprob / max(1, len(_until(one.tokens, eot))),
            )
            sequence.decoded = Decoded(
                tokens=tuple(_until(best.tokens, eot)),
                sum_logprob=best.sum_logprob,
                no_speech_prob=ending.no_speech.read()[number].item(),
                logprobs=tuple(best.logprobs) if sequence.logprobs else (),
            )
        return ending.sequences

    def _free(self, window: int) -> None:
        """The last one moves into its place."""
        last = len(self.sequences) - 1
        here, there = (slice(at * self._group, (at + 1) * self._group) for at in (window, last))
        if window != last:
            self._memory.move(last, window)
            self._no_speech[window] = self._no_speech[last]
            self._rows.move(there, here)
        self._rows.done[there].fill_(True)
        self.sequences[window] = self.sequences[last]
        self._lengths[window] = self._lengths[last]
        del self.sequences[last], self._lengths[last]
        if self._beams is not None:
            self._beams[window] = self._beams[last]
            del self._beams[last]


@dataclass(frozen=True, eq=False, slots=True)
class _Flags:
    """Which windows were done after a step."""

    sequences: tuple[Sequence, ...]
    done: Copy
    """bool[n_windows]"""

    def read(self) -> list[Sequence]:
        return [sequence for sequence, done in zip(self.sequences, self.done.read().tolist(), strict=True) if done]


@dataclass(frozen=True, eq=False, slots=True)
class _Ending:
    """What was decoded of windows that ended in the same step, on its way to the host."""

    sequences: list[Sequence]
    said: Copy
    """Of each of their rows (`Rows.said`)."""
    no_speech: Copy
    """float32[n_windows]"""
    beams: list[Beams] | None

    def hypotheses(self, number: int, group: int) -> list[Hypothesis]:
        if self.beams is not None:
            return self.beams[number].hypotheses()
        sequence, said = self.sequences[number], self.said.read()[number * group : (number + 1) * group]
        return [hypothesis(row, len(sequence.prompt), logprobs=sequence.logprobs) for row in said]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
