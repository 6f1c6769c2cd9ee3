"""What the two networks are trained on: many sentences of many speakers.

    python -m tests.espeak_speakers.corpus OUT.npz VARIANTS N_SPEAKERS N_SENTENCES SEED

VARIANTS is TRAINED, DEVELOPMENT, INVENTED (of each speaker a new one) or MIXED (TRAINED, and of every other speaker a
new one). OUT has audio int16[n_samples], all sentences end to end, and start, length and speaker int64[n_sentences].
"""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from gpu_daemon.engine.base import Audio
from tests.espeak_speakers import voices
from tests.espeak_speakers.conversations import Conversation, arrange, speaking_order
from tests.espeak_speakers.invented import invent


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


def variants_of(name: str, n_speakers: int, directory: Path, rng: random.Random) -> list[str]:
    """Of each speaker; new ones are put into `directory`, for as long as this process runs."""
    if name not in ("INVENTED", "MIXED"):
        known: tuple[str, ...] = getattr(voices, name)
        return [known[i % len(known)] for i in range(n_speakers)]
    variants = invent(directory, voices.TRAINED, n_speakers, rng)
    os.environ["ESPEAK_DATA_PATH"] = str(directory)
    if name == "MIXED":
        for i in range(0, n_speakers, 2):
            variants[i] = voices.TRAINED[i // 2 % len(voices.TRAINED)]
    return variants


def said_by(who: voices.Speaker, text: str) -> Audio | None:
    """None: there are invented voices that espeak-ng dies of."""
    with contextlib.suppress(RuntimeError, subprocess.CalledProcessError):
        return voices.say(who, text)
    return None


def main() -> None:
    out, of, n_speakers, n_sentences, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    with TemporaryDirectory() as directory:
        variants = variants_of(of, int(n_speakers), Path(directory), rng)
        who = [voices.speaker(rng, variant, ("en", "en", "en", "fr", "ru")) for variant in variants]
        speaking = [i for i in range(len(who)) for _ in range(int(n_sentences))]
        texts = [voices.sentence_of(who[i], rng) for i in speaking]
        with ThreadPoolExecutor() as pool:
            said = [
                (i, samples)
                for i, samples in zip(speaking, pool.map(said_by, [who[i] for i in speaking], texts), strict=True)
                if samples is not None
            ]
    length = np.array([len(samples) for _, samples in said])
    np.savez(
        out,
        audio=np.concatenate([(np.clip(each, -1, 1) * 32767).astype(np.int16) for _, each in said]),
        start=np.cumsum(length) - length,
        length=length,
        speaker=np.unique([i for i, _ in said], return_inverse=True)[1],
    )
    print(f"{len(said)} sentences of {len(who)} speakers, {length.sum() / 16000:.0f} s")


if __name__ == "__main__":
    main()
