"""From a decoded file to a transcript on the file's own timeline (no torch here)."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from gpu_daemon import clock
from gpu_daemon.engine.base import (
    Diarization,
    Diarizer,
    Engine,
    ModelSpec,
    NoPipeline,
    Pcm,
    Progress,
    SpeakerRequest,
    Spoken,
)
from gpu_daemon.engine.channels import Channel, Merge
from gpu_daemon.engine.level import loudest_db, quiet_lead
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, ChannelMode, JobOptions, Task
from gpu_daemon.jobs.state import Stage
from gpu_daemon.transcript import model
from gpu_daemon.transcript.model import Segment, Transcript
from gpu_daemon.transcript.quality import assess
from gpu_daemon.transcript.speakers import attributed


class Request(Protocol):
    """What the runner is asked to do with a file."""

    @property
    def model(self) -> ModelSpec: ...
    @property
    def audio_path(self) -> Path: ...
    @property
    def first_byte(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def skip_samples(self) -> int: ...
    @property
    def options(self) -> JobOptions: ...
    @property
    def speakers(self) -> SpeakerRequest | NoPipeline | None: ...


class Hearing:
    """A file on its way: `load` its model, `begin`, and once the engine's steps have `ended` it there is a `result`.

    Who speaks is found out meanwhile, in the diarizer's own thread.

    Each channel is a transcription of its own, and detects its own language: who interprets speaks two, and a language
    heard on one side only would be forced on the other.
    """

    def __init__(self, engine: Engine, diarizer: Diarizer, request: Request, wake: Callable[[], None]) -> None:
        """`wake` is called in another thread when who speaks is known. Raises JobError when its audio is gone."""
        self._engine = engine
        self._diarizer = diarizer
        self._request = request
        self._wake = wake
        self._pcm = _open(request.audio_path, request.first_byte, request.channels)
        self._duration_s = len(self._pcm) / SAMPLE_RATE_HZ
        self._channels: list[Channel] = []
        self._merge = Merge(self._channels)
        self._timings: dict[str, float] = {}
        self._began_s = 0.0
        self._transcribed_s: float | None = None
        self._diarization: Diarization | None = None
        self._diarized_s: float | None = None
        self._late: JobError | None = None
        self.is_empty = len(self._pcm) <= request.skip_samples
        """Nothing is left to hear: it needs no model, and has ended."""
        self.transcribes = not self.is_empty and request.options.task is not Task.DIARIZE

    def load(self, progress: Progress) -> None:
        """Raises as the engine does; may be tried again after NoRoom."""
        began_s = clock.monotonic()
        self._engine.load(self._request.model, progress)
        self._timings[Stage.LOADING.value] = round(clock.monotonic() - began_s, 3)

    def begin(self) -> None:
        """Raises JobError; nothing is in flight then."""
        self._began_s = clock.monotonic()
        try:
            if self.transcribes:
                for number in range(self._pcm.shape[1]):
                    self._begin_channel(number)
            if isinstance(speakers := self._request.speakers, SpeakerRequest) and not self.is_empty:
                self._diarization = self._diarizer.begin(speakers, self._pcm[:, 0], self._diarized)
        except BaseException:
            self.drop()
            raise
        self._merge = Merge(self._channels)

    def drop(self) -> None:
        if self._diarization is not None:
            self._diarizer.drop(self._diarization)
        for channel in self._channels:
            if channel.transcription is not None:
                self._engine.drop(channel.transcription)
        self._channels.clear()

    def conclude(self, why: JobError) -> None:
        """Who speaks is not waited for any more: it is as good as failed."""
        if self._diarization is not None and not self._diarization.ended:
            self._diarizer.drop(self._diarization)
            self._late = why

    def progress(self) -> tuple[Stage, float]:
        """Where it is, and the fraction of that stage."""
        if self._is_transcribed and self._transcribed_s is None:
            self._transcribed_s = clock.monotonic() - self._began_s
        if self._diarization is None or not self._is_transcribed:
            fractions = [channel.fraction for channel in self._channels]
            return Stage.TRANSCRIBING, sum(fractions) / max(1, len(fractions))
        return Stage.DIARIZING, self._diarization.fraction

    @property
    def beats(self) -> int:
        """Of the search for speakers: the sign of its life."""
        return 0 if self._diarization is None else self._diarization.beats

    @property
    def ended(self) -> bool:
        return self.is_empty or (self._is_transcribed and self._is_diarized)

    @property
    def _is_diarized(self) -> bool:
        return self._diarization is None or self._diarization.ended or self._late is not None

    @property
    def _is_transcribed(self) -> bool:
        return not self.transcribes or (bool(self._channels) and all(channel.ended for channel in self._channels))

    def heard(self, first: int) -> tuple[Segment, ...]:
        """What was heard so far, from the segment of this number on."""
        self._merge.take(
            [channel.transcription.heard() if channel.transcription is not None else () for channel in self._channels]
        )
        return tuple(segment for segment, _ in self._merge.said[first:])

    def result(self) -> tuple[Transcript, dict[str, float]]:
        """The transcript and the seconds each stage took. Raises JobError: of this file alone; DeviceLost."""
        merging_s = clock.monotonic()
        spoken, diarization = self._spoken()
        heard = [None if each.transcription is None else each.transcription.result() for each in self._channels]
        self._merge.take([() if each is None else each.segments for each in heard])
        segments = tuple(segment for segment, _ in self._merge.said)
        levels_db = [loudest_db(channel.pcm, segment.start, segment.end) for segment, channel in self._merge.said]
        main = max((each for each in heard if each is not None), key=lambda each: each.token_count, default=None)
        transcript = Transcript(
            text="".join(segment.text for segment in segments).strip(),
            language=main.language if main is not None else self._request.options.language or "en",
            language_probability=None if main is None else main.language_probability,
            duration=round(self._duration_s, 3),
            model=self._request.model.name,
            mode=self._request.options.mode.value,
            token_count=sum(each.token_count for each in heard if each is not None),
            segments=segments,
            quality=assess(segments, levels_db, vad_dropped_s=self._dropped_s(heard)),
        )
        if diarization is not None:
            turns, exclusive = ((), ()) if spoken is None else (spoken.turns, spoken.exclusive)
            transcript = attributed(transcript, turns, exclusive, diarization)
        if self._channels:
            transcribed_s = merging_s - self._began_s if self._transcribed_s is None else self._transcribed_s
            self._timings[Stage.TRANSCRIBING.value] = round(transcribed_s, 3)
        if self._diarization is not None:
            diarized_s = merging_s - self._began_s if self._diarized_s is None else self._diarized_s
            self._timings[Stage.DIARIZING.value] = round(diarized_s, 3)
        if not self.is_empty:
            self._timings[Stage.MERGING.value] = round(clock.monotonic() - merging_s, 3)
        return transcript, self._timings

    def _diarized(self) -> None:
        """In the diarizer's thread."""
        self._diarized_s = clock.monotonic() - self._began_s
        self._wake()

    def _spoken(self) -> tuple[Spoken | None, model.Diarization | None]:
        """Who speaks, and how it went to find out. Raises DeviceLost, and JobError if nothing else was asked for."""
        speakers = self._request.speakers
        if speakers is None:
            return None, None
        if isinstance(speakers, NoPipeline):
            return None, model.Diarization(model=speakers.name, error=speakers.message, error_code=speakers.code)
        name = speakers.pipeline.name
        if self._diarization is None:  # nothing is to be heard, of nobody
            return None, model.Diarization(model=name)
        try:
            if self._late is not None:
                raise self._late
            spoken = self._diarization.result()
        except (DeviceLost, JobCancelled):
            raise
        except JobError as error:
            if not self.transcribes:
                raise
            return None, model.Diarization(model=name, error=error.message, error_code=error.code)
        names = tuple(dict.fromkeys(turn.speaker for turn in spoken.turns))
        return spoken, model.Diarization(model=name, device=spoken.device, speakers=names, fallback=spoken.fallback)

    def _begin_channel(self, number: int) -> None:
        """Raises JobError."""
        options, pcm, skip_samples = self._request.options, self._pcm[:, number], self._request.skip_samples
        split = options.channel_mode is ChannelMode.SPLIT
        if split and options.trim_silence:
            # Before one of them is heard ffmpeg has counted; this one may be silent for longer, or all the time.
            skip_samples += quiet_lead(pcm[skip_samples:])
        transcription = None
        if skip_samples < len(pcm):
            transcription = self._engine.begin(self._request.model, pcm[skip_samples:], options)
        self._channels.append(
            Channel(
                pcm=pcm,
                skip_samples=skip_samples,
                speaker=f"SPEAKER_{number:02d}" if split else None,
                transcription=transcription,
            )
        )

    def _dropped_s(self, heard: list[Transcript | None]) -> float:
        """Of a file of several channels: in their mean. Silence before the first word counts: it would be dropped."""
        if not self._request.options.speech_only:
            return 0.0
        if not self._channels:
            return round(self._duration_s, 3)
        dropped_s = [
            channel.skipped_s + (0.0 if said is None else said.quality.vad_dropped_s)
            for channel, said in zip(self._channels, heard, strict=True)
        ]
        return round(sum(dropped_s) / len(dropped_s), 3)


def _open(path: Path, first_byte: int, channels: int) -> Pcm:
    """int16[n_samples, channels], read from the disk as it is used."""
    try:
        n_samples = (path.stat().st_size - first_byte) // (2 * channels)
        if n_samples <= 0:  # nothing can be mapped then
            return np.empty((0, channels), np.int16)
        return np.memmap(path, dtype="<i2", mode="r", offset=first_byte, shape=(n_samples, channels))
    except OSError as error:
        raise JobError("the decoded audio of the job is gone", code="audio_lost") from error
