"""Windows that are decoded together, a token for each in every step."""

from collections import deque

import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer

from gpu_daemon.engine.beams import Beams, Hypothesis
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.model import Memory
from gpu_daemon.engine.rows import Rows, Rules, resized, sampled
from gpu_daemon.engine.sequence import Decoded, Sequence

NOISES = 512
"""More than a sequence can have tokens, each of which is drawn with a noise of its own."""
LENGTH_STEP = 64
"""Self-attention reads the past in pieces of so many tokens: few shapes, and little that is read in vain."""


class Batch:
    """Places for windows of `group` hypotheses each; the taken ones always lie in front.

    Nothing in a step waits for the device: which rows are done is asked one step late, and what a row that is done says
    in between does not count.
    """

    def __init__(self, model: WhisperModel, *, group: int, beams: bool) -> None:
        self._net = model.net
        self._dims = model.dims
        self._device = model.net.device
        self._tokenizer: Tokenizer = model.tokenizer()
        self._rules = Rules(self._tokenizer, model.dims.n_vocab, self._device)
        self._group = group
        self._capacity = 0
        self._memory = Memory.empty(model.dims, 0, group, model.net.dtype, self._device)
        self._rows = Rows(0, model.dims.n_text_ctx, self._device)
        self._beams: list[Beams] | None = [] if beams else None
        self._lengths: list[int] = []
        """Of each window, with its prompt; at least what the device has."""
        self._no_speech = torch.zeros(0, device=self._device)
        self._flags = _Flags(self._device)
        self.sequences: list[Sequence] = []
        """One for each place that is taken."""

    def make_room(self, n: int, *, at_most: int) -> None:
        """For so many more windows; doubled when it is too small, up to `at_most` places in all."""
        needed = len(self.sequences) + n
        if needed <= self._capacity:
            return
        self._capacity = min(at_most, max(needed, 2 * self._capacity))
        n_rows = self._capacity * self._group
        self._memory = self._memory.resized(self._capacity)
        self._rows = self._rows.resized(n_rows)
        self._no_speech = resized(self._no_speech, self._capacity)

    def admit(self, sequences: list[Sequence]) -> None:
        """Reads their prompts and says their first tokens; there is room for them."""
        first = len(self.sequences)
        windows = torch.arange(first, first + len(sequences), device=self._device)
        longest = max(len(sequence.prompt) for sequence in sequences)
        prompts = torch.tensor(
            [[*sequence.prompt, *[0] * (longest - len(sequence.prompt))] for sequence in sequences],
            device=self._device,
        )
        features = torch.stack([sequence.features for sequence in sequences])
        hidden, _ = self._net.decoder.read(prompts, features, keep=(self._memory, windows))
        asked = torch.tensor([(one.sot_index, len(one.prompt) - 1) for one in sequences], device=self._device)
        # float32[n, 2, n_vocab]
        logits = self._net.decoder.logits(hidden.gather(1, asked[:, :, None].expand(-1, -1, hidden.shape[2])))
        self._no_speech[windows] = logits[:, 0].softmax(-1)[:, self._tokenizer.no_speech]
        self.sequences += sequences
        rows = slice(first * self._group, len(self.sequences) * self._group)
        about = torch.tensor([one for sequence in sequences for one in self._start(sequence)], dtype=torch.float64)
        self._rows.start(rows, prompts.repeat_interleave(self._group, dim=0), about.to(self._device))
        self._say(logits[:, 1].repeat_interleave(self._group, dim=0), rows)

    def step(self) -> None:
        n_rows = len(self.sequences) * self._group
        rows, last = slice(0, n_rows), self._rows.length[:n_rows, None] - 1
        positions = last[:, 0].clamp(max=self._dims.n_text_ctx - 1)
        longest = min(-(-max(self._lengths) // LENGTH_STEP) * LENGTH_STEP, self._dims.n_text_ctx)
        hidden = self._net.decoder.step(
            self._rows.tokens[rows].gather(1, last)[:, 0],
            positions,
            self._memory,
            n_windows=len(self.sequences),
            longest=longest,
        )
        self._say(self._net.decoder.logits(hidden), rows)

    def take_done(self) -> list[Sequence]:
        """Those that have ended, with what was decoded; their places are free."""
        ended = [window for window, done in enumerate(self._flags.read()) if done]
        for window in ended:
            self.sequences[window].decoded = self._decoded(window)
        taken = [self.sequences[window] for window in ended]
        for window in reversed(ended):
            self._free(window)
        return taken

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

    def _say(self, logits: Tensor, rows: slice) -> None:
        """`logits`: float32[n, n_vocab] of these rows."""
        self._rules.apply(logits, self._rows, rows)
        windows = range(rows.start // self._group, rows.stop // self._group)
        if self._beams is not None:
            self._say_beams(logits.log_softmax(-1), windows)
        else:
            hot = any(self.sequences[window].temperature > 0 for window in windows)
            tokens = sampled(logits, self._rows, rows) if hot else logits.argmax(-1)
            logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            self._rows.say(rows, tokens, logprobs, eot=self._rules.eot, first_stamp=self._rules.first_stamp)
        for window in windows:
            self._lengths[window] += 1
        n_rows = len(self.sequences) * self._group
        self._flags.write(self._rows.done[:n_rows].view(-1, self._group).all(1))

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

    def _decoded(self, window: int) -> Decoded:
        """The likeliest by its length, which is without the end of text."""
        found = self._said(window) if self._beams is None else self._beams[window].hypotheses()
        eot, sequence = self._rules.eot, self.sequences[window]
        best = max(found, key=lambda one: one.sum_logprob / max(1, len(_until(one.tokens, eot))))
        return Decoded(
            tokens=tuple(_until(best.tokens, eot)),
            sum_logprob=best.sum_logprob,
            no_speech_prob=self._no_speech[window].item(),
            logprobs=tuple(best.logprobs) if sequence.logprobs else (),
        )

    def _said(self, window: int) -> list[Hypothesis]:
        """Of a window without beams."""
        rows, begin = slice(window * self._group, (window + 1) * self._group), len(self.sequences[window].prompt)
        tokens, ends = self._rows.tokens[rows].tolist(), self._rows.length[rows].tolist()
        asked = self.sequences[window].logprobs  # a copy from the device, otherwise made for nobody
        logprobs = self._rows.logprobs[rows].tolist() if asked else [[] for _ in ends]
        return [
            Hypothesis(tokens=tokens[row][begin:end], sum_logprob=sum_logprob, logprobs=logprobs[row][begin:end])
            for row, (end, sum_logprob) in enumerate(zip(ends, self._rows.sum_logprob[rows].tolist(), strict=True))
        ]

    def _free(self, window: int) -> None:
        """The last one moves into its place."""
        last = len(self.sequences) - 1
        if window != last:
            self._memory.move(last, window)
            self._no_speech[window] = self._no_speech[last]
            here, there = (slice(at * self._group, (at + 1) * self._group) for at in (window, last))
            self._rows.move(there, here)
        self._flags.forget()
        self.sequences[window] = self.sequences[last]
        self._lengths[window] = self._lengths[last]
        del self.sequences[last], self._lengths[last]
        if self._beams is not None:
            self._beams[window] = self._beams[last]
            del self._beams[last]


class _Flags:
    """Which windows are done, on the host; valid until they change places.

    Those of a step are read when the next one is on its way already: the device always has something to do.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cpu = device.type == "cpu"
        self._steps: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def write(self, done: Tensor) -> None:
        """bool[n_windows]"""
        if self._is_cpu:
            self._steps = deque([(done, None)])
            return
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch is half typed
        self._steps.append(
            (torch.empty_like(done, device="cpu", pin_memory=True).copy_(done, non_blocking=True), copied)
        )
        copied.record()

    def read(self) -> list[bool]:
        """[]: it is too early to ask."""
        if len(self._steps) < (1 if self._is_cpu else 2):
            return []
        flags, copied = self._steps.popleft()
        if copied is not None:
            copied.synchronize()
        done: list[bool] = flags.tolist()
        return done

    def forget(self) -> None:
        self._steps.clear()


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
