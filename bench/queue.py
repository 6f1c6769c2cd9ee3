"""A queue around work that takes no time: the daemon, and Celery and RQ on Redis doing the same.

Each takes an upload of 200 kB over HTTP, stores it, queues a job for one worker process and answers with its result.
The daemon does so with its promises kept: file, row and result are on disk before it says so, and its worker has as
many jobs at once as it has on a GPU (JOBS_PER_GPU). Redis keeps nothing on disk here, and a peer's file is not synced.
They take turns, as the machine may be faster now than a minute later; each figure is the median of its rounds.

`make bench-queue`; ends with 1 when from accepted to started takes longer than with Celery, or fewer jobs per second
are done; or when either is not 10 times better than RQ's.
"""

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.cpu import used_ms
from gpu_daemon.demo.child import CHECKOUT, DaemonChild
from tests.ports import kept_port

PEERS_PYTHON = CHECKOUT / ".cache" / "bench-peers" / "bin" / "python"
SAMPLES = 100_000
RATE_HZ = 16_000
WARM_UP = 30
ONE_AT_A_TIME = 100
CLIENTS = 32
BUSY_S = 5.0
ROUNDS = 5
START_TIMEOUT_S = 60.0
SEED = 20
CELERY, RQ = "Celery + Redis", "RQ + Redis"
OURS = "gpu_daemon"
TIMES_RQ = 10.0

