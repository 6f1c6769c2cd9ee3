"""What is asked of each recording."""

from dataclasses import dataclass
from typing import Any

from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.jobs.model import JobOptions
from tests.parity.corpus import RECIPES
from tests.parity.random_weights import random_weights
from tests.runners import demo

DEMO_MODEL = "demo"

COLDEST = (0.0,)
"""No fallback: nothing is left to chance, so that whole files can be compared."""

VARIANTS: dict[str, dict[str, Any]] = {
    "coldest": {"temperature": COLDEST},
    "default": {},
    "words": {"temperature": COLDEST, "word_timestamps": True},
    "words-default": {"word_timestamps": True},
    "words-translate": {"temperature": COLDEST, "word_timestamps": True, "task": "translate"},
    "unconditioned": {"temperature": COLDEST, "condition_on_previous_text": False},
    "unconditioned-default": {"condition_on_previous_text": False},
    "prompt": {"temperature": COLDEST, "initial_prompt": "My friend is happy. Le chat noir."},
    "hotwords": {"temperature": COLDEST, "hotwords": "doctor, garden, happy letter"},
    "hotwords-long": {"temperature": COLDEST, "hotwords": "the quiet garden of my old friend, " * 20},
    "beam": {"temperature": COLDEST, "beam_size": 5},
    "beam-default": {"beam_size": 5},
    "beam-2-words": {"temperature": COLDEST, "beam_size": 2, "word_timestamps": True},
    "strict": {"temperature": COLDEST, "no_speech_threshold": 0.02, "logprob_threshold": -0.05},
    "suspicious": {"temperature": COLDEST, "word_timestamps": True, "hallucination_silence_threshold": 1.0},
    "hot": {"temperature": (0.6,)},
    "hot-best-of": {"temperature": (0.6,), "best_of": 3},
    "translate": {"temperature": COLDEST, "task": "translate"},
    "as-english": {"temperature": COLDEST, "language": "en"},
    "as-russian": {"temperature": COLDEST, "language": "ru", "condition_on_previous_text": False},
}

WITHOUT_FALLBACK = {
    "default": "coldest",
    "words-default": "words",
    "unconditioned-default": "unconditioned",
    "beam-default": "beam",
}

_RANDOM = ("coldest", "words", "prompt", "beam")
_SHORT = ("en-sentence", "one-sample", "one-hop", "50ms", "500ms", "1s")
_MIDDLE = ("fr-dialogue", "mixed", "all-kinds", "30s", "60s", "after-silence")
_HARD = ("overlapping", "garbage-prose", "repeated")
_OF: dict[str, tuple[str, ...]] = {
    "default": tuple(RECIPES),
    "coldest": tuple(RECIPES),
    "words": tuple(RECIPES),
    "words-default": (*_MIDDLE, "garbage-german"),
    "words-translate": ("fr-dialogue", "mixed"),
    "unconditioned": (*_MIDDLE, *_HARD, "ru-talk"),
    "unconditioned-default": (*_HARD, "mixed"),
    "prompt": (*_SHORT, *_MIDDLE, *_HARD, "fr-talk"),
    "hotwords": (*_SHORT, *_MIDDLE, *_HARD),
    "hotwords-long": ("60s", "garbage-prose"),
    "beam": (*_SHORT, *_MIDDLE, *_HARD),
    "beam-default": ("mixed", "garbage-german"),
    "beam-2-words": ("mixed", "60s", "all-kinds"),
    "strict": (*_MIDDLE, *_HARD, "silence-inside", "pink-noise"),
    "suspicious": (*_MIDDLE, *_HARD, "silence-inside", "overlapping-languages"),
    "hot": ("en-sentence", "fr-dialogue", "60s"),
    "hot-best-of": ("en-sentence", "60s"),
    "translate": (*_SHORT, *_MIDDLE),
    "as-english": (*_MIDDLE, *_HARD),
    "as-russian": (*_MIDDLE, "ru-talk", "garbage-spanish"),
}


@dataclass(frozen=True, slots=True)
class Case:
    recording: str
    variant: str
    model: str = DEMO_MODEL

    def __str__(self) -> str:
        return "/".join((self.recording, self.variant, *([] if self.model == DEMO_MODEL else [self.model])))

    @property
    def options(self) -> JobOptions:
        return JobOptions.model_validate({"model": self.model, **VARIANTS[self.variant]})

    @property
    def spec(self) -> ModelSpec:
        return demo() if self.model == DEMO_MODEL else random_weights(self.model)


CASES = tuple(Case(recording, variant) for variant, recordings in _OF.items() for recording in recordings)

RANDOM_CASES = (
    *(Case(recording, variant, "random-tiny") for recording in ("30s-and-a-bit", "500ms") for variant in _RANDOM),
    *(Case("all-kinds", variant, "random-base") for variant in _RANDOM),
    Case("30s", "words", "random-turbo"),
)
"""Of checkpoints with openai's shapes."""
