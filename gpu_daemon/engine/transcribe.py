"""The engine: what whisper.transcribe gives, for many files at once."""

import gc
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from gpu_daemon.engine import selftest
from gpu_daemon.engine.base import LoadedModel, ModelSpec, Progress, Samples, Transcription
from gpu_daemon.engine.cache import MIB, ModelCache
from gpu_daemon.engine.checkpoint import Checkpoint
from gpu_daemon.engine.faults import guarded
from gpu_daemon.engine.graphs import CudaGraphs, Recorder
from gpu_daemon.engine.scheduler import Limits, Scheduler
from gpu_daemon.engine.transcription import WhisperTranscription, check
from gpu_daemon.engine.vad import VoiceDetector, plan
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import JobOptions

CPU_LIMITS = (8, 1)
GPU_LIMITS = (64, 8)
"""Windows decoded, and encoded, at once. One window gives all cores of a CPU enough to do in its encoder."""
ALIGNING_THREADS = 2


def create(device: str, vram_reserve_mb: int) -> "WhisperEngine":
    """`device`: `cpu`, `cuda` or `rocm`; the mask in the environment leaves one GPU to this process.

    Raises StartupError when the device computes wrongly.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    engine = WhisperEngine(torch.device("cpu" if device == "cpu" else "cuda:0"), vram_reserve_mb=vram_reserve_mb)
    selftest.check(engine)
    selftest.check_graphs(engine)
    return engine


class WhisperEngine:
    torch_version = str(torch.__version__)

    def __init__(self, device: torch.device, *, vram_reserve_mb: int, max_rows: int | None = None) -> None:
        """`max_rows`: windows decoded at once, at most."""
        self.recorder: Recorder | None = None if device.type == "cpu" else CudaGraphs()
        """Of the steps of models that are loaded from now on."""
        self._device = device
        self._dtype = torch.float32 if device.type == "cpu" else torch.float16
        self._max_rows, self._max_encoded = CPU_LIMITS if device.type == "cpu" else GPU_LIMITS
        self._max_rows = max_rows or self._max_rows
        self._models: ModelCache[Scheduler] = ModelCache(
            free_bytes=self._free_bytes,
            reserve_bytes=vram_reserve_mb * MIB,
            in_use=lambda scheduler: bool(scheduler.transcriptions),
        )
        self._limits: dict[str, Limits] = {}
        """By the checkpoint's hash."""
        self._threads = ThreadPoolExecutor(ALIGNING_THREADS, thread_name_prefix="align")
        self._detector = VoiceDetector()
        self._turn = 0
        self.device_name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)

    @property
    def encoded_windows(self) -> int:
        """Of the models that are loaded, since they were."""
        return sum(scheduler.encoded_windows for scheduler in self._models.held())

    def load(self, spec: ModelSpec, progress: Progress) -> None:
        if self._models.get(spec) is not None:
            return
        checkpoint = Checkpoint.open(spec)
        size_bytes = checkpoint.size_bytes(self._dtype)
        self._models.make_room(spec, size_bytes)
        model = guarded(lambda: checkpoint.build(self._device, self._dtype, progress), self._release_idle)
        limits = self._limits.setdefault(spec.sha256, Limits(self._max_rows, self._max_encoded))
        self._models.put(spec, Scheduler(model, limits, self._threads, self.recorder), size_bytes)

    def begin(self, spec: ModelSpec, audio: Samples, options: JobOptions) -> WhisperTranscription:
        scheduler = self._models.get(spec)
        if scheduler is None:
            raise JobError(f"the model {spec.name} is not loaded")
        check(scheduler.model, options)
        transcription = WhisperTranscription(scheduler.model, audio, options, partial(plan, self._detector))
        scheduler.add(transcription)
        return transcription

    def step(self) -> None:
        """Of one model's files; of each model's in turn."""
        busy = [scheduler for scheduler in self._models.held() if scheduler.transcriptions]
        if busy:
            self._turn += 1
            guarded(busy[self._turn % len(busy)].step, self._release_idle)

    def drop(self, transcription: Transcription) -> None:
        for scheduler in self._models.held():
            for held in scheduler.transcriptions:
                if held is transcription:
                    scheduler.drop(held)

    def unload(self, name: str) -> None:
        self._models.drop(name)
        self._free_bytes()

    def loaded(self) -> tuple[LoadedModel, ...]:
        return self._models.loaded()

    def _free_bytes(self) -> int | None:
        gc.collect()
        if self._device.type == "cpu":
            return None
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def _release_idle(self) -> None:
        self._models.drop_idle()
        self._free_bytes()
