"""What is known of each hypothesis in a batch, and what it may say next: on the device, for all rows at once."""

import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer

from gpu_daemon.engine.beams import Hypothesis

MAX_FIRST_STAMP = 50
"""A window's first segment begins within 1 s: steps of 20 ms."""
NONE = -1

At = Tensor | slice
"""Which rows: int64[n], or a slice."""


class Rows:
    """Tensors of [n_rows], a state of a hypothesis each."""

    def __init__(self, n_rows: int, n_text_ctx: int, device: torch.device) -> None:
        def empty(dtype: torch.dtype) -> Tensor:
            return torch.zeros(n_rows, dtype=dtype, device=device)

        self.tokens = torch.zeros(n_rows, n_text_ctx + 2, dtype=torch.int64, device=device)
        """int64[n_rows, n_text_ctx + 2]: the prompt, what was said, and a place for what a row says that is done"""
        self.logprobs = torch.zeros_like(self.tokens, dtype=torch.float32)
        """float32[n_rows, n_text_ctx + 2]: of each token that was said; what stands elsewhere means nothing"""
        self.length = empty(torch.int64)
        self.begin = empty(torch.int64)
        """Length of the prompt."""
        self.limit = empty(torch.int64)
        """Done at this length."""
        self.last_stamp = empty(torch.int64)
        """In steps of 20 ms; NONE."""
        self.in_stamp = empty(torch.bool)
        """The last token is a timestamp."""
        self.after_stamp = empty(torch.bool)
        """The last but one is, or there is none."""
        self.done = empty(torch.bool).fill_(True)
        """So is a row that nobody has: it may be computed with the others, and stays as it is."""
        self.sum_logprob = empty(torch.float32)
        self.temperature = empty(torch.float32)
        self.seed = empty(torch.int64)

    def resized(self, n_rows: int) -> "Rows":
        rows = Rows(0, 0, self.done.device)
        for name, tensor in vars(self).items():
            setattr(rows, name, resized(tensor, n_rows))
        rows.done[len(self.done) :].fill_(True)
        return rows

    def start(self, rows: slice, prompts: Tensor, about: Tensor) -> None:
        """`prompts`: int64[n, t], padded on the right; `about`: float64[n, 4], the length of its prompt, its limit,
        temperature and seed for each row: in one tensor, as each copy from the host waits for the device."""
        self.tokens[rows, : prompts.shape[1]] = prompts
        length, limit, temperature, seed = about.unbind(1)
        self.length[rows], self.begin[rows] = length, length
        self.limit[rows], self.temperature[rows], self.seed[rows] = limit, temperature, seed
        self.last_stamp[rows].fill_(NONE)
        self.in_stamp[rows].fill_(True)  # so that the first token, which is one, counts as the second of a pair
        self.after_stamp[rows].fill_(False)
        self.done[rows].fill_(False)
        self.sum_logprob[rows].fill_(0.0)

    def move(self, source: At, target: At) -> None:
        for tensor in vars(self).values():
            tensor[target] = tensor[source].clone()

    def say(self, at: slice, tokens: Tensor, logprobs: Tensor, *, eot: int, first_stamp: int) -> None:
        """`tokens`: int64[n]; `logprobs`: float32[n]. Rows that are done stay as they are."""
        done, length = self.done[at], self.length[at]
        self.sum_logprob[at] += torch.where(done, 0.0, logprobs)
        self.tokens[at].scatter_(1, length[:, None], torch.where(done, eot, tokens)[:, None])
        self.logprobs[at].scatter_(1, length[:, None], logprobs[:, None])
        is_stamp = tokens >= first_stamp
        self.last_stamp[at] = torch.where(is_stamp, tokens - first_stamp, self.last_stamp[at])
        self.after_stamp[at] = self.in_stamp[at]
        self.in_stamp[at] = is_stamp
        self.length[at] = length = torch.where(done, length, length + 1)
        self.done[at] = done | (tokens == eot) | (length >= self.limit[at])

    def said(self, at: Tensor) -> Tensor:
        """`at`: int64[n]. Their tokens, log-probabilities, length and sum, which a float64 holds exactly: float64[n,
        2 * (n_text_ctx + 2) + 2], one tensor, as each has a way of its own to the host."""
        columns = (self.tokens[at], self.logprobs[at], self.length[at, None], self.sum_logprob[at, None])
        return torch.cat([column.double() for column in columns], dim=1)


