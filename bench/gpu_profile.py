"""Where the time goes on a GPU: the encoder and a step of the decoder beside the roofline, and a run's kernels by time.

`python -m bench.gpu_profile` (bench/gpu.sh). `network_ms` is a step without its rules, launched kernel by kernel;
`kernel_ms` is what the GPU computes of it, `as_graph_ms` the same captured. `launched_ms` is a whole step of the
engine, `replayed_ms` the same as it is recorded, and `record_ms` what that costs once, with the step itself.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.gpu_record import arguments, device_of, record
from bench.gpu_roofline import MEL_FRAMES, Rates, Roofline, measured, timed, wait
from bench.gpu_weights import BY_NAME, listen, loaded, noise, weights_of
from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.engine.batch import LENGTH_STEP, Batch
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.graphs import CudaGraphs, Recorder
from gpu_daemon.engine.model import Memory
from gpu_daemon.engine.sequence import Sequence
from gpu_daemon.engine.transcribe import WhisperEngine

LONGEST = 2 * LENGTH_STEP
TOP_KERNELS = 25
MOST_FILES = 32


def main() -> int:
    given = arguments(__doc__)
    device = device_of(given)
    rates = measured(device)
    for name in given.dimensions:
        engine = WhisperEngine(device, vram_reserve_mb=0)
        spec = loaded(engine, name, BY_NAME[name], weights_of(BY_NAME[name], given.tokens, device))
        model = engine._models.held()[0].model
        with torch.inference_mode():
            for n in given.files[:2]:
                _encoder(given, model, n, rates)
            for rows in given.files:
                _step(given, model, rows, rates)
        _run(given, engine, spec, device)
        engine.unload(name)
    return 0


def _encoder(given: argparse.Namespace, model: WhisperModel, n: int, rates: Rates) -> None:
    net, device = model.net, model.net.device
    mel = torch.randn(n, model.dims.n_mels, MEL_FRAMES, device=device, dtype=net.dtype)

    def encode() -> None:
        for _ in net.encoder.layers(mel):
            pass

    record(
        given.out,
        "encoder",
        model=model.name,
        windows=n,
        ms_per_window=1000 * timed(encode, device) / n,
        floor_ms=Roofline(model.dims).encoder_ms(rates),
    )


def _step(given: argparse.Namespace, model: WhisperModel, rows: int, rates: Rates) -> None:
    net, device, dims, roofline = model.net, model.net.device, model.dims, Roofline(model.dims)
    memory = Memory.empty(dims, rows, 1, net.dtype, device)
    memory.cross.normal_()
    tokens, positions = (torch.full((rows,), number, device=device) for number in (100, LONGEST - 1))

    def step() -> Tensor:
        return net.decoder.logits(net.decoder.step(tokens, positions, memory, n_windows=rows, longest=LONGEST))

    n_kernels, kernel_ms = _kernels(step, device)
    record(
        given.out,
        "step",
        model=model.name,
        rows=rows,
        floor_ms=roofline.step_ms(rates, rows, LONGEST),
        kernel_ms=kernel_ms,
        kernels=n_kernels,
        network_ms=1000 * timed(step, device),
        as_graph_ms=_as_graph_ms(step, device),
        launched_ms=1000 * timed(_batch(model, rows, None).step, device),
        **_recorded(model, rows, device),
        audio_gb=rows * roofline.row_bytes(0) / 1e9,
        weights_gb=roofline.weight_bytes / 1e9,
    )


def _recorded(model: WhisperModel, rows: int, device: torch.device) -> dict[str, float | None]:
    if device.type == "cpu":
        return {"replayed_ms": None, "record_ms": None}
    recorder = CudaGraphs()
    recorder.after = 1
    batch = _batch(model, rows, recorder)
    batch.step()
    wait(device)
    began_s = time.perf_counter()
    batch.step()
    wait(device)
    record_ms = 1000 * (time.perf_counter() - began_s)
    return {"replayed_ms": 1000 * timed(batch.step, device), "record_ms": record_ms}


def _batch(model: WhisperModel, rows: int, recorder: Recorder | None) -> Batch:
    batch = Batch(model, group=1, beams=False, recorder=recorder)
    dims, net = model.dims, model.net
    features = torch.randn(dims.n_audio_ctx, dims.n_audio_state, device=net.device, dtype=net.dtype)
    prompt = tuple(model.tokenizer().sot_sequence)
    batch.make_room(rows, at_most=rows)
    batch.admit([Sequence(prompt=prompt, sot_index=0, features=features, temperature=0.0, seed=0) for _ in range(rows)])
    return batch


def _kernels(step: Callable[[], object], device: torch.device) -> tuple[int | None, float | None]:
    """How many a step launches, and the milliseconds that they take by themselves."""
    if device.type == "cpu":
        return None, None
    step()
    wait(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        wait(device)
    averages = profiled.key_averages()
    kernels = [event for event in averages if event.self_device_time_total > 0]
    return sum(event.count for event in kernels), sum(event.self_device_time_total for event in kernels) / 1000


def _as_graph_ms(step: Callable[[], Tensor], device: torch.device) -> float | None:
    """None: it cannot be captured."""
    if device.type == "cpu":
        return None
    expected = step().clone()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = step()
    except RuntimeError as error:
        print(f"the step cannot be captured: {error}", file=sys.stderr)
        return None
    graph.replay()
    wait(device)
    if not torch.equal(result, expected):
        off_by = (result - expected).abs().max().item()
        print(f"a captured step is off by {off_by}, of {expected.abs().max().item()}", file=sys.stderr)
    return 1000 * timed(graph.replay, device)


def _run(given: argparse.Namespace, engine: WhisperEngine, spec: ModelSpec, device: torch.device) -> None:
    """Whole files: which kernels take how long, how long the GPU has nothing to do, how often it is waited for."""
    on_gpu = device.type == "cuda"
    files = noise(min(MOST_FILES, max(given.files)), 60 if on_gpu else given.seconds)
    listen(engine, spec, files)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        wait(device)
        began_s = time.perf_counter()
        listen(engine, spec, files)
        wait(device)
        took_s = time.perf_counter() - began_s
    averages = profiled.key_averages()
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    (given.out / f"profile-{spec.name}.txt").write_text(averages.table(sort_by=by, row_limit=TOP_KERNELS))
    calls = {event.key: event.count for event in averages}
    record(
        given.out,
        "profile",
        model=spec.name,
        files=len(files),
        took_s=took_s,
        busy=sum(getattr(event, by) for event in averages) / 1e6 / took_s,
        stream_waits=calls.get("cudaStreamSynchronize", 0),
        event_waits=calls.get("cudaEventSynchronize", 0),
    )


if __name__ == "__main__":
    sys.exit(main())
