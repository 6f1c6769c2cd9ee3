"""Who speaks when: pyannote's pipelines in a thread of their own, one file after the other.

torch and pyannote are imported by that thread when the first file comes: it takes seconds, and many runners never
diarize.
"""

import os
import queue
import re
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np

from gpu_daemon.engine.base import Diarization, LoadedModel, Pcm, PipelineSpec, SpeakerRequest, Spoken
from gpu_daemon.engine.known_voices import in_order, matched
from gpu_daemon.engine.pipeline_files import PipelineFiles
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import SpeakerTurn

if TYPE_CHECKING:
    from gpu_daemon.engine.speakers import Speakers

DeviceKind = Literal["cpu", "cuda", "rocm"]

TORCH_DEVICES = {"cpu": "cpu", "cuda": "cuda", "rocm": "cuda"}
LIBRARY = re.compile(r"miopen|hiprtc|hiprand|rocblas|hipblas|cudnn|cublas|nvrtc|cufft|rocfft", re.IGNORECASE)
"""A library that the GPU computes with has failed. MIOpen calls nearly everything that befalls it an unknown error; the
process is none the worse for it."""
FELL_BACK = "a library that the GPU computes with failed"


def create(device: DeviceKind, pyannote_device: Literal["auto", "cuda", "cpu"]) -> "PyannoteDiarizer":
    """`auto`: the GPU if there is one, and the CPU where that fails; `cuda`: the GPU, whatever comes."""
    return PyannoteDiarizer(device, pyannote_device)


class FileDiarization:
    def __init__(self, request: SpeakerRequest, audio: Pcm, done: Callable[[], None]) -> None:
        self.request = request
        self.audio = audio
        self.done = done
        self.fraction = 0.0
        self.beats = 0
        self.ended = False
        self.dropped = False
        self._outcome: Spoken | JobError | None = None

    def tick(self, fraction: float) -> None:
        """Raises JobCancelled when it was dropped."""
        if self.dropped:
            raise JobCancelled("nobody waits for it any more")
        self.fraction = max(self.fraction, min(fraction, 1.0))
        self.beats += 1

    def end(self, outcome: Spoken | JobError) -> None:
        self._outcome = outcome
        self.ended = True
        if not self.dropped:
            self.done()

    def result(self) -> Spoken:
        match self._outcome:
            case Spoken():
                return self._outcome
            case JobError():
                raise self._outcome
            case None:
                raise RuntimeError("it has not ended")
            case _:
                assert_never(self._outcome)


