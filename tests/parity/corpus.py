"""What is listened to: more than an hour of speech, noise, tones and silence, made by espeak-ng and numpy from seeds.

Nothing of it is kept in the repository. What was made lies in .cache/parity, by the hash of the recipe.
"""

import hashlib
import inspect
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

import tests.espeak_whisper.corpus
import tests.speech
from gpu_daemon.engine.base import Audio
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_whisper.corpus import speak
from tests.speech import PAUSES_S, conversation, dialogue, joined

CACHE = Path(__file__).parents[2] / ".cache" / "parity"
FULL_SCALE = 32768

FOREIGN = {
    "garbage-prose": (
        "en-us",
        "Nevertheless, the committee postponed its deliberations until Thursday. "
        "Photosynthesis converts carbon dioxide into glucose. Please forward the invoice to accounting! "
        "Was it really necessary to dismantle the carburettor? Seventeen umbrellas vanished from the lighthouse. "
        "Our negotiations collapsed because nobody remembered the password. Thunder rolled over the archipelago, "
        "while musicians rehearsed an unfamiliar overture.",
    ),
    "garbage-german": (
        "de",
        "Der Zug nach Braunschweig fährt heute leider nicht. Bitte beachten Sie die Durchsagen am Bahnsteig. "
        "Gestern habe ich zwölf verschiedene Äpfel gekauft und keinen einzigen gegessen. "
        "Können Sie mir sagen, wo die nächste Apotheke ist? Vielen herzlichen Dank für Ihre Unterstützung.",
    ),
    "garbage-spanish": (
        "es",
        "Mañana por la mañana iremos al mercado de las flores. No entiendo por qué la ventana está abierta. "
        "Los ingenieros construyeron un puente sobre el desfiladero."
        "¿Quieres tomar un café conmigo después del trabajo?",
    ),
}
"""Outside the demo model's vocabulary: its log probabilities are low there, and it is sent to fallback."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    name: str
    samples: Audio
    """Of 16 bits, so that rounding errors of one machine are not another file on the next."""
    text: str
    """What is said; empty when nothing is."""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.samples.tobytes()).hexdigest()


Made = tuple[Audio, str]
"""Samples, and what is said in them."""


@cache
def recording(name: str) -> Recording:
    directory = CACHE / recipe_hash()
    path = directory / f"{name}.npz"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        samples, text = RECIPES[name]()
        pcm = np.round(np.clip(samples, -1, 1 - 1 / FULL_SCALE) * FULL_SCALE).astype(np.int16)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as part:
            np.savez(part, pcm=pcm, text=json.dumps(text))
        os.replace(part.name, path)  # several processes may be making it
    with np.load(path) as stored:
        samples = stored["pcm"].astype(np.float32) / np.float32(FULL_SCALE)
        return Recording(name, samples, json.loads(str(stored["text"])))


@cache
def recipe_hash() -> str:
    recipe = hashlib.sha256(subprocess.run(["espeak-ng", "--version"], capture_output=True, check=True).stdout)
    for module in (inspect.getmodule(recording), tests.speech, tests.espeak_whisper.corpus):
        assert module is not None
        recipe.update(inspect.getsource(module).encode())
    return recipe.hexdigest()[:16]


# Parts.


def spoken(
    language: str,
    seed: int,
    n_sentences: int,
    *,
    pauses_s: tuple[float, float] | None = None,
    lead_silence_s: float = 0.0,
) -> Made:
    said = conversation(language, seed, n_sentences, pauses_s=pauses_s, lead_silence_s=lead_silence_s)
    return said.samples, said.text


def in_turn(language: str, seed: int, n_sentences: int) -> Made:
    said = dialogue(language, seed, n_sentences)
    return said.samples, said.text


def in_sequence(*parts: Made) -> Made:
    return np.concatenate([samples for samples, _ in parts]), " ".join(text for _, text in parts if text)


def silence(duration_s: float) -> Made:
    return np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32), ""


def white_noise(duration_s: float, level: float, seed: int) -> Made:
    noise = np.random.default_rng(seed).standard_normal(round(duration_s * SAMPLE_RATE_HZ))
    return (noise * level).astype(np.float32), ""


def pink_noise(duration_s: float, level: float, seed: int) -> Made:
    n_samples = round(duration_s * SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(n_samples))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), n_samples)
    return (noise / noise.std() * level).astype(np.float32), ""


def tone(frequencies_hz: tuple[float, ...], duration_s: float, level: float = 0.2) -> Made:
    times_s = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    fade = np.minimum(1, 50 * np.minimum(times_s, times_s[::-1]))
    waves = sum(np.sin(2 * np.pi * frequency_hz * times_s) for frequency_hz in frequencies_hz)
    return (waves * fade * level / len(frequencies_hz)).astype(np.float32), ""


def chords(duration_s: float, seed: int) -> Made:
    """Triads with overtones, two a second."""
    rng = random.Random(seed)
    parts = []
    for _ in range(round(duration_s * 2)):
        root_hz = 110 * 2 ** (rng.randrange(24) / 12)
        third = rng.choice((3, 4))
        notes_hz = [root_hz * 2 ** (step / 12) for step in (0, third, 7)]
        parts.append(tone(tuple(note_hz * overtone for note_hz in notes_hz for overtone in (1, 2, 3)), 0.5, 0.5))
    return in_sequence(*parts)


def over(first: Made, second: Made, gain: float = 1.0) -> Made:
    """Both at once. What is said is that of the first."""
    mixed = np.zeros(max(len(first[0]), len(second[0])), np.float32)
    mixed[: len(first[0])] = first[0]
    mixed[: len(second[0])] += second[0] * np.float32(gain)
    return mixed, first[1]


def louder(made: Made, gain: float) -> Made:
    return made[0] * np.float32(gain), made[1]


def of_length(made: Made, n_samples: int) -> Made:
    samples = np.zeros(n_samples, np.float32)
    kept = made[0][:n_samples]
    samples[: len(kept)] = kept
    return samples, made[1]


def mixed_languages(seed: int, n_sentences: int) -> Made:
    parts = []
    for number in range(n_sentences):
        language = ("en", "fr", "ru")[number % 3]
        parts += [spoken(language, seed + number, 1), silence(PAUSES_S[language][0])]
    return in_sequence(*parts)


def repeated(text: str, voice: str, times: int) -> Made:
    said = [(text, speak(text, voice, 150, 50))] * times
    together = joined("en", said, [0.2] * times)
    return together.samples, together.text


def foreign(name: str) -> Made:
    voice, text = FOREIGN[name]
    return speak(text, voice, 150, 50), text


def telephone(made: Made) -> Made:
    """300 to 3400 Hz."""
    spectrum = np.fft.rfft(made[0])
    frequencies_hz = np.fft.rfftfreq(len(made[0]), 1 / SAMPLE_RATE_HZ)
    spectrum[(frequencies_hz < 300) | (frequencies_hz > 3400)] = 0
    return np.fft.irfft(spectrum, len(made[0])).astype(np.float32), made[1]


def spoken_in_one_voice(seed: int, n_sentences: int, words_per_minute: int, pitch: int) -> Made:
    rng = random.Random(seed)
    texts = [tests.espeak_whisper.corpus.sentence("en", rng) for _ in range(n_sentences)]
    together = joined(
        "en", [(text, speak(text, "en-us", words_per_minute, pitch)) for text in texts], [0.5] * len(texts)
    )
    return together.samples, together.text


HALF_MINUTE = 30 * SAMPLE_RATE_HZ

RECIPES: dict[str, Callable[[], Made]] = {
    # Talks.
    "en-talk": lambda: spoken("en", 700_001, 40),
    "fr-talk": lambda: spoken("fr", 700_002, 40),
    "ru-talk": lambda: spoken("ru", 700_003, 30),
    "en-long": lambda: spoken("en", 700_004, 330),
    "fr-long": lambda: spoken("fr", 700_005, 120),
    "ru-long": lambda: spoken("ru", 700_006, 70, pauses_s=(1.5, 4.0)),
    "en-dialogue": lambda: in_turn("en", 700_007, 30),
    "fr-dialogue": lambda: in_turn("fr", 700_008, 20),
    "ru-dialogue": lambda: in_turn("ru", 700_009, 12),
    "mixed": lambda: mixed_languages(700_010, 30),
    "en-sentence": lambda: spoken("en", 700_050, 1),
    "fr-sentence": lambda: spoken("fr", 700_051, 1),
    "ru-sentence": lambda: spoken("ru", 700_052, 1),
    # Paces.
    "en-pauses": lambda: spoken("en", 700_060, 16, pauses_s=(4.0, 20.0)),
    "fr-pauses": lambda: spoken("fr", 700_061, 10, pauses_s=(10.0, 40.0)),
    "en-dense": lambda: spoken("en", 700_062, 40, pauses_s=(0.02, 0.1)),
    "ru-dense": lambda: spoken("ru", 700_063, 16, pauses_s=(0.1, 0.3)),
    "en-fast": lambda: spoken_in_one_voice(700_064, 20, 260, 50),
    "en-slow": lambda: spoken_in_one_voice(700_065, 15, 90, 20),
    "after-silence": lambda: spoken("en", 700_066, 12, lead_silence_s=75.0),
    "silence-inside": lambda: in_sequence(spoken("fr", 700_067, 8), silence(70), spoken("fr", 700_068, 8)),
    # What is hard to hear.
    "en-noise": lambda: over(spoken("en", 700_070, 30), white_noise(80, 0.01, 1)),
    "fr-noise": lambda: over(spoken("fr", 700_071, 30), pink_noise(80, 0.02, 2)),
    "en-chords": lambda: over(spoken("en", 700_072, 20), chords(60, 3), 0.15),
    "overlapping": lambda: over(spoken("en", 700_073, 20), spoken("en", 700_074, 20)),
    "overlapping-languages": lambda: over(spoken("fr", 700_075, 15), spoken("ru", 700_076, 15), 0.5),
    "en-quiet": lambda: louder(spoken("en", 700_077, 15), 0.003),
    "en-clipped": lambda: louder(spoken("en", 700_078, 15), 15.0),
    "en-telephone": lambda: telephone(spoken("en", 700_079, 30)),
    "repeated": lambda: repeated("The black dog sees the young doctor.", "en-us", 30),
    "repeated-numbers": lambda: repeated("Number two two two two.", "en-gb+f2", 25),
    **{name: lambda name=name: foreign(name) for name in FOREIGN},  # type: ignore[misc]
    # Without speech.
    "white-noise": lambda: white_noise(45, 0.1, 4),
    "white-noise-faint": lambda: white_noise(20, 0.002, 5),
    "pink-noise": lambda: pink_noise(65, 0.1, 6),
    "tones": lambda: in_sequence(*(tone((220.0 * 2 ** (step / 4),), 2.0) for step in range(16))),
    "chords": lambda: chords(40, 7),
    "silence": lambda: silence(65),
    "silence-short": lambda: silence(5),
    "all-kinds": lambda: in_sequence(
        chords(12, 8), spoken("en", 700_080, 6), silence(8), white_noise(10, 0.05, 9), spoken("ru", 700_081, 4)
    ),
    # Lengths.
    "one-sample": lambda: of_length(white_noise(1, 0.1, 10), 1),
    "one-hop": lambda: of_length(spoken("en", 700_090, 1), 160),
    "50ms": lambda: of_length(spoken("en", 700_091, 1), SAMPLE_RATE_HZ // 20),
    "500ms": lambda: of_length(spoken("en", 700_092, 1), SAMPLE_RATE_HZ // 2),
    "1s": lambda: of_length(spoken("en", 700_093, 1), SAMPLE_RATE_HZ),
    "30s": lambda: of_length(spoken("en", 700_094, 12), HALF_MINUTE),
    "30s-less-one": lambda: of_length(spoken("fr", 700_095, 12), HALF_MINUTE - 1),
    "30s-and-one": lambda: of_length(spoken("en", 700_096, 12), HALF_MINUTE + 1),
    "30s-and-a-bit": lambda: of_length(spoken("en", 700_097, 14), HALF_MINUTE + 5000),
    "60s": lambda: of_length(spoken("en", 700_098, 24), 2 * HALF_MINUTE),
}
