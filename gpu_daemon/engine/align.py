"""When each word was said: from what the decoder's attention heads look at (whisper.timing.find_alignment)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from whisper import timing
from whisper.tokenizer import Tokenizer

from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.copies import Copy, sent
from gpu_daemon.engine.spoken import SpokenWord

MEDIAN_WIDTH = 7
STEPS_PER_S = 50

# As whisper has them, but letting other threads run meanwhile.
_backtrace = timing.backtrace
_dtw = numba.njit(nogil=True)(timing.dtw_cpu.py_func)


@dataclass(frozen=True, eq=False, slots=True)
class Text:
    """What was said in a window."""

    tokenizer: Tokenizer
    tokens: tuple[int, ...]
    """Without timestamps."""
    features: Tensor
    """[1500, d]"""
    n_frames: int
    """Of audio in the window, 10 ms each."""


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """What the decoder looked at while it read a text."""

    text_tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    """Of each text token."""
    matrix: npt.NDArray[np.float64]
    """float64[len(text_tokens) + 1, n_steps]: by steps of 20 ms"""


def attend(model: WhisperModel, texts: Sequence[Text]) -> list[Attention]:
    """On the device, which is waited for once."""
    prompts = [
        (*text.tokenizer.sot_sequence, text.tokenizer.no_timestamps, *text.tokens, text.tokenizer.eot) for text in texts
    ]
    longest = max(map(len, prompts))
    padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    features = torch.stack([text.features for text in texts])
    tokens = sent(padded, features.device)
    hidden, watched = model.net.decoder.read(tokens, features, watch=model.alignment_heads)
    looks = torch.stack(watched, dim=1)  # float32[n, n_heads, t, 1500]
    found: list[Tensor] = []
    for number, text in enumerate(texts):
        start, n_text = len(text.tokenizer.sot_sequence), len(text.tokens)
        logits = model.net.decoder.logits(hidden[number, start : start + n_text])[:, : text.tokenizer.eot]
        found.append(logits.softmax(-1).gather(1, tokens[number, start + 1 : start + 1 + n_text, None])[:, 0])
        weights = looks[number, :, : len(prompts[number]), : text.n_frames // 2].softmax(-1)
        std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        matrix = timing.median_filter((weights - mean) / std, MEDIAN_WIDTH).mean(0)
        found.append(matrix[start : start + n_text + 1])
    there = Copy(torch.cat([one.flatten() for one in found])).read().split_with_sizes([one.numel() for one in found])
    return [
        Attention(text.tokens, tuple(probabilities.tolist()), matrix.view(len(text.tokens) + 1, -1).double().numpy())
        for text, probabilities, matrix in zip(texts, there[::2], there[1::2], strict=True)
    ]


def word_timings(attention: Attention, tokenizer: Tokenizer) -> list[SpokenWord]:
    """Of each word, from the start of the window, by dynamic time warping; on the CPU, in any thread."""
    words, word_tokens = tokenizer.split_to_word_tokens([*attention.text_tokens, tokenizer.eot])
    if len(word_tokens) <= 1:  # nothing but the end of text
        return []
    text_steps, time_steps = _dtw(-attention.matrix)
    boundaries = np.pad(np.cumsum([len(tokens) for tokens in word_tokens[:-1]]), (1, 0))
    jumps = np.pad(np.diff(text_steps), (1, 0), constant_values=1).astype(bool)
    times_s = time_steps[jumps] / STEPS_PER_S
    return [
        SpokenWord(
            word,
            tokens,
            float(times_s[begin]),
            float(times_s[end]),
            float(np.mean(attention.probabilities[begin:end])),
        )
        for word, tokens, begin, end in zip(words, word_tokens, boundaries[:-1], boundaries[1:], strict=False)
    ]
