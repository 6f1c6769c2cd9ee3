"""A diarizer without torch, for tests of everything around it: `GPU_DAEMON_DIARIZER=tests.fake_diarizer:create`.

Two speakers (or as many as are asked for) take turns of 5 s, each going on for half a second into the next one's; a
silent file has no turns. The n-th known voice is the n-th speaker. FAKE_DIARIZER in the environment says how it
behaves: `error` fails, `miopen` falls back to the CPU, `oom` and `lost` are what a GPU may do, `hang` never moves
again, `slow=FILE` goes on until that file exists.
"""

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from gpu_daemon.engine.base import Diarization, LoadedModel, Pcm, SpeakerRequest, Spoken
from gpu_daemon.engine.pipeline_files import PipelineFiles
from gpu_daemon.errors import DeviceLost, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import SpeakerTurn

TURN_S = 5.0
OVERLAP_S = 0.5
LOUD = 300
"""of 32,767"""
TICK_S = 0.02


def create(device: Literal["cpu", "cuda", "rocm"], pyannote_device: Literal["auto", "cuda", "cpu"]) -> "FakeDiarizer":
    return FakeDiarizer("cpu" if pyannote_device == "cpu" else device)


class FakeDiarization:
    def __init__(self, request: SpeakerRequest, audio: Pcm, done: Callable[[], None]) -> None:
        self.request = request
        self.audio = audio
        self.done = done
        self.fraction = 0.0
        self.beats = 0
        self.ended = False
        self.dropped = False
        self.spoken: Spoken | None = None
        self.error: JobError | None = None

    def result(self) -> Spoken:
        if self.error is not None:
            raise self.error
        assert self.spoken is not None
        return self.spoken


class FakeDiarizer:
    def __init__(self, device: str) -> None:
        self._device = device
        self._waiting: queue.SimpleQueue[FakeDiarization] = queue.SimpleQueue()
        self._loaded: tuple[LoadedModel, ...] = ()
        threading.Thread(target=self._run, name="fake diarizer", daemon=True).start()

    def begin(self, request: SpeakerRequest, audio: Pcm, done: Callable[[], None]) -> FakeDiarization:
        diarization = FakeDiarization(request, audio, done)
        self._waiting.put(diarization)
        return diarization

    def drop(self, diarization: Diarization) -> None:
        assert isinstance(diarization, FakeDiarization)
        diarization.dropped = True

    def unload(self) -> None:
        self._loaded = ()

    def loaded(self) -> tuple[LoadedModel, ...]:
        return self._loaded

    def _run(self) -> None:
        while True:
            diarization = self._waiting.get()
            try:
                diarization.spoken = self._diarize(diarization)
            except JobError as error:
                diarization.error = error
            diarization.fraction = 1.0
            diarization.ended = True
            if not diarization.dropped:
                diarization.done()

    def _diarize(self, diarization: FakeDiarization) -> Spoken | None:
        request, behaviour = diarization.request, os.environ.get("FAKE_DIARIZER", "")
        self._loaded = (LoadedModel(request.pipeline.name, PipelineFiles(request.pipeline).size_bytes),)
        diarization.fraction = 0.5
        if behaviour == "hang":
            threading.Event().wait()
        if behaviour.startswith("slow="):
            while not Path(behaviour.removeprefix("slow=")).exists() and not diarization.dropped:
                diarization.beats += 1
                time.sleep(TICK_S)
        if behaviour == "error":
            raise JobError("who speaks could not be found out", code="diarization_failed")
        if behaviour == "oom":
            raise JobError("the GPU ran out of memory", code="gpu_oom", retryable=True)
        if behaviour == "lost":
            raise DeviceLost("the GPU reported an error that only a new process can clear")
        diarization.beats += 1
        exclusive = _turns(request, diarization.audio)
        end_s = len(diarization.audio) / SAMPLE_RATE_HZ
        turns = tuple(turn.model_copy(update={"end": min(turn.end + OVERLAP_S, end_s)}) for turn in exclusive)
        fell_back = behaviour == "miopen"
        return Spoken(
            turns=turns,
            exclusive=exclusive,
            device="cpu" if fell_back else self._device,
            fallback="the GPU's library for neural networks (MIOpen) failed" if fell_back else None,
        )


def _turns(request: SpeakerRequest, audio: Pcm) -> tuple[SpeakerTurn, ...]:
    if np.abs(audio, dtype=np.int32).max(initial=0) < LOUD:
        return ()
    n_speakers = request.num_speakers or min(max(2, request.min_speakers or 0), request.max_speakers or 2)
    known = [voice.name for voice in request.known_voices][:n_speakers]
    names = known + [f"SPEAKER_{number:02d}" for number in range(n_speakers - len(known))]
    duration_s = len(audio) / SAMPLE_RATE_HZ
    starts_s = np.arange(0.0, duration_s, TURN_S).tolist()
    return tuple(
        SpeakerTurn(start=start_s, end=min(start_s + TURN_S, duration_s), speaker=name)
        for start_s, name in zip(starts_s, itertools.cycle(names), strict=False)
    )