_numbers = count()
_noise = np.random.default_rng(SEED).integers(-8000, 8000, SAMPLES, dtype="<i2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    started_ms: float
    """From accepted to started, median of jobs sent one at a time."""
    answered_ms: float
    """From the first byte sent to the result, median of the same."""
    answered_p95_ms: float
    jobs_per_s: float
    cpu_ms: Mapping[str, float]
    """What one of them takes of the processor, by part."""

    @classmethod
    def middle(cls, rounds: Sequence["Figures"]) -> "Figures":
        def of(name: str) -> float:
            return float(median(getattr(one, name) for one in rounds))

        return cls(
            started_ms=of("started_ms"),
            answered_ms=of("answered_ms"),
            answered_p95_ms=of("answered_p95_ms"),
            jobs_per_s=of("jobs_per_s"),
            cpu_ms={part: median(one.cpu_ms[part] for one in rounds) for part in rounds[0].cpu_ms},
        )


class Connection:
    """One client: as little HTTP as will do, so that what is measured is not the client."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, fields: dict[str, str]) -> tuple[dict[str, str], Any]:
        """Uploads a file that is like no other."""
        body = _form(fields)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: multipart/form-data; boundary=bench\r\n\r\n"
        )
        return await self._exchange(head.encode() + body)

    async def get(self, path: str) -> Any:
        return (await self._exchange(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode()))[1]

    async def _exchange(self, request: bytes) -> tuple[dict[str, str], Any]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        assert self._reader is not None
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in head[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers["content-length"]))
        if head[0].split()[1] != "200":
            raise RuntimeError(f"{head[0]}: {body[:500]!r}")
        if headers.get("connection") == "close":
            self.close()
        return headers, json.loads(body)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def _form(fields: dict[str, str]) -> bytes:
    parts = [
        f'--bench\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    file = b'--bench\r\nContent-Disposition: form-data; name="file"; filename="talk.wav"\r\n\r\n'
    return b"".join([*parts, file, _wav(next(_numbers)), b"\r\n--bench--\r\n"])


def _wav(number: int) -> bytes:
    """Loud noise, with `number` in its last samples: no result of an earlier one will do."""
    samples = _noise.copy()
    samples[-4:] = np.frombuffer(number.to_bytes(8, "little"), "<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(RATE_HZ)
        wav.writeframes(samples.tobytes())
    return file.getvalue()


async def measure(
    url: str, fields: dict[str, str], started_after_s: str | None, processes: Mapping[int, str]
) -> Figures:
    """`started_after_s`: the member of the answer that says it; None: asked of our own job."""
    client = Connection(url)
    for _ in range(WARM_UP):
        await client.post("/transcribe", fields)
    started_s, answered_s = [], []
    for _ in range(ONE_AT_A_TIME):
        began = time.perf_counter()
        headers, answer = await client.post("/transcribe", fields)
        answered_s.append(time.perf_counter() - began)
        if started_after_s is None:
            job = await client.get(f"/jobs/{headers['x-job-id']}")
            created, started = (datetime.fromisoformat(job[name]) for name in ("created_at", "started_at"))
            started_s.append((started - created).total_seconds())
        else:
            started_s.append(answer[started_after_s])
    client.close()
    answered = quantiles(answered_s, n=20)
    before = used_ms(processes)
    n_jobs, took_s = await _throughput(url, fields)
    used = used_ms(processes) - before
    return Figures(
        started_ms=quantiles(started_s, n=2)[0] * 1000,
        answered_ms=quantiles(answered_s, n=2)[0] * 1000,
        answered_p95_ms=answered[-1] * 1000,
        jobs_per_s=n_jobs / took_s,
        cpu_ms={part: part_ms / n_jobs for part, part_ms in used.items()},
    )


async def _throughput(url: str, fields: dict[str, str]) -> tuple[int, float]:
    """Jobs, and the seconds they took."""
    began = time.perf_counter()
    done = 0

    async def send() -> None:
        nonlocal done
        client = Connection(url)
        while time.perf_counter() < began + BUSY_S:
            await client.post("/transcribe", fields)
            done += 1
        client.close()

    await asyncio.gather(*(send() for _ in range(CLIENTS)))
    return done, time.perf_counter() - began


def ours(directory: Path) -> Figures:
    settings = {
        "DEVICES": "cpu",
        "JOBS_PER_GPU": "32",
        "DEFAULT_MODEL": "demo",
        "GPU_DAEMON_ENGINE": "bench.noop_engine:create",
    }
    with DaemonChild(directory / "data", LOG_LEVEL="INFO", **settings) as daemon:
        return asyncio.run(measure(daemon.url, {"wait": "true", "model": "demo"}, None, {daemon.pid: "daemon"}))


def of_peer(queue: str, worker: list[str], directory: Path) -> Figures:
    with ExitStack() as running:
        redis_port, http_port = (running.enter_context(kept_port()).getsockname()[1] for _ in range(2))
        redis = f"redis://127.0.0.1:{redis_port}/0"
        nothing_on_disk = ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        redis_server = running.enter_context(
            _process("redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", *nothing_on_disk)
        )
        _until_listening(redis_port)
        environment = {"PEERS_QUEUE": queue, "PEERS_REDIS": redis, "RQ_REDIS_URL": redis, "PEERS_FILES": str(directory)}
        working = running.enter_context(_process(str(PEERS_PYTHON), "-m", *worker, environment=environment))
        front = ["-m", "uvicorn", "bench.peers.front:app", "--port", str(http_port), "--log-level", "warning"]
        serving = running.enter_context(_process(str(PEERS_PYTHON), *front, environment=environment))
        _until_listening(http_port)
        processes = {redis_server: "Redis", working: "worker", serving: "front"}
        return asyncio.run(measure(f"http://127.0.0.1:{http_port}", {}, "started_after_s", processes))


@contextmanager
def _process(*command: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """Its pid."""
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)} | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if "BENCH_VERBOSE" in os.environ else subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_listening(port: int) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def main() -> int:
    if shutil.which("redis-server") is None or not PEERS_PYTHON.exists():
        print("redis-server or the peers' packages are missing: make bench-queue installs them", file=sys.stderr)
        return 2
    celery = ["celery", "--app", "bench.peers.work", "worker", "--concurrency", "1", "--loglevel", "error"]
    rq = ["rq.cli", "worker", "--quiet"]
    rounds: dict[str, list[Figures]] = {OURS: [], CELERY: [], RQ: []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-", dir=CHECKOUT / ".cache") as directory:
            rounds[OURS].append(ours(Path(directory)))
            rounds[CELERY].append(of_peer("celery", celery, Path(directory)))
            rounds[RQ].append(of_peer("rq", rq, Path(directory)))
    measured = {name: Figures.middle(of_one) for name, of_one in rounds.items()}
    _say(measured)
    mine, celerys, rqs = measured[OURS], measured[CELERY], measured[RQ]
    level = mine.started_ms <= celerys.started_ms and mine.jobs_per_s >= celerys.jobs_per_s
    far = mine.started_ms * TIMES_RQ <= rqs.started_ms and mine.jobs_per_s >= rqs.jobs_per_s * TIMES_RQ
    return 0 if level and far else 1


def _say(measured: dict[str, Figures]) -> None:
    mine = measured[OURS]
    print(
        f"{SAMPLES * 2 // 1000} kB per job, one worker, {os.cpu_count()} cores, {ROUNDS} rounds; "
        f"ratio: how many times better the daemon is\n"
        f"{'':15} accepted to started   submit to result, one at a time    at {CLIENTS} clients\n"
        f"{'':15}   median     ratio       median       p95   ratio        jobs/s   ratio"
    )
    for name, one in measured.items():
        print(
            f"{name:15} {one.started_ms:6.1f} ms {one.started_ms / mine.started_ms:8.2f}"
            f"    {one.answered_ms:6.1f} ms {one.answered_p95_ms:6.1f} ms {one.answered_ms / mine.answered_ms:7.2f}"
            f"     {one.jobs_per_s:9.1f} {mine.jobs_per_s / one.jobs_per_s:7.2f}"
        )
    print("\nprocessor time of one of them, at these clients")
    for name, one in measured.items():
        parts = ", ".join(f"{part} {part_ms:.1f}" for part, part_ms in sorted(one.cpu_ms.items()))
        print(f"{name:15} {sum(one.cpu_ms.values()):6.1f} ms ({parts})")


if __name__ == "__main__":
    sys.exit(main())
