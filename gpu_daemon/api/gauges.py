"""What is, as metrics: queue, workers, models, callbacks, GPUs, host. Nothing is said of what is not known."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gpu_daemon.catalogue.status import ModelState, ModelStatus
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.reading import MIB, GpuReading, HostReading
from gpu_daemon.metrics import PREFIX
from gpu_daemon.runner.protocol import PIPELINE
from gpu_daemon.scheduling.status import WorkerState, WorkerStatus

UP = frozenset({WorkerState.IDLE, WorkerState.BUSY})
"""Of workers that take jobs, at least when they have room."""
GPU_LABELS = ("worker", "gpu", "uuid", "name")
GPU_FIGURES: Mapping[str, tuple[str, Callable[[GpuReading], float | None]]] = {
    "gpu_utilization_ratio": ("How busy it is, 0 to 1.", lambda gpu: _scaled(gpu.util_percent, 0.01)),
    "gpu_memory_used_bytes": ("In use by anybody.", lambda gpu: _scaled(gpu.vram_used_mb, MIB)),
    "gpu_memory_runner_bytes": ("In use by this daemon's runner.", lambda gpu: _scaled(gpu.vram_ours_mb, MIB)),
    "gpu_memory_free_bytes": ("Free.", lambda gpu: _scaled(gpu.vram_free_mb, MIB)),
    "gpu_memory_total_bytes": ("All it has.", lambda gpu: _scaled(gpu.vram_total_mb, MIB)),
    "gpu_temperature_celsius": ("Of the chip.", lambda gpu: gpu.temperature_c),
    "gpu_power_watts": ("What it draws.", lambda gpu: gpu.power_w),
    "gpu_power_limit_watts": ("What it may draw.", lambda gpu: gpu.power_limit_w),
    "gpu_sm_clock_hertz": ("Of what computes.", lambda gpu: _scaled(gpu.clock_sm_mhz, 1e6)),
    "gpu_memory_clock_hertz": ("Of its memory.", lambda gpu: _scaled(gpu.clock_mem_mhz, 1e6)),
    "gpu_throttled": ("1 while its clocks are held down.", lambda gpu: _flag(gpu.throttle)),
    "gpu_ecc_uncorrected_errors": ("Since its driver was loaded.", lambda gpu: gpu.ecc_errors),
    "gpu_processes": ("That use it.", lambda gpu: gpu.processes),
    "gpu_fan_ratio": ("Of its fan's full speed.", lambda gpu: _scaled(gpu.fan_percent, 0.01)),
}
HOST_FIGURES: Mapping[str, tuple[str, Callable[[HostReading], float | None]]] = {
    "host_cpu_ratio": ("How busy all processors are together, 0 to 1.", lambda host: _scaled(host.cpu_percent, 0.01)),
    "host_memory_used_bytes": ("Not to be had without swapping.", lambda host: _scaled(host.memory_used_mb, MIB)),
    "host_memory_total_bytes": ("All there is.", lambda host: _scaled(host.memory_total_mb, MIB)),
    "disk_free_bytes": ("Where DATA_DIR is.", lambda host: _scaled(host.disk_free_mb, MIB)),
    "disk_total_bytes": ("Where DATA_DIR is.", lambda host: _scaled(host.disk_total_mb, MIB)),
}


def of_workers(workers: Sequence[WorkerStatus]) -> Iterator[Metric]:
    up = _gauge("worker_up", "1 while it takes jobs.", "worker")
    busy = _gauge("worker_busy", "1 while it runs a job.", "worker")
    jobs = _gauge("worker_jobs", "Jobs that share its device at this moment.", "worker")
    restarts = CounterMetricFamily(f"{PREFIX}_worker_runner_restarts", "Of its runner.", labels=["worker"])
    loaded = _gauge("model_loaded_bytes", "Of a model in the memory of a worker's device.", "model", "worker")
    for worker in workers:
        number = [str(worker.index)]
        up.add_metric(number, worker.state in UP)
        busy.add_metric(number, bool(worker.jobs))
        jobs.add_metric(number, len(worker.jobs))
        restarts.add_metric(number, worker.restarts)
        for model, size_bytes in worker.loaded.items():
            loaded.add_metric([_shown(model), *number], size_bytes)
    yield from (up, busy, jobs, restarts, loaded)


def of_models(models: Sequence[ModelStatus]) -> Iterator[Metric]:
    """Those that are enabled."""
    ready = _gauge("model_ready", "1 when a job may use it.", "model")
    done = _gauge("model_download_bytes", "Of its file that are here.", "model")
    size = _gauge("model_size_bytes", "Of its file.", "model")
    for model in models:
        if model.enabled:
            label = [_shown(model.name)]
            ready.add_metric(label, model.state is ModelState.READY)
            done.add_metric(label, model.done_bytes)
            if model.size_bytes is not None:
                size.add_metric(label, model.size_bytes)
    yield from (ready, done, size)


def of_gpus(gpus: Mapping[int, tuple[Device, GpuReading]]) -> Iterator[Metric]:
    """By the index of the worker."""
    up = _gauge("gpu_up", "1 while its driver says anything of it.", *GPU_LABELS)
    figures = {name: _gauge(name, meaning, *GPU_LABELS) for name, (meaning, _) in GPU_FIGURES.items()}
    for worker, (device, reading) in gpus.items():
        labels = [str(worker), str(device.index), device.uuid or "", device.name]
        up.add_metric(labels, reading.read_at_s is not None and reading.reason is None)
        for name, (_, figure) in GPU_FIGURES.items():
            if (value := figure(reading)) is not None:
                figures[name].add_metric(labels, value)
    yield up
    yield from figures.values()


def of_host(host: HostReading | None) -> Iterator[Metric]:
    for name, (meaning, figure) in HOST_FIGURES.items():
        yield gauge(name, meaning, None if host is None else figure(host))


def gauge(name: str, meaning: str, value: float | None) -> Metric:
    """Without labels."""
    family = _gauge(name, meaning)
    if value is not None:
        family.add_metric([], value)
    return family


def by_state(name: str, meaning: str, values: Mapping[str, float]) -> Metric:
    family = _gauge(name, meaning, "state")
    for state, value in values.items():
        family.add_metric([state], value)
    return family


def _shown(model: str) -> str:
    """A pipeline that is a directory of somebody's own by its last name: where it is is nobody's business."""
    name = model.removeprefix(PIPELINE)
    return model.removesuffix(name) + Path(name).name if name[:1] in ("/", "~", ".") else model


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", meaning, labels=labels)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _flag(words: tuple[str, ...] | None) -> float | None:
    return None if words is None else float(bool(words))
