"""What the two networks are trained on: many sentences of many speakers.

    python -m tests.espeak_speakers.corpus OUT.npz VARIANTS N_SPEAKERS N_SENTENCES SEED

VARIANTS is TRAINED, DEVELOPMENT or HELD_OUT. OUT has audio int16[n_samples], all sentences end to end, and
start, length and speaker int64[n_sentences].
"""

import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpu_daemon.engine.base import Audio
from tests.espeak_speakers import voices
from tests.espeak_speakers.conversations import Conversation, arrange, speaking_order


class Corpus:
    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self._audio: npt.NDArray[np.int16] = file["audio"]
            self._start: npt.NDArray[np.int64] = file["start"]
            self._length: npt.NDArray[np.int64] = file["length"]
            self.speaker: npt.NDArray[np.int64] = file["speaker"]
        self.n_speakers = int(self.speaker.max()) + 1
        self.sentences_of = [np.flatnonzero(self.speaker == each).tolist() for each in range(self.n_speakers)]

    def sentence(self, i: int) -> Audio:
        """float32[n_samples]"""
        start = self._start[i]
        return self._audio[start : start + self._length[i]].astype(np.float32) / np.float32(32768)

    def conversation(self, rng: random.Random, who: Sequence[int], duration_s: float) -> Conversation:
        """Of the speakers `who`; speaker n of a turn is `who[n]`."""
        order = speaking_order(rng, len(who), round(duration_s / 1.2) + 4)
        chosen = [rng.choice(self.sentences_of[who[each]]) for each in order]
        return arrange(rng, order, lambda i: ("", self.sentence(chosen[i])), duration_s)

    def new_voices(self, rng: random.Random, who: Sequence[int], duration_s: float) -> Conversation:
        """As `conversation`, but everybody has a throat of another size: there are more voices than speakers."""
        order = speaking_order(rng, len(who), round(duration_s / 1.2) + 4)
        chosen = [rng.choice(self.sentences_of[who[each]]) for each in order]
        sizes = [rng.uniform(0.88, 1.14) for _ in who]

        def sentence_at(i: int) -> tuple[str, Audio]:
            samples = self.sentence(chosen[i])
            at = np.arange(0, len(samples) - 1, 1 / sizes[order[i]])
            return "", np.interp(at, np.arange(len(samples)), samples).astype(np.float32)

        return arrange(rng, order, sentence_at, duration_s)


def main() -> None:
    out, of, n_speakers, n_sentences, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    variants: tuple[str, ...] = getattr(voices, of)
    who = [
        voices.speaker(rng, variants[i % len(variants)], ("en", "en", "en", "fr", "ru")) for i in range(int(n_speakers))
    ]
    speaking = [i for i in range(len(who)) for _ in range(int(n_sentences))]
    texts = [voices.sentence_of(who[i], rng) for i in speaking]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(voices.say, [who[i] for i in speaking], texts))
    length = np.array([len(each) for each in said])
    np.savez(
        out,
        audio=np.concatenate([(np.clip(each, -1, 1) * 32767).astype(np.int16) for each in said]),
        start=np.cumsum(length) - length,
        length=length,
        speaker=speaking,
    )
    print(f"{len(said)} sentences of {len(who)} speakers, {length.sum() / 16000:.0f} s")


if __name__ == "__main__":
    main()
