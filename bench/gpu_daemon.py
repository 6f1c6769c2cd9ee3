"""The whole daemon on a GPU: jobs of mixed length, how busy the GPU is while some wait, and how fast /health answers.

`python -m bench.gpu_daemon` (bench/gpu.sh). The checkpoint has the dimensions of the last of --dimensions, weights by
chance, and says --tokens tokens in each window. Files are plain WAV, which ffmpeg is not needed for.
"""

import argparse
import asyncio
import hashlib
import random
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import httpx2
import pynvml
import torch

from bench.gpu_record import arguments, device_of, record
from bench.gpu_weights import BY_NAME, noise, weights_of
from bench.health_latency import latencies_ms
from gpu_daemon.client import WhisperClient
from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.migrate import migrate
from gpu_daemon.database.pool import open_pool
from gpu_daemon.demo.child import CHECKOUT, DaemonChild
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

N_JOBS = 200
SHORTEST_S, LONGEST_S = 5, 600
SENDERS = 8
JOBS_PER_GPU = 64
EVERY_S = 0.2
FIELDS: dict[str, Any] = {
    "model": "bench",
    "language": "en",
    "temperature": "0",
    "condition_on_previous_text": "false",
    "trim_silence": "false",
}


def main() -> int:
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as name:
        return asyncio.run(_bench(given, Path(name)))


async def _bench(given: argparse.Namespace, directory: Path) -> int:
    dry = given.device == "cpu"
    server = EmbeddedPostgres(directory / "postgres")
    database = await server.start()
    try:
        pool = await open_pool(database)
        await migrate(pool, CHECKOUT / "migrations")
        checkpoint = await asyncio.to_thread(_checkpoint, given, directory / "bench.pt")
        await pool.execute("UPDATE model_settings SET enabled = false")
        key = await pool.fetch(
            "INSERT INTO whisper_models (name, source, path, sha256) VALUES ('bench', 'file', $1, $2) "
            "RETURNING id_model",
            str(checkpoint),
            hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        )
        await pool.execute("INSERT INTO model_settings (id_model, enabled) VALUES ($1, true)", key[0][0])
        await pool.close()
        settings = {
            "DB_HOST": database.host,
            "DB_PORT": str(database.port),
            "DB_NAME": database.database,
            "DB_USER": database.user,
            "DB_PASS": database.password,
            "DEVICES": "cpu" if dry else "auto",
            "DEFAULT_MODEL": "bench",
            "JOBS_PER_GPU": str(JOBS_PER_GPU),
            "REUSE_RESULTS": "false",
            "LOG_LEVEL": "INFO",
        }
        return await asyncio.to_thread(_load, given, directory, settings)
    finally:
        await server.stop()


def _checkpoint(given: argparse.Namespace, path: Path) -> Path:
    dimensions = BY_NAME[given.dimensions[-1]]
    weights = weights_of(dimensions, given.tokens, device_of(given))
    torch.save({"dims": vars(dimensions), "model_state_dict": {name: one.cpu() for name, one in weights.items()}}, path)
    return path


def _load(given: argparse.Namespace, directory: Path, settings: dict[str, str]) -> int:
    chance = random.Random(3)
    n_jobs, longest_s = (3, 2 * SHORTEST_S) if given.device == "cpu" else (N_JOBS, LONGEST_S)
    durations_s = [round(chance.uniform(SHORTEST_S, longest_s)) for _ in range(n_jobs)]
    sound = noise(n_jobs, longest_s)
    with DaemonChild(directory / "data", **settings) as daemon, WhisperClient(daemon.url) as client:
        client.wait(client.submit(_written(directory / "first.wav", sound[0][: 30 * SAMPLE_RATE_HZ]), **FIELDS))
        ended = threading.Event()
        watch = ThreadPoolExecutor(2)
        health = watch.submit(latencies_ms, daemon.url, ended.is_set)
        busy = watch.submit(_busy_percent, daemon.url, ended.is_set, given.device)

        def send(number: int) -> str:
            path = _written(directory / f"{number}.wav", sound[number][: durations_s[number] * SAMPLE_RATE_HZ])
            with WhisperClient(daemon.url) as sender:
                return sender.submit(path, **FIELDS)

        began_s = time.perf_counter()
        with ThreadPoolExecutor(SENDERS) as senders:
            job_ids = list(senders.map(send, range(n_jobs)))
        states = [client.wait(job_id).status for job_id in job_ids]
        took_s = time.perf_counter() - began_s
        ended.set()
        watch.shutdown()
    percentages = busy.result()
    record(
        given.out,
        "daemon",
        model=given.dimensions[-1],
        jobs=n_jobs,
        completed=states.count("completed"),
        took_s=took_s,
        real_time_factor=sum(durations_s) / took_s,
        gpu_busy_percent_while_queued=mean(percentages) if percentages else None,
        health_p99_ms=quantiles(health.result(), n=100)[98],
    )
    return 0 if states.count("completed") == n_jobs else 1


def _written(path: Path, samples: object) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(bytes(memoryview(samples)))  # type: ignore[arg-type]
    return path


def _busy_percent(url: str, enough: Callable[[], bool], device: str) -> list[float]:
    """As NVML says, whenever jobs were waiting."""
    handle = None
    if device == "cuda":
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    percentages = []
    with httpx2.Client(base_url=url, trust_env=False) as http:
        while not enough():
            queued = http.get("/dashboard/state").raise_for_status().json()["queue"]["queued"]
            if queued and handle is not None:
                percentages.append(float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
            time.sleep(EVERY_S)
    return percentages


if __name__ == "__main__":
    sys.exit(main())
