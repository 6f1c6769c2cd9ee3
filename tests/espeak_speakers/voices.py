"""Who speaks: an espeak-ng voice with a variant, a pitch, a rate and a size of the throat.

The variants are split three ways, so that nobody who is trained on is tested with.
"""

import random
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from gpu_daemon.engine.base import Audio
from tests.espeak_whisper.corpus import sentence


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HELD_OUT = _names("Andrea david Henrique Jacky Marco belinda ed f4 m5 norbert paul victor klatt3 Lee quincy grandma")
"""For evaluation and tests alone."""
DEVELOPMENT = _names("Diogo zac linda m7 f1 sandro pablo")
"""For the choice of the clustering's parameters."""
TRAINED = _names(
    "Hugo Alex Alicia Andy Annie antonio aunty benjamin boris caleb Denis edward edward2 Gene Gene2 gustave iven "
    "iven2 iven3 iven4 john kaukovalta marcelo Mario max Michael michel miguel Mike Nguyen pedro RicishayMax "
    "RicishayMax2 RicishayMax3 rob robert robosoft robosoft2 robosoft3 robosoft5 robosoft7 robosoft8 steph "
    "steph2 steph3 Storm Tweaky UniRobot anika AnxiousAndy f2 f3 f5 grandpa klatt klatt2 klatt4 klatt5 klatt6 "
    "m1 m2 m3 m4 m6 m8 shelby travis croak adam whisper whisperf"
)
ACCENTS = {
    "en": (
        "en-us",
        "en-us",
        "en",
        "en",
        "en-gb-x-rp",
        "en-gb-scotland",
        "en-029",
        "en-gb-x-gbclan",
        "en-gb-x-gbcwmd",
    ),
    "fr": ("fr",),
    "ru": ("ru",),
}
"""Names of espeak-ng's files: it takes "en-gb" and "fr-fr" too, and then leaves the variant out without a word."""


class Speaker(NamedTuple):
    language: str
    voice: str
    """As espeak-ng's -v takes it."""
    pitch: int
    words_per_minute: int
    size: float
    """Above 1: a longer throat, which is a lower pitch, lower formants and slower speech."""


def speaker(rng: random.Random, variant: str, languages: Sequence[str] = ("en",)) -> Speaker:
    language = rng.choice(languages)
    voice = f"{rng.choice(ACCENTS[language])}+{variant}"
    return Speaker(
        language, voice, rng.randint(20, 80), rng.randint(130, 190), rng.choice((0.88, 0.94, 1.0, 1.0, 1.06, 1.12))
    )


def sentence_of(who: Speaker, rng: random.Random) -> str:
    return str(sentence(who.language, rng))


def say(who: Speaker, text: str) -> Audio:
    """float32[n_samples] at 16 kHz, silence trimmed at both ends; RuntimeError when espeak-ng says nothing."""
    command = ["espeak-ng", "-v", who.voice, "-s", str(who.words_per_minute), "-p", str(who.pitch), "--stdout", text]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    at_22050_hz = np.frombuffer(wav[44 : len(wav) - len(wav) % 2], dtype="<i2").astype(np.float32) / 32768
    samples = resample_poly(at_22050_hz, round(320 * who.size), 441).astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.008)
    if not len(loud):
        raise RuntimeError(f"{who.voice} said nothing of {text!r}")
    spoken: Audio = samples[max(0, loud[0] - 160) : loud[-1] + 320]
    return spoken
