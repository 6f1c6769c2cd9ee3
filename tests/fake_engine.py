"""An engine without torch, for tests of everything around it: `GPU_DAEMON_ENGINE=tests.fake_engine:create`.

What it hears depends on the samples alone. A job's `initial_prompt` says how it behaves: `fake:sleep=2` takes two
seconds, `fake:until=FILE` goes on until that file exists, `fake:oom` and `fake:error` are errors of that job; none of
these holds up others in flight. The rest does not spare them: `fake:hang` never moves again, `fake:deaf` neither, and
SIGTERM does not end it, `fake:segv`, `fake:exit` end the process, `fake:full`, `fake:bug` and `fake:lost` raise what a
step may raise, `fake:slow=FILE` is one step that lasts until that file exists, `fake:garbage` writes nonsense into the
socket, `fake:print` prints. `fake:once=FILE,segv` does it only if FILE does not exist yet, and makes it.
`fake:then=until=FILE` does it after the first segment has been heard.

With FAKE_LOAD_UNTIL=FILE in the environment loading a model goes on until that file exists, with FAKE_ROOM=1 there is
memory for one model.
"""

import ctypes
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_daemon.engine.base import Audio, LoadedModel, ModelSpec, Progress, Samples, Transcription
from gpu_daemon.engine.level import as_floats
from gpu_daemon.errors import DeviceLost, JobError, NoRoom
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from gpu_daemon.transcript.model import Segment, TokenLogprob, Transcript, Word

VOCABULARY = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
SEGMENT_S = 5.0
WORDS_PER_SEGMENT = 4
TICK_S = 0.02
SLEPT = 0.9
"""The fraction that is done when it has slept."""
LOUD = 0.01
IGNORED = 1
"""SIG_IGN"""
LOGPROB = -0.2
SEGMENT_TOKENS = tuple(range(100, 100 + WORDS_PER_SEGMENT))


def create(device: str, vram_reserve_mb: int) -> "FakeEngine":
    return FakeEngine()


class FakeEngine:
    device_name = "fake"
    torch_version = "none"

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedModel] = {}
        self._flight: list[FakeTranscription] = []

    def load(self, spec: ModelSpec, progress: Progress) -> None:
        progress(0.0)
        if spec.name not in self._loaded:
            self._make_room(spec)
            if (file := os.environ.get("FAKE_LOAD_UNTIL")) is not None:
                while not Path(file).exists():
                    progress(0.0)
                    time.sleep(TICK_S)
            if not spec.path.read_bytes().startswith(b"PK"):
                raise JobError(f"the checkpoint of {spec.name} cannot be read", code="bad_checkpoint")
            self._loaded[spec.name] = LoadedModel(spec.name, spec.path.stat().st_size)
        progress(1.0)

    def _make_room(self, spec: ModelSpec) -> None:
        used = {begun.model for begun in self._flight}
        for name in [name for name in self._loaded if name not in used]:
            if len(self._loaded) >= int(os.environ.get("FAKE_ROOM", "100")):
                del self._loaded[name]
        if len(self._loaded) >= int(os.environ.get("FAKE_ROOM", "100")):
            raise NoRoom(f"there is no room for {spec.name} beside {', '.join(used)}")

    def begin(self, spec: ModelSpec, audio: Samples, options: JobOptions) -> "FakeTranscription":
        if spec.name not in self._loaded:
            raise JobError(f"the model {spec.name} is not loaded")
        begun = FakeTranscription(spec.name, audio, options)
        self._flight.append(begun)
        return begun

    def step(self) -> None:
        moved = [begun.move() for begun in self._flight]
        self._flight = [begun for begun in self._flight if not begun.ended]
        if moved and not any(moved):
            time.sleep(TICK_S)

    def drop(self, transcription: Transcription) -> None:
        self._flight = [begun for begun in self._flight if begun is not transcription]

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    def unload(self, name: str) -> None:
        self._loaded.pop(name, None)

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(self._loaded.values())


class FakeTranscription:
    def __init__(self, model: str, audio: Samples, options: JobOptions) -> None:
        self.model = model
        self.fraction = 0.0
        self._audio = audio
        self._options = options
        self._segments: list[Segment] = []
        self._error: JobError | None = None
        self._moves = self._work()
        self.ended = False

    def move(self) -> bool:
        """False: it waits, and there was nothing to do."""
        try:
            return next(self._moves)
        except StopIteration:
            self.ended = True
        except FakeFault as fault:
            self._error, self.ended = fault.error, True
        return True

    def heard(self) -> tuple[Segment, ...]:
        return tuple(self._segments)

    def result(self) -> Transcript:
        if self._error is not None:
            raise self._error
        return Transcript(
            text="".join(segment.text for segment in self._segments).strip(),
            language=self._options.language or "en",
            language_probability=None if self._options.language else 0.9,
            duration=len(self._audio) / SAMPLE_RATE_HZ,
            model=self.model,
            token_count=sum(len(segment.tokens) for segment in self._segments),
            segments=tuple(self._segments),
        )

    def _work(self) -> Iterator[bool]:
        prompt = self._options.initial_prompt or ""
        after_first = f"fake:{prompt.removeprefix('fake:then=')}" if prompt.startswith("fake:then=") else ""
        if not after_first:
            yield from self._behave(prompt)
        duration_s = len(self._audio) / SAMPLE_RATE_HZ
        for index in range(math.ceil(duration_s / SEGMENT_S)):
            self.fraction = max(self.fraction, SLEPT + (1 - SLEPT) * index * SEGMENT_S / duration_s)
            first, last = (int(at * SEGMENT_S * SAMPLE_RATE_HZ) for at in (index, index + 1))
            piece = as_floats(self._audio[first:last])
            if abs(piece).max() > LOUD:
                self._segments.append(_segment(len(self._segments), index * SEGMENT_S, piece, self._options))
            yield True
            if index == 0:
                yield from self._behave(after_first)
        self.fraction = 1.0

    def _behave(self, prompt: str) -> Iterator[bool]:
        if not prompt.startswith("fake:"):
            return
        name, _, value = prompt.removeprefix("fake:").partition("=")
        if name == "once":
            file, _, then = value.partition(",")
            if not Path(file).exists():
                Path(file).touch()
                yield from self._behave(f"fake:{then}")
        elif name == "until":
            while not Path(value).exists():
                yield False
        elif name == "sleep":
            began_s = time.monotonic()
            while (slept_s := time.monotonic() - began_s) < float(value):
                self.fraction = slept_s / float(value) * SLEPT
                yield False
        elif name == "slow":
            while not Path(value).exists():
                time.sleep(TICK_S)
        else:
            ENDINGS[name]()


class FakeFault(Exception):
    """The error of one job."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error)
        self.error = error


def _segment(number: int, start_s: float, piece: Audio, options: JobOptions) -> Segment:
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
        confidence=math.exp(LOGPROB),
        avg_logprob=LOGPROB,
        no_speech_prob=0.01,
        compression_ratio=1.2,
        temperature=0.0,
        seek=int(start_s * 100),
        tokens=SEGMENT_TOKENS,
        logprobs=tuple(TokenLogprob.of(text.encode(), LOGPROB) for text in texts) if options.logprobs else None,
        words=words if options.word_timestamps else (),
    )


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
    raise FakeFault(JobError("the GPU ran out of memory", code="gpu_oom", retryable=True))


def _error() -> None:
    raise FakeFault(JobError("this job cannot be done", code="engine_error"))


def _full() -> None:
    raise JobError("the GPU ran out of memory", code="gpu_oom", retryable=True)


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
    "full": _full,
    "bug": _bug,
    "lost": _lost,
}
