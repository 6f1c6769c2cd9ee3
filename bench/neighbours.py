"""What others feel of a long diarization: /health and short jobs in the same runner, beside the same without it.

`python -m bench.neighbours [--minutes 60]`; ends with 1 when the 99th percentile of /health is not below
PROMISED_P99_MS. The diarizer's networks are replaced by chance (bench/diarize.py): a GPU would have them, and what is
left is what holds Python's lock.
"""

import argparse
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

import numpy as np

from bench.diarize import replace_networks
from bench.health_latency import PROMISED_P99_MS, latencies_ms, say
from gpu_daemon.client import WhisperClient
from gpu_daemon.demo.child import DaemonChild
from gpu_daemon.demo.tour import sample_audio
from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.engine.diarize import DeviceKind, PyannoteDiarizer
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from gpu_daemon.engine.speakers import Speakers

QUIET_JOBS = 30
SETTINGS = {
    "DEFAULT_MODEL": "demo",
    "DIARIZATION_MODEL": "demo",
    "GPU_DAEMON_DIARIZER": "bench.neighbours:create",
    "REUSE_RESULTS": "false",
    "JOBS_PER_GPU": "4",
}


def create(device: DeviceKind, pyannote_device: Literal["auto", "cuda", "cpu"]) -> "WithoutNetworks":
    return WithoutNetworks(device, pyannote_device)


class WithoutNetworks(PyannoteDiarizer):
    def _load(self, spec: PipelineSpec) -> "Speakers":
        speakers = super()._load(spec)
        replace_networks(speakers)
        return speakers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as directory:
        short, long = (_noise(Path(directory) / f"{minutes}.wav", minutes) for minutes in (1, given.minutes))
        with DaemonChild(Path(directory) / "data", **SETTINGS) as daemon, WhisperClient(daemon.url) as client:
            client.enable_model("base", False)
            client.wait(client.submit(sample_audio(), model="demo"))
            client.wait(client.submit(short, task="diarize", diarize=True))  # torch, pyannote and both models are there
            left = iter(range(QUIET_JOBS))
            _phase(daemon.url, "short jobs alone", lambda: next(left, None) is None)

            ended = threading.Event()
            began_s = time.monotonic()
            job_id = client.submit(long, task="diarize", diarize=True)
            with ThreadPoolExecutor(1) as waiting:
                waited = waiting.submit(_wait, daemon.url, job_id, ended)
                p99_ms = _phase(daemon.url, f"{given.minutes} min diarized", ended.is_set)
                status = waited.result()
    print(f"{given.minutes} min: {status} in {time.monotonic() - began_s:.1f} s")
    return 0 if status == "completed" and p99_ms < PROMISED_P99_MS else 1


def _phase(url: str, what: str, enough: Callable[[], bool]) -> float:
    """The 99th percentile of /health in ms, while one short job is sent after the other."""
    over, took_s = threading.Event(), []
    with ThreadPoolExecutor(1) as asking, WhisperClient(url) as client:
        health = asking.submit(latencies_ms, url, over.is_set)
        try:
            while not enough():
                began_s = time.monotonic()
                client.wait(client.submit(sample_audio(), model="demo"))
                took_s.append(time.monotonic() - began_s)
        finally:
            over.set()
    p99_ms = say(what, health.result())
    print(f"  {len(took_s)} short jobs: median {median(took_s):.2f} s, worst {max(took_s):.2f} s")
    return p99_ms


def _wait(url: str, job_id: str, ended: threading.Event) -> str:
    try:
        with WhisperClient(url) as client:
            return client.wait(job_id).status
    finally:
        ended.set()


def _noise(path: Path, minutes: int) -> Path:
    chance = np.random.default_rng(minutes)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        for _ in range(minutes):
            file.writeframes((1000 * chance.standard_normal(60 * SAMPLE_RATE_HZ)).astype("<i2").tobytes())
    return path


if __name__ == "__main__":
    sys.exit(main())
