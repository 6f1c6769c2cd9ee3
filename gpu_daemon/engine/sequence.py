"""One window to be decoded once: what goes in, and what came out."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    tokens: tuple[int, ...]
    """Without the prompt and the end of text."""
    sum_logprob: float
    """Of the tokens and, if it was reached, the end of text; after the rules of what may be said, before the heat."""
    no_speech_prob: float
    logprobs: tuple[float, ...] = ()
    """What `sum_logprob` is the sum of, where somebody asked."""


@dataclass(eq=False, kw_only=True, slots=True)
class Sequence:
    prompt: tuple[int, ...]
    sot_index: int
    """Of `<|startoftranscript|>` in the prompt."""
    features: Tensor
    """[1500, d]"""
    temperature: float
    seed: int
    """Of the noise that samples are drawn with."""
    logprobs: bool = False
    """Those of single tokens are asked for."""
    decoded: Decoded | None = None