def hypothesis(said: Tensor, begin: int, *, logprobs: bool) -> Hypothesis:
    """Of a row of `Rows.said`, on the host; `begin`: the length of its prompt."""
    width, end = (len(said) - 2) // 2, int(said[-2].item())
    return Hypothesis(
        tokens=said[begin:end].long().tolist(),
        sum_logprob=said[-1].item(),
        logprobs=said[width + begin : width + end].tolist() if logprobs else [],
    )


class Rules:
    """The logit filters of whisper.decoding as it sets them for transcription with timestamps.

    (SuppressBlank is left out: the first token is a timestamp anyway.)
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, device: torch.device) -> None:
        self.eot: int = tokenizer.eot
        self.first_stamp: int = tokenizer.timestamp_begin
        special = (tokenizer.transcribe, tokenizer.translate, tokenizer.sot, tokenizer.sot_prev, tokenizer.sot_lm)
        never = [*tokenizer.non_speech_tokens, *special, tokenizer.no_speech, tokenizer.no_timestamps]
        self._never = torch.zeros(n_vocab, device=device)
        self._never[never] = -torch.inf
        self._stamps = torch.arange(n_vocab - self.first_stamp, device=device)

    def apply(self, logits: Tensor, rows: Rows, at: At) -> None:
        """Sets what may not be said to -inf in `logits`: float32[n, n_vocab]."""
        first = rows.length[at] == rows.begin[at]
        in_stamp, after_stamp = rows.in_stamp[at] & ~first, rows.after_stamp[at]
        begins, ends = in_stamp & after_stamp, in_stamp & ~after_stamp  # a segment
        logits += self._never
        text, stamps = logits[:, : self.first_stamp], logits[:, self.first_stamp :]
        text[:, : self.eot].masked_fill_(ends[:, None], -torch.inf)
        text.masked_fill_(first[:, None], -torch.inf)
        # Time does not go back, and a segment does not end where it began.
        lowest = torch.where(ends, rows.last_stamp[at], rows.last_stamp[at] + 1)
        highest = torch.where(first, MAX_FIRST_STAMP, torch.where(begins, NONE, len(self._stamps)))
        stamps.masked_fill_((self._stamps < lowest[:, None]) | (self._stamps > highest[:, None]), -torch.inf)
        # When some timestamp is likelier than any one word, it is a timestamp.
        text.masked_fill_((stamps.logsumexp(-1) > text.amax(-1))[:, None], -torch.inf)


def sampled(logits: Tensor, rows: Rows, at: At) -> Tensor:
    """int64[n]: for each row a token drawn at its temperature (Gumbel-max), the likeliest at 0."""
    temperature = rows.temperature[at]
    noise = gumbel(rows.seed[at] + rows.length[at], logits.shape[-1])
    hot = (logits / temperature.clamp(min=1e-6)[:, None] + noise).argmax(-1)
    return torch.where(temperature > 0, hot, logits.argmax(-1))


def gumbel(seeds: Tensor, n: int) -> Tensor:
    """float32[len(seeds), n] of noise that depends on its seed alone: not on the rows beside it, nor on the device.

    The hash is the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
    """
    x = (seeds[:, None] << 20) + torch.arange(n, device=seeds.device)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * (factor - (1 << 64))
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    uniform = (((x >> 40) & ((1 << 24) - 1)).float() + 0.5) / (1 << 24)
    uniform = uniform.clamp(max=1 - 2**-24)  # the highest is rounded to 1, whose noise is infinite
    return -(-uniform.log()).log()


def resized(tensor: Tensor, n: int) -> Tensor:
    """With `n` entries in its first dimension, those that it had in front."""
    result = tensor.new_zeros(n, *tensor.shape[1:])
    kept = min(n, len(tensor))
    result[:kept] = tensor[:kept]
    return result
