"""Conversations whose turns are known: who says what, from when to when, with pauses and some overlap."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from gpu_daemon.engine.base import Audio
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_speakers.voices import HELD_OUT, say, sentence_of, speaker


class Turn(NamedTuple):
    """A sentence."""

    start_s: float
    end_s: float
    speaker: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    samples: Audio
    """float32[n_samples] at 16 kHz, read-only: tests share it."""
    turns: tuple[Turn, ...]
    """By start. At most two speak at once."""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


@cache
def conversation(
    seed: int, n_speakers: int, duration_s: float, *, variants: Sequence[str] = HELD_OUT, overlaps: bool = True
) -> Conversation:
    """English; the same arguments give the same samples. The voices are of `n_speakers` different variants."""
    rng = random.Random(seed)
    who = [speaker(rng, variant) for variant in rng.sample(variants, n_speakers)]
    # More than there can be room for: the order must not depend on how long a sentence takes.
    order = speaking_order(rng, n_speakers, round(duration_s / 1.2) + 4)
    texts = [sentence_of(who[each], rng) for each in order]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(say, [who[each] for each in order], texts))
    return arrange(rng, order, lambda i: (texts[i], said[i]), duration_s, overlaps=overlaps)


def speaking_order(rng: random.Random, n_speakers: int, n_sentences: int) -> list[int]:
    """One to three sentences each; everybody speaks early."""
    order: list[int] = []
    waiting = list(range(n_speakers))
    while len(order) < n_sentences:
        others = waiting or [each for each in range(n_speakers) if n_speakers == 1 or each != order[-1]]
        chosen = rng.choice(others)
        if waiting:
            waiting.remove(chosen)
        order += [chosen] * rng.choice((1, 1, 1, 2, 2, 3))
    return order[:n_sentences]


def arrange(
    rng: random.Random,
    order: Sequence[int],
    sentence_at: Callable[[int], tuple[str, Audio]],
    duration_s: float,
    *,
    overlaps: bool = True,
) -> Conversation:
    """What is said in `order` on one time line; who has no room left before `duration_s` is left out."""
    n_samples = round(duration_s * SAMPLE_RATE_HZ)
    samples = np.zeros(n_samples, np.float32)
    gains = {each: 10 ** (rng.uniform(-9, 0) / 20) for each in sorted(set(order))}
    turns: list[Turn] = []
    cursor = round(rng.uniform(0.0, 1.5) * SAMPLE_RATE_HZ)  # the end of the last turn
    alone_from = cursor  # where the last speaker has nobody beside them any more
    for i, who in enumerate(order):
        text, speech = sentence_at(i)
        pause = round(_pause_s(rng, who == order[i - 1], overlaps) * SAMPLE_RATE_HZ) if i else 0
        start = cursor + max(pause, -int(0.6 * min(len(speech), cursor - alone_from)))
        end = start + len(speech)
        if end > n_samples:
            break
        samples[start:end] += speech * gains[who]
        turns.append(Turn(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, who, text))
        cursor, alone_from = end, max(start, cursor)
    level = rng.choice((0.0, 0.0, 10 ** (rng.uniform(-70, -50) / 20)))
    samples += np.random.default_rng(rng.randrange(2**32)).standard_normal(n_samples, np.float32) * np.float32(level)
    samples *= 0.9 / max(0.9, float(np.abs(samples).max()))
    samples.flags.writeable = False
    return Conversation(samples, tuple(turns))


def _pause_s(rng: random.Random, same_speaker: bool, overlaps: bool) -> float:
    """Below 0: the next one speaks before the last one ends."""
    kind = rng.random()
    if same_speaker:
        return rng.uniform(0.1, 0.6)
    if kind < 0.2 and overlaps:
        return -rng.uniform(0.3, 1.5)
    if kind < 0.9:
        return rng.uniform(0.1, 1.2)
    return rng.uniform(1.2, 4.0)
