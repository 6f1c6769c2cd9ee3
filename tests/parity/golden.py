"""What `whisper.transcribe` heard, kept so that a test need not listen again.

`python -m tests.parity.golden` listens to the whole corpus (minutes; what it has heard before lies in .cache/parity)
and writes golden.json.gz: the pinned openai-whisper, the demo checkpoint, one thread, float32 on a CPU.
"""

import gzip
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
import whisper
from whisper.decoding import DecodingResult

from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.transcript.model import Record, Segment
from gpu_daemon.transcript.quality import HIGH_COMPRESSION_RATIO, LOW_AVG_LOGPROB
from tests.parity import reference
from tests.parity.case import CASES, VARIANTS, WITHOUT_FALLBACK, Case
from tests.parity.corpus import CACHE, recording
from tests.parity.reference import Heard, Window
from tests.runners import DEMO
from tests.speech import word_error_rate

PATH = Path(__file__).with_name("golden.json.gz")
SEEDS = range(2)
"""Where chance has a part, the reference is asked as often: how far it is from itself is how far we may be."""
HIGH_NO_SPEECH_PROB = 0.6
WORDS_OF_NOTHING = 10
"""An error rate where nothing is said: so many words are 1."""


class Golden(Record):
    sha256: str
    """Of the recording's samples."""
    heard: Heard
    errors: tuple[float, ...] = ()
    """How far the text is from what was said, for each seed, where chance has a part."""
    wants_fallback: bool | None = None
    """A window would be decoded again, hotter, if that were allowed. Not kept in golden.json.gz."""


Goldens = dict[str, Golden]
"""By the case's name."""


def error_rate(said: str, text: str) -> float:
    """The word error rate; where nothing was said, the words heard, each as a tenth."""
    return word_error_rate(said, text) if said else len(text.split()) / WORDS_OF_NOTHING


@cache
def load() -> Goldens:
    content = json.loads(gzip.decompress(PATH.read_bytes()))
    return {name: _unpacked(packed) for name, packed in content.items()}


def golden(case: Case) -> Golden:
    """As it was stored; heard now where this machine's espeak-ng says the recording otherwise."""
    stored = load().get(str(case))
    if stored is not None and stored.sha256 == recording(case.recording).sha256:
        return stored
    return listen(case)


def listen(case: Case) -> Golden:
    """What the reference hears now; from .cache/parity if it did so before."""
    heard_from = recording(case.recording)
    asked = hashlib.sha256(f"{heard_from.sha256} {VARIANTS[case.variant]}".encode()).hexdigest()[:16]
    path = CACHE / f"heard-{_setting(case.spec)}" / f"{case.recording}-{case.variant}-{asked}.json"
    if not path.exists():
        result = _as_cold(case) or _listen(case)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(result.model_dump_json())
        part.rename(path)
    return Golden.model_validate_json(path.read_text())


def _as_cold(case: Case) -> Golden | None:
    """Where no window is sent to fallback, the ladder of temperatures changes nothing."""
    if case.variant not in WITHOUT_FALLBACK:
        return None
    cold = listen(Case(case.recording, WITHOUT_FALLBACK[case.variant]))
    return cold if cold.wants_fallback is False else None


def _listen(case: Case) -> Golden:
    model, heard_from = reference.load(case.spec.path), recording(case.recording)
    heard, attempts = reference.listen(model, heard_from.samples, case.options)
    heards = [heard]
    if heard.random_from is not None:
        heards += [reference.listen(model, heard_from.samples, case.options, seed=seed)[0] for seed in SEEDS[1:]]
    return Golden(
        sha256=heard_from.sha256,
        heard=heard,
        errors=tuple(error_rate(heard_from.text, each.text) for each in heards) if len(heards) > 1 else (),
        wants_fallback=any(_wants_fallback(attempt.result) for attempt in attempts),
    )


def _wants_fallback(result: DecodingResult) -> bool:
    """As whisper.transcribe judges it."""
    is_unlikely = bool(result.avg_logprob < LOW_AVG_LOGPROB)
    if is_unlikely and result.no_speech_prob > HIGH_NO_SPEECH_PROB:
        return False
    return is_unlikely or bool(result.compression_ratio > HIGH_COMPRESSION_RATIO)


@cache
def _setting(spec: ModelSpec) -> str:
    """What else than samples and options makes a hearing what it is."""
    setting = hashlib.sha256(f"{whisper.__version__} {torch.__version__}".encode())
    setting.update(DEMO.read_bytes() if spec.path == DEMO else spec.path.name.encode())
    setting.update(Path(reference.__file__).read_bytes())
    return setting.hexdigest()[:16]


# A record in the file is a list: names would be most of it.

_SEGMENT_FIELDS = (
    *("start", "end", "text", "seek", "tokens", "words", "temperature"),
    *("confidence", "avg_logprob", "no_speech_prob", "compression_ratio"),
)
_WORD_FIELDS = ("word", "start", "end", "confidence")


def _packed(golden: Golden) -> dict[str, Any]:
    heard = golden.heard.model_dump(mode="json")
    segments = [
        [
            [[word[name] for name in _WORD_FIELDS] for word in segment["words"]] if name == "words" else segment[name]
            for name in _SEGMENT_FIELDS
        ]
        for segment in heard["segments"]
    ]
    windows = [[window["seek"], *window["temperatures"]] for window in heard["windows"]]
    return {
        "sha256": golden.sha256,
        "errors": golden.errors,
        "language": [heard["language"], heard["language_probability"]],
        "windows": windows,
        "segments": segments,
    }


def _unpacked(packed: dict[str, Any]) -> Golden:
    language, probability = packed["language"]
    segments = []
    for number, values in enumerate(packed["segments"]):
        fields = dict(zip(_SEGMENT_FIELDS, values, strict=True))
        fields["words"] = tuple(dict(zip(_WORD_FIELDS, word, strict=True)) for word in fields["words"])
        segments.append(Segment.model_validate({"id": number, **fields}))
    return Golden(
        sha256=packed["sha256"],
        errors=tuple(packed["errors"]),
        heard=Heard(
            language=language,
            language_probability=probability,
            segments=tuple(segments),
            windows=tuple(Window(seek=seek, temperatures=tuple(tried)) for seek, *tried in packed["windows"]),
        ),
    )


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    goldens: dict[str, Any] = {}
    order = tuple(VARIANTS)
    cold_first = sorted(CASES, key=lambda case: (order.index(case.variant), -recording(case.recording).duration_s))
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
    ) as pool:
        for case, result in zip(cold_first, pool.map(listen, cold_first), strict=True):
            goldens[str(case)] = _packed(result)
            by_chance = result.heard.random_from
            note = "" if by_chance is None else f"by chance from {by_chance / 100:.2f} s"
            print(f"{len(goldens):4} {case!s:45} {len(result.heard.windows):4} windows  {note}", file=sys.stderr)
    content = json.dumps(dict(sorted(goldens.items())), ensure_ascii=False, separators=(",", ":")).encode()
    PATH.write_bytes(gzip.compress(content, 9, mtime=0))
    errors = [error for each in goldens.values() for error in each["errors"]]
    size_kb = PATH.stat().st_size / 1000
    print(f"{len(goldens)} cases, {size_kb:.0f} kB; error where chance has a part: {statistics.mean(errors):.3f}")


if __name__ == "__main__":
    main()
