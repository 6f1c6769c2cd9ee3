"""An engine without torch, for tests of everything around it: `GPU_DAEMON_ENGINE=tests.fake_engine:create`.

What it hears depends on the samples alone. A job's `initial_prompt` says how it behaves: `fake:sleep=2` takes two
seconds, `fake:until=FILE` goes on until that file exists, `fake:hang` never moves again, `fake:deaf` neither, and
SIGTERM does not end it, `fake:segv`, `fake:exit` end the process, `fake:oom`, `fake:error`, `fake:bug` and `fake:lost`
raise what an engine may raise, `fake:garbage` writes nonsense into the socket, `fake:print` prints.
`fake:once=FILE,segv` does it only if FILE does not exist yet, and makes it.

With FAKE_LOAD_UNTIL=FILE in the environment loading a model goes on until that file exists.
"""

import ctypes
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpu_daemon.engine.base import Audio, LoadedModel, ModelSpec, Progress
from gpu_daemon.errors import DeviceLost, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from gpu_daemon.transcript.model import Segment, Transcript, Word

VOCABULARY = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
SEGMENT_S = 5.0
WORDS_PER_SEGMENT = 4
TICK_S = 0.02
SLEPT = 0.9
"""The fraction that is done when it has slept."""
LOUD = 0.01
IGNORED = 1
"""SIG_IGN"""
SEGMENT_TOKENS = tuple(range(100, 100 + WORDS_PER_SEGMENT))


def create(device: str, vram_reserve_mb: int) -> "FakeEngine":
    return FakeEngine()


class FakeEngine:
    device_name = "fake"
    torch_version = "none"

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedModel] = {}

    def load(self, spec: ModelSpec, progress: Progress) -> None:
        progress(0.0)
        if spec.name not in self._loaded:
            if (file := os.environ.get("FAKE_LOAD_UNTIL")) is not None:
                _until(Path(file), progress)
            if not spec.path.read_bytes().startswith(b"PK"):
                raise JobError(f"the checkpoint of {spec.name} cannot be read", code="bad_checkpoint")
            self._loaded[spec.name] = LoadedModel(spec.name, spec.path.stat().st_size)
        progress(1.0)

    def unload(self, name: str) -> None:
        self._loaded.pop(name, None)

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(self._loaded.values())

    def transcribe(self, spec: ModelSpec, audio: Audio, options: JobOptions, progress: Progress) -> Transcript:
        behave(options.initial_prompt or "", progress)
        duration_s = len(audio) / SAMPLE_RATE_HZ
        segments: list[Segment] = []
        for index in range(math.ceil(duration_s / SEGMENT_S)):
            progress(SLEPT + (1 - SLEPT) * index * SEGMENT_S / duration_s)
            piece = audio[int(index * SEGMENT_S * SAMPLE_RATE_HZ) : int((index + 1) * SEGMENT_S * SAMPLE_RATE_HZ)]
            if abs(piece).max() > LOUD:
                segments.append(_segment(len(segments), index * SEGMENT_S, piece, options.word_timestamps))
        progress(1.0)
        return Transcript(
            text="".join(segment.text for segment in segments).strip(),
            language=options.language or "en",
            language_probability=None if options.language else 0.9,
            duration=duration_s,
            model=spec.name,
            token_count=sum(len(segment.tokens) for segment in segments),
            segments=tuple(segments),
        )


def _segment(number: int, start_s: float, piece: Audio, with_words: bool) -> Segment:
    digest = hashlib.sha256(piece.tobytes()).digest()
    texts = [" " + VOCABULARY[byte % len(VOCABULARY)] for byte in digest[:WORDS_PER_SEGMENT]]
    step_s = len(piece) / SAMPLE_RATE_HZ / WORDS_PER_SEGMENT
    words = tuple(
        Word(word=text, start=start_s + i * step_s, end=start_s + (i + 1) * step_s, confidence=0.8)
        for i, text in enumerate(texts)
    )
    return Segment(
        id=number,
        start=start_s,
        end=start_s + WORDS_PER_SEGMENT * step_s,
        text="".join(texts),
        confidence=math.exp(-0.2),
        avg_logprob=-0.2,
        no_speech_prob=0.01,
        compression_ratio=1.2,
        temperature=0.0,
        seek=int(start_s * 100),
        tokens=SEGMENT_TOKENS,
        words=words if with_words else (),
    )


def behave(prompt: str, progress: Progress) -> None:
    if not prompt.startswith("fake:"):
        return
    name, _, value = prompt.removeprefix("fake:").partition("=")
    if name == "once":
        file, _, then = value.partition(",")
        if Path(file).exists():
            return
        Path(file).touch()
        behave(f"fake:{then}", progress)
    elif name == "until":
        _until(Path(value), progress)
    elif name == "sleep":
        _sleep(float(value), progress)
    else:
        ENDINGS[name]()


def _sleep(seconds: float, progress: Progress) -> None:
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        progress((1 - left_s / seconds) * SLEPT)
        time.sleep(min(left_s, TICK_S))


def _until(file: Path, progress: Progress) -> None:
    while not file.exists():
        progress(0.0)
        time.sleep(TICK_S)


def _deaf() -> None:
    ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(IGNORED))  # Python's own works in the main thread only
    _hang()


def _hang() -> None:
    while True:
        time.sleep(3600)


def _segv() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    _hang()  # the signal goes to any thread, and this one may run on for a moment


def _exit() -> None:
    sys.stderr.write("I have had enough\n")
    sys.stderr.flush()
    os._exit(7)


def _garbage() -> None:
    os.write(json.loads(sys.argv[1])["socket_fd"], b"garbage" * 10)
    _hang()


def _print() -> None:
    print("a library prints")
    sys.stdout.flush()


def _oom() -> None:
    raise JobError("the GPU ran out of memory", code="gpu_oom", retryable=True)


def _error() -> None:
    raise JobError("this job cannot be done", code="engine_error")


def _bug() -> None:
    raise ValueError("/a/path/that/must/not/be/told")


def _lost() -> None:
    raise DeviceLost("the GPU reported an error that only a new process can clear")


ENDINGS: dict[str, Callable[[], None]] = {
    "hang": _hang,
    "deaf": _deaf,
    "segv": _segv,
    "exit": _exit,
    "garbage": _garbage,
    "print": _print,
    "oom": _oom,
    "error": _error,
    "bug": _bug,
    "lost": _lost,
}
