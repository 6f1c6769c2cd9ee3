"""The engine: openai-whisper's `transcribe` as it is, made observable and stoppable."""

import gc
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import whisper

from gpu_daemon.engine.base import Audio, LoadedModel, ModelSpec, Progress
from gpu_daemon.engine.cache import MIB, ModelCache
from gpu_daemon.engine.checkpoint import Checkpoint, WatchedWhisper
from gpu_daemon.engine.faults import guarded
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions, Task
from gpu_daemon.transcript.model import Segment, Transcript, Word

SEED = 0
"""Sampling starts from here in each job, so that the same file gives the same text."""


def create(device: str, vram_reserve_mb: int) -> "WhisperEngine":
    """`device`: `cpu`, `cuda` or `rocm`; the mask in the environment leaves one GPU to this process."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    return WhisperEngine(torch.device("cpu" if device == "cpu" else "cuda:0"), vram_reserve_mb=vram_reserve_mb)


class WhisperEngine:
    torch_version = torch.__version__

    def __init__(self, device: torch.device, *, vram_reserve_mb: int) -> None:
        self._device = device
        self._models: ModelCache[WatchedWhisper] = ModelCache(
            free_bytes=self._free_bytes, reserve_bytes=vram_reserve_mb * MIB
        )
        self.device_name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
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

    def transcribe(self, spec: ModelSpec, audio: Audio, options: JobOptions, progress: Progress) -> Transcript:
        model = self._models.get(spec)
        if model is None:
            raise JobError(f"the model {spec.name} is not loaded")
        _check(spec, model, options)
        torch.manual_seed(SEED)
        result = guarded(lambda: listen(model, audio, options, progress), self._release_all)
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

    def _free_bytes(self) -> int | None:
        gc.collect()
        if self._device.type == "cpu":
            return None
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def _release_all(self) -> None:
        self._models.clear()
        self._free_bytes()


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
