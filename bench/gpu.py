"""The engine on a GPU, beside what the device could do at best and beside `whisper.transcribe` (bench/gpu.sh).

`python -m bench.gpu check|engine|summary`. Checkpoints have openai's dimensions and weights by chance that say
--tokens tokens in every window. What is measured goes by the clock on the wall, from samples to segments, after a
warm-up, twice with recorded steps and once without.
"""

import argparse
import platform
import subprocess
import sys
import time

import torch
import whisper

from bench.gpu_record import arguments, device_of, record, summary
from bench.gpu_roofline import WINDOW_S, Rates, Roofline, measured, wait
from bench.gpu_weights import BY_NAME, Weights, listen, loaded, noise, reference, weights_of
from gpu_daemon.engine.base import Audio
from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.level import as_floats
from gpu_daemon.engine.transcribe import GPU_LIMITS, WhisperEngine, create
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

RUNS = 2


def check(given: argparse.Namespace) -> None:
    """Versions, the card, its rates; the engine's own self-test must pass."""
    device = device_of(given)
    if device.type == "cuda":
        print(subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, text=True, check=False).stdout)
    began_s = time.perf_counter()
    name = create(given.device, 0).device_name
    self_test_s = time.perf_counter() - began_s
    rates = measured(device)
    record(
        given.out,
        "check",
        device=name,
        driver=_driver(),
        python=platform.python_version(),
        torch=torch.__version__,
        whisper=whisper.__version__,
        self_test_s=self_test_s,
        tflop_per_s=rates.flop_per_s / 1e12,
        tb_per_s=rates.bytes_per_s / 1e12,
    )


def _driver() -> str:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def engine(given: argparse.Namespace) -> None:
    """Whole files, 1 to 64 at once, and one with whisper.transcribe."""
    device = device_of(given)
    rates = measured(device)
    for name in given.dimensions:
        weights = weights_of(BY_NAME[name], given.tokens, device)
        for graphs in (True, False):
            _ours(given, name, weights, device, rates, graphs=graphs)
        _theirs(given, name, weights, device)


def _ours(
    given: argparse.Namespace, name: str, weights: Weights, device: torch.device, rates: Rates, *, graphs: bool
) -> None:
    dimensions = BY_NAME[name]
    engine = WhisperEngine(device, vram_reserve_mb=0)
    if not graphs:
        engine.recorder = None
    spec = loaded(engine, name, dimensions, weights)
    for n_files in given.files:
        files = noise(n_files, given.seconds)
        listen(engine, spec, [file[: int(WINDOW_S) * SAMPLE_RATE_HZ] for file in files])  # what is done once only
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        best = Roofline(dimensions).real_time_factor(rates, min(n_files, GPU_LIMITS[0]), given.tokens)
        for run in range(RUNS if graphs else 1):
            with _Steps() as steps:
                wait(device)
                began_s = time.perf_counter()
                tokens = listen(engine, spec, files)
                wait(device)
                took_s = time.perf_counter() - began_s
            factor = n_files * given.seconds / took_s
            assert tokens == n_files * _n_windows(given) * given.tokens, f"{tokens} tokens were said"
            record(
                given.out,
                "engine",
                model=name,
                files=n_files,
                graphs=graphs,
                run=run,
                took_s=took_s,
                real_time_factor=factor,
                of_roofline=factor / best,
                steps_per_s=steps.n / took_s,
                rows_per_step=steps.rows / max(1, steps.n),
                peak_mib=_peak_mib(device),
            )
    engine.unload(name)


def _theirs(given: argparse.Namespace, name: str, weights: Weights, device: torch.device) -> None:
    model = reference(BY_NAME[name], weights, device)
    options = {"language": "en", "temperature": (0.0,), "condition_on_previous_text": False}

    def heard(file: Audio) -> int:
        result = whisper.transcribe(model, file, fp16=device.type == "cuda", **options)
        return sum(len(segment["tokens"]) for segment in result["segments"])

    file = as_floats(noise(1, given.seconds)[0])
    heard(file[: int(WINDOW_S) * SAMPLE_RATE_HZ])
    began_s = time.perf_counter()  # it waits for the device by itself
    tokens = heard(file)
    took_s = time.perf_counter() - began_s
    assert tokens == _n_windows(given) * given.tokens, f"whisper.transcribe said {tokens} tokens"
    record(
        given.out,
        "whisper.transcribe",
        model=name,
        files=1,
        took_s=took_s,
        real_time_factor=given.seconds / took_s,
        peak_mib=_peak_mib(device),
    )


def _n_windows(given: argparse.Namespace) -> int:
    """Of each file."""
    return -int(-given.seconds // WINDOW_S)


class _Steps:
    """How often the batches of all models step meanwhile, and with how many rows in all."""

    def __enter__(self) -> "_Steps":
        self.n = self.rows = 0
        self._step = step = Batch.step

        def counted(batch: Batch) -> None:
            self.n, self.rows = self.n + 1, self.rows + len(batch.sequences)
            step(batch)

        Batch.step = counted  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        Batch.step = self._step  # type: ignore[method-assign]


def _peak_mib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None


def main() -> int:
    parts = {"check": check, "engine": engine}
    given = arguments(__doc__, parts=(*parts, "summary"))
    if given.part == "summary":
        said = summary(given.out)
        (given.out / "summary.txt").write_text(said)
        print(said)
        return 0
    parts[given.part](given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