class PyannoteDiarizer:
    def __init__(self, device: DeviceKind, pyannote_device: Literal["auto", "cuda", "cpu"]) -> None:
        self._device: DeviceKind = "cpu" if pyannote_device == "cpu" else device
        self._wants_gpu = pyannote_device == "cuda"
        self._fallback: str | None = None
        self._messages: queue.SimpleQueue[FileDiarization | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._spec: PipelineSpec | None = None
        self._speakers: Speakers | None = None
        self._loaded: tuple[LoadedModel, ...] = ()

    def begin(self, request: SpeakerRequest, audio: Pcm, done: Callable[[], None]) -> FileDiarization:
        diarization = FileDiarization(request, audio, done)
        self._messages.put(diarization)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="diarizer", daemon=True)
            self._thread.start()
        return diarization

    def drop(self, diarization: Diarization) -> None:
        if isinstance(diarization, FileDiarization):
            diarization.dropped = True

    def unload(self) -> None:
        self._messages.put(None)

    def loaded(self) -> tuple[LoadedModel, ...]:
        return self._loaded

    def _run(self) -> None:
        try:
            while True:
                diarization = self._messages.get()
                if diarization is not None:
                    diarization.end(self._outcome(diarization))
                elif self._messages.empty():
                    self._put_away()
        except BaseException:
            # Without this thread all who wait for it would wait for ever.
            traceback.print_exc()
            os._exit(1)

    def _outcome(self, diarization: FileDiarization) -> Spoken | JobError:
        try:
            return self._diarize(diarization)
        except JobError as error:
            return error
        except Exception as error:
            failed = _failed(error)
            failed.__cause__ = error
            return failed

    def _diarize(self, diarization: FileDiarization) -> Spoken:
        """Raises JobError."""
        diarization.tick(0.0)
        if self._wants_gpu and self._device == "cpu":
            raise JobError("PYANNOTE_DEVICE is cuda, and this worker has no GPU", code="diarization_failed")
        try:
            return self._spoken(diarization)
        except RuntimeError as error:
            told = self._told(error)
            if told is not None:
                raise told from error
            traceback.print_exception(error)
        self._put_away()
        self._device, self._fallback = "cpu", FELL_BACK
        return self._spoken(diarization)

    def _told(self, error: RuntimeError) -> JobError | None:
        """What an error of a device means; None: that it may go better on the CPU."""
        from gpu_daemon.engine.faults import is_sticky
        from gpu_daemon.engine.speakers import is_out_of_memory, too_little_memory

        if is_out_of_memory(error):
            return too_little_memory()
        if self._device == "cpu":
            return _failed(error)
        if LIBRARY.search(str(error)):
            return _failed(error) if self._wants_gpu else None
        if is_sticky(error):
            return DeviceLost("the GPU reported an error that only a new process can clear")
        return _failed(error)

    def _spoken(self, diarization: FileDiarization) -> Spoken:
        request = diarization.request
        speakers = self._load(request.pipeline)
        diarization.tick(0.0)
        try:
            voices = {}
            for voice in request.known_voices:
                voices[voice.name] = speakers.embed(np.fromfile(voice.audio_path, "<i2"))
                diarization.tick(0.0)
            output = speakers.find(
                diarization.audio,
                diarization.tick,
                num_speakers=request.num_speakers,
                min_speakers=request.min_speakers,
                max_speakers=request.max_speakers,
            )
        finally:
            speakers.release()
        duration_s = len(diarization.audio) / SAMPLE_RATE_HZ
        turns = turns_of(output.speaker_diarization, duration_s)
        labels = output.speaker_diarization.labels()
        called = in_order(turns, matched(dict(zip(labels, output.speaker_embeddings, strict=True)), voices))
        diarization.tick(1.0)
        return Spoken(
            turns=_renamed(turns, called),
            exclusive=_renamed(turns_of(output.exclusive_speaker_diarization, duration_s), called),
            device=self._device,
            fallback=self._fallback,
        )

    def _load(self, spec: PipelineSpec) -> "Speakers":
        """Raises JobError."""
        if self._speakers is not None and self._spec == spec:
            return self._speakers
        self._put_away()
        files = PipelineFiles(spec)
        from gpu_daemon.engine.speaker_models import SpeakerModels, imported

        imported()
        from gpu_daemon.engine.speakers import Speakers

        self._speakers = Speakers(SpeakerModels(files), TORCH_DEVICES[self._device])
        self._spec = spec
        self._loaded = (LoadedModel(spec.name, files.size_bytes),)
        return self._speakers

    def _put_away(self) -> None:
        speakers, self._speakers, self._spec, self._loaded = self._speakers, None, None, ()
        if speakers is not None:
            release = speakers.release
            del speakers
            release()


def _failed(error: Exception) -> JobError:
    return JobError(f"who speaks could not be found out ({type(error).__name__})", code="diarization_failed")


def turns_of(annotation: object, duration_s: float) -> tuple[SpeakerTurn, ...]:
    """In order of time. The last chunk is filled up with silence, and a turn may go on into that: it ends here."""
    turns = (
        SpeakerTurn(start=round(segment.start, 3), end=round(min(segment.end, duration_s), 3), speaker=speaker)
        for segment, _, speaker in annotation.itertracks(yield_label=True)  # type: ignore[attr-defined]
    )
    return tuple(sorted((turn for turn in turns if turn.start < turn.end), key=lambda turn: (turn.start, turn.end)))


def _renamed(turns: tuple[SpeakerTurn, ...], called: dict[str, str]) -> tuple[SpeakerTurn, ...]:
    return tuple(turn.model_copy(update={"speaker": called[turn.speaker]}) for turn in turns)
