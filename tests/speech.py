"""Spoken test material whose words and times are known, and how far a transcript is from them.

`python -m tests.speech conversation|dialogue LANGUAGE SEED SENTENCES OUT` writes OUT, whose suffix names the container,
and OUT's neighbour .txt, which says what is said in a line per sentence.
"""

import atexit
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jiwer
import numpy as np

from gpu_daemon.audio.ffmpeg import find_ffmpeg
from gpu_daemon.engine.base import Audio
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_whisper.corpus import VOICES, sentence, speak, utterance

Container = Literal["wav", "mp3", "m4a", "ogg", "flac", "webm", "mp4", "telephone"]
CONTAINERS: tuple[Container, ...] = get_args(Container)

LOWEST_SEED = 500_000
"""The demo checkpoint has heard the seeds below in training."""
PAUSES_S = {"en": (0.3, 1.2), "fr": (0.3, 1.2), "ru": (1.0, 2.5)}
"""Russian from so small a vocabulary is compressible: thirty dense seconds of it look like a repetition to Whisper."""
TRAILING_SILENCE_S = 0.5

_ENCODED_AS: dict[Container, list[str]] = {
    "wav": ["-ar", "44100", "-ac", "2", "-f", "wav"],
    "mp3": ["-ar", "44100", "-ac", "2", "-b:a", "64k", "-f", "mp3"],
    "m4a": ["-ar", "44100", "-b:a", "64k", "-f", "ipod"],
    "ogg": ["-c:a", "libopus", "-b:a", "32k", "-f", "ogg"],
    "flac": ["-f", "flac"],
    "webm": ["-c:a", "libopus", "-b:a", "32k", "-f", "webm"],
    "mp4": ["-c:v", "mpeg4", "-shortest", "-ar", "48000", "-ac", "2", "-b:a", "96k", "-f", "mp4"],
    "telephone": ["-ar", "8000", "-c:a", "pcm_mulaw", "-f", "wav"],
}


class Sentence(NamedTuple):
    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    language: str
    samples: Audio
    """Read-only: tests share it."""
    sentences: tuple[Sentence, ...]
    encoded: dict[Container, Path] = field(default_factory=dict)
    """What `write` has made of it."""

    @property
    def text(self) -> str:
        return " ".join(each.text for each in self.sentences)

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


@cache
def conversation(
    language: str,
    seed: int,
    n_sentences: int,
    *,
    pauses_s: tuple[float, float] | None = None,
    lead_silence_s: float = 0.0,
) -> Spoken:
    """Sentences in changing voices with pauses between them; the same arguments give the same samples."""
    if seed < LOWEST_SEED:
        raise ValueError(f"seeds below {LOWEST_SEED} may have been trained on")
    seeds = range(seed * 1000, seed * 1000 + n_sentences)
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda each: utterance(language, each), seeds))
    rng = random.Random(seed)
    pauses = [rng.uniform(*(pauses_s or PAUSES_S[language])) for _ in said]
    return joined(language, [(text, speech) for _, text, _, speech in said], pauses, lead_silence_s)


@cache
def dialogue(language: str, seed: int, n_sentences: int) -> Spoken:
    """A man and a woman, in turn."""
    rng = random.Random(seed)
    voices = [f"{rng.choice(VOICES[language])}+{variant}" for variant in ("m3", "f2")]
    texts = [sentence(language, rng) for _ in range(n_sentences)]
    said = [(text, speak(text, voices[turn % 2], 150, 50)) for turn, text in enumerate(texts)]
    return joined(language, said, [rng.uniform(0.5, 1.2) for _ in said])


def joined(
    language: str, said: Sequence[tuple[str, Audio]], pauses_s: Sequence[float], lead_silence_s: float = 0.0
) -> Spoken:
    """`pauses_s` come after each but the last."""
    parts: list[Audio] = []
    sentences: list[Sentence] = []

    def silence(duration_s: float) -> None:
        parts.append(np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32))

    def position_s() -> float:
        return sum(map(len, parts)) / SAMPLE_RATE_HZ

    silence(lead_silence_s)
    for (text, speech), pause_s in zip(said, pauses_s, strict=True):
        start_s = position_s()
        parts.append(speech)
        sentences.append(Sentence(text, start_s, position_s()))
        silence(pause_s)
    parts[-1] = np.zeros(round(TRAILING_SILENCE_S * SAMPLE_RATE_HZ), np.float32)
    samples = np.concatenate(parts)
    samples.flags.writeable = False
    return Spoken(language, samples, tuple(sentences))


def write(spoken: Spoken, path: Path, container: Container) -> Path:
    """`path` need not end in the container's suffix: the daemon goes by what is inside."""
    if container not in spoken.encoded:
        encoded = Path(tempfile.mkdtemp(dir=_directory())) / container
        _encode(spoken.samples, encoded, container)
        spoken.encoded[container] = encoded
    shutil.copyfile(spoken.encoded[container], path)
    return path


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Case and punctuation do not count. 0 is perfect; it may be over 1."""
    words = _words(reference)
    if not words:
        raise ValueError("a reference without words has no error rate")
    return float(jiwer.wer(words, _words(hypothesis)))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@cache
def _directory() -> Path:
    """Encoded once for a whole run of the tests."""
    directory = Path(tempfile.mkdtemp(prefix="gpu-daemon-speech-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _encode(samples: Audio, path: Path, container: Container) -> None:
    picture = ["-f", "lavfi", "-i", "testsrc=size=96x64:rate=5"] if container == "mp4" else []
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    subprocess.run(
        [
            *(find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y"),
            *("-f", "s16le", "-ar", str(SAMPLE_RATE_HZ), "-ac", "1", "-i", "pipe:0"),
            *picture,
            *_ENCODED_AS[container],
            path,
        ],
        input=pcm,
        check=True,
    )


def main() -> None:
    kind, language, seed, n_sentences, name = sys.argv[1:]
    make = {"conversation": conversation, "dialogue": dialogue}[kind]
    spoken, out = make(language, int(seed), int(n_sentences)), Path(name)
    (container,) = (known for known in CONTAINERS if f".{known}" == out.suffix)
    write(spoken, out, container)
    out.with_suffix(".txt").write_text("".join(f"{each.text}\n" for each in spoken.sentences))


if __name__ == "__main__":
    main()
