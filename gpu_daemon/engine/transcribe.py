"""The engine: openai-whisper's `transcribe` as it is, made observable and stoppable."""

import gc
import importlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import whisper

from gpu_daemon import clock
from gpu_daemon.engine.base import Audio, LoadedModel, ModelSpec, Progress, Transcription
from gpu_daemon.engine.cache import MIB, ModelCache
from gpu_daemon.engine.checkpoint import Checkpoint, WatchedWhisper
from gpu_daemon.engine.faults import guarded
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions, Task
from gpu_daemon.transcript.model import Segment, Transcript, Word

SEED = 0
"""Sampling starts from here in each job, so that the same file gives the same text."""
STEP_S = 0.2


def create(device: str, vram_reserve_mb: int) -> "WhisperEngine":
    """`device`: `cpu`, `cuda` or `rocm`; the mask in the environment leaves one GPU to this process."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    return WhisperEngine(torch.device("cpu" if device == "cpu" else "cuda:0"), vram_reserve_mb=vram_reserve_mb)


class WhisperEngine:
    torch_version = str(torch.__version__)

    def __init__(self, device: torch.device, *, vram_reserve_mb: int) -> None:
        self._device = device
        self._models: ModelCache[WatchedWhisper] = ModelCache(
            free_bytes=self._free_bytes, reserve_bytes=vram_reserve_mb * MIB
        )
        self.device_name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        self._flight: list[_Whole] = []
        if torch.ones(2, device=device).sum().item() != 2:
            raise RuntimeError(f"{self.device_name} cannot add")

    def load(self, spec: ModelSpec, progress: Progress) -> None:
        if self._models.get(spec) is not None:
            return
        self._models.drop(spec.name)  # the same name may stand for another file now
        checkpoint = Checkpoint.open(spec)
        self._models.make_room(checkpoint.size_bytes)
        model = guarded(lambda: checkpoint.build(self._device, progress), self._release_all)
        self._models.put(spec, model, checkpoint.size_bytes)

    def unload(self, name: str) -> None:
        self._models.drop(name)
        self._free_bytes()

    def loaded(self) -> tuple[LoadedModel, ...]:
        return self._models.loaded()

    def begin(self, spec: ModelSpec, audio: Audio, options: JobOptions) -> Transcription:
        model = self._models.get(spec)
        if model is None:
            raise JobError(f"the model {spec.name} is not loaded")
        _check(spec, model, options)
        begun = _Whole(
            lambda progress: guarded(lambda: _hear(spec, model, audio, options, progress), self._release_all)
        )
        self._flight.append(begun)
        return begun

    def step(self) -> None:
        """Of the first in flight alone: whisper.transcribe does one file at a time."""
        if self._flight and self._flight[0].go_on():
            lost = self._flight.pop(0).error
            if lost is not None and (isinstance(lost, DeviceLost) or not isinstance(lost, JobError)):
                raise lost

    def drop(self, transcription: Transcription) -> None:
        for begun in self._flight:
            if begun is transcription:
                begun.stop()
        self._flight = [begun for begun in self._flight if begun is not transcription]

    def _free_bytes(self) -> int | None:
        gc.collect()
        if self._device.type == "cpu":
            return None
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def _release_all(self) -> None:
        self._models.clear()
        self._free_bytes()


class _Whole:
    """One whisper.transcribe, which goes on only while a step waits for it: each beat may end the step."""

    def __init__(self, work: Callable[[Progress], Transcript]) -> None:
        self._work = work
        self._turn = threading.Semaphore(0)
        self._turn_over = threading.Semaphore(0)
        self._until_s = 0.0
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._transcript: Transcript | None = None
        self.error: Exception | None = None
        self.fraction = 0.0

    @property
    def ended(self) -> bool:
        return self._transcript is not None or self.error is not None

    def heard(self) -> tuple[Segment, ...]:
        return () if self._transcript is None else self._transcript.segments

    def result(self) -> Transcript:
        if self._transcript is None:
            raise self.error or JobError("the transcription has not ended")
        return self._transcript

    def go_on(self) -> bool:
        """Has it ended?"""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="whisper", daemon=True)
            self._thread.start()
        self._until_s = clock.monotonic() + STEP_S
        self._turn.release()
        self._turn_over.acquire()
        if self.ended:
            self._thread.join()
        return self.ended

    def stop(self) -> None:
        self._stopped = True
        if self._thread is not None:
            self.go_on()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            self._transcript = self._work(self._beat)
        except Exception as error:
            self.error = error
        self._turn_over.release()

    def _beat(self, fraction: float) -> None:
        self.fraction = fraction
        if clock.monotonic() >= self._until_s:
            self._turn_over.release()
            self._turn.acquire()
        if self._stopped:
            raise JobCancelled("the job was cancelled")


def _check(spec: ModelSpec, model: WatchedWhisper, options: JobOptions) -> None:
    if options.task is Task.TRANSLATE and not model.can_translate:
        raise JobError(
            f"the model {spec.name} cannot translate; use another model, or task=transcribe", code="task_not_supported"
        )
    if options.language is not None and options.language not in model.languages:
        knows = "knows English only" if not model.is_multilingual else f"does not know the language {options.language}"
        raise JobError(
            f"the model {spec.name} {knows}; use another model, or language=auto", code="language_not_supported"
        )


def _hear(spec: ModelSpec, model: WatchedWhisper, audio: Audio, options: JobOptions, progress: Progress) -> Transcript:
    torch.manual_seed(SEED)
    result = listen(model, audio, options, progress)
    segments = tuple(_segments(result))
    return Transcript(
        text="".join(segment.text for segment in segments).strip(),
        language=result["language"],
        language_probability=model.language_probability,
        duration=len(audio) / SAMPLE_RATE_HZ,
        model=spec.name,
        token_count=sum(len(segment.tokens) for segment in segments),
        segments=segments,
    )


def listen(model: WatchedWhisper, audio: Audio, options: JobOptions, progress: Progress) -> dict[str, Any]:
    """whisper's own result."""
    model.language_probability = None
    prompt, carried = _prompt(model, options)
    with _watched(model, len(audio) // whisper.audio.HOP_LENGTH, progress):
        result: dict[str, Any] = whisper.transcribe(
            model,
            audio,
            temperature=options.temperature,
            initial_prompt=prompt,
            carry_initial_prompt=carried,
            condition_on_previous_text=options.condition_on_previous_text,
            word_timestamps=options.word_timestamps,
            language=options.language,
            task=options.task.value,
            beam_size=options.beam_size,
            fp16=model.device.type != "cpu",
        )
    progress(1.0)
    return result


def _prompt(model: WatchedWhisper, options: JobOptions) -> tuple[str | None, bool]:
    """The prompt, and whether every window gets it or the first one only."""
    parts = [part.strip() for part in (options.initial_prompt, options.hotwords) if part and part.strip()]
    if not parts:
        return None, False
    # A special token in a prompt is refused by the tokenizer; without its mark it is text.
    words = " ".join(parts).replace("<|", "<").split(" ")
    if options.hotwords:
        # One that fills the context would leave none for the text before, and whisper would then count backwards.
        encode = whisper.tokenizer.get_tokenizer(model.is_multilingual, num_languages=model.num_languages).encode
        while len(encode(" " + " ".join(words))) > model.dims.n_text_ctx // 2 - 2:
            del words[0]
    return " ".join(words), bool(options.hotwords)


@contextmanager
def _watched(model: WatchedWhisper, n_frames: int, progress: Progress) -> Iterator[None]:
    """While whisper.transcribe runs: progress at each window, a beat at each block and token."""
    module = importlib.import_module("whisper.transcribe")  # whisper.transcribe is the function that hides it
    original: Callable[..., torch.Tensor] = module.pad_or_trim
    fraction = 0.0

    def pad_or_trim(mel: torch.Tensor, *args: int) -> torch.Tensor:
        # Called once for each window, with its slice of the file's mel: where that starts in memory, the window does.
        # (whisper's own progress bar forgets the windows that it skips as silent.)
        nonlocal fraction
        fraction = max(fraction, min(1.0, mel.storage_offset() / max(1, n_frames)))
        progress(fraction)
        return original(mel, *args)

    module.pad_or_trim = pad_or_trim  # type: ignore[attr-defined]
    model.beat = lambda: progress(fraction)
    try:
        yield
    except BaseException:
        model.forget_hooks()
        raise
    finally:
        module.pad_or_trim = original  # type: ignore[attr-defined]
        model.beat = _still


def _still() -> None:
    pass


def _segments(result: dict[str, Any]) -> Iterator[Segment]:
    # whisper keeps segments that it has emptied, because they were instantaneous or said nothing.
    spoken = [segment for segment in result["segments"] if segment["tokens"]]
    for number, segment in enumerate(spoken):
        yield Segment(
            id=number,
            start=float(segment["start"]),
            end=float(segment["end"]),
            text=segment["text"],
            confidence=math.exp(min(0.0, segment["avg_logprob"])),
            avg_logprob=segment["avg_logprob"],
            no_speech_prob=segment["no_speech_prob"],
            compression_ratio=segment["compression_ratio"],
            temperature=segment["temperature"],
            seek=segment["seek"],
            tokens=tuple(segment["tokens"]),
            words=tuple(
                Word(
                    word=word["word"],
                    start=float(word["start"]),
                    end=float(word["end"]),
                    confidence=float(word["probability"]),
                )
                for word in segment.get("words", ())
            ),
        )
