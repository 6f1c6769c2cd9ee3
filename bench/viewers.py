"""What 300 open pages cost: /health and the daemon's own processor time while speech is transcribed, watched and not.

`python -m bench.viewers [--viewers 300] [--seconds 10]`; ends with 1 when, with all of them watching a busy daemon, the
99th percentile of /health is above PROMISED_P99_MS, or the daemon takes PROMISED_SHARE of a core or more. The viewers
are in a process of their own, and do as little as a WebSocket allows.
"""

import argparse
import asyncio
import base64
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from bench.cpu import own_s
from bench.health_latency import SEED, latencies_ms, say
from gpu_daemon.client import WhisperClient
from gpu_daemon.demo.child import DaemonChild
from gpu_daemon.demo.tour import sample_audio
from tests.speech import conversation, write

PROMISED_P99_MS = 20.0
PROMISED_SHARE = 0.30
N_SENTENCES, COPIES = 100, 24
"""A file of five minutes, so often: more than a CPU gets done meanwhile."""
JOBS_AT_ONCE = 32
SETTINGS = {"DEFAULT_MODEL": "demo", "REUSE_RESULTS": "false"}
START_TIMEOUT_S = 60.0
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
"""Opcodes of RFC 6455."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watch is not None:
        asyncio.run(_watch(given.watch, given.viewers))
        return 0
    return _measure(given.viewers, given.seconds)


def _measure(n_viewers: int, seconds: float) -> int:
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as directory:
        kept = [
            _transcribing(Path(directory) / "transcribing", n_viewers, seconds),
            _telling(Path(directory) / "telling", n_viewers, seconds),
        ]
    return 0 if all(kept) else 1


def _transcribing(directory: Path, n_viewers: int, seconds: float) -> bool:
    """The bundled model on the CPU, which the daemon then has to share. Were the promises kept?"""
    with DaemonChild(directory, **SETTINGS) as daemon, WhisperClient(daemon.url) as client:
        client.enable_model("base", False)
        client.wait(client.submit(sample_audio(), model="demo"))  # the runner is up, the model loaded
        _watched(daemon, "idle", n_viewers, seconds)
        speech = write(conversation("en", SEED, N_SENTENCES), directory / "speech.wav", "wav")
        job_ids = [client.submit(speech, model="demo") for _ in range(COPIES)]
        _phase(daemon, "transcribing, nobody watches", seconds)
        kept = _watched(daemon, "transcribing", n_viewers, seconds)
        still_busy = client.job(job_ids[-1]).status in ("queued", "processing")
        for job_id in job_ids:
            with suppress(Exception):  # it has ended
                client.cancel(job_id)
    if not still_busy:
        print("the worker ran out of work: these figures are not those of a busy one", file=sys.stderr)
    return kept and still_busy


def _telling(directory: Path, n_viewers: int, seconds: float) -> bool:
    """As a GPU does it: many jobs at once, each of them telling of its progress, and the CPU left alone."""
    engine = {"GPU_DAEMON_ENGINE": "tests.fake_engine:create", "JOBS_PER_GPU": str(JOBS_AT_ONCE)}
    with DaemonChild(directory, **SETTINGS, **engine) as daemon, WhisperClient(daemon.url) as client:
        client.enable_model("base", False)
        for _ in range(JOBS_AT_ONCE):
            client.submit(sample_audio(), model="demo", prompt=f"fake:sleep={2 * seconds + START_TIMEOUT_S}")
        while len(httpx2.get(f"{daemon.url}/queue", trust_env=False).json()["running"]) < JOBS_AT_ONCE:
            time.sleep(0.1)
        _phase(daemon, f"{JOBS_AT_ONCE} jobs, nobody watches", seconds)
        return _watched(daemon, f"{JOBS_AT_ONCE} jobs", n_viewers, seconds)


def _watched(daemon: DaemonChild, what: str, n_viewers: int, seconds: float) -> bool:
    with _Watchers(daemon.url, n_viewers) as watchers:
        p99_ms, share = _phase(daemon, f"{what}, {n_viewers} watch", seconds)
    print(f"  {watchers.told(seconds)}")
    return p99_ms <= PROMISED_P99_MS and share < PROMISED_SHARE


def _phase(daemon: DaemonChild, what: str, seconds: float) -> tuple[float, float]:
    """The 99th percentile of /health in ms, and the daemon's share of a core."""
    began_s, used_s = time.monotonic(), own_s(daemon.pid)
    p99_ms = say(what, latencies_ms(daemon.url, lambda: time.monotonic() - began_s >= seconds))
    share = (own_s(daemon.pid) - used_s) / (time.monotonic() - began_s)
    print(f"  the daemon took {100 * share:.1f} % of a core")
    return p99_ms, share


class _Watchers:
    """The process of the viewers: all have their first snapshot when the block is entered."""

    def __init__(self, url: str, count: int) -> None:
        self._command = [sys.executable, "-m", "bench.viewers", "--watch", url, "--viewers", str(count)]
        self._count = count
        self._heard: dict[str, Any] = {}

    def __enter__(self) -> "_Watchers":
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "all watch\n":
            self._process.kill()
            raise RuntimeError("not all viewers got a snapshot")
        return self

    def __exit__(self, *error: object) -> None:
        self._heard = json.loads(self._process.communicate("\n")[0])

    def told(self, seconds: float) -> str:
        heard = self._heard
        return (
            f"each was told {heard['fewest'] / seconds:.1f} to {heard['most'] / seconds:.1f} times a second, "
            f"{heard['bytes'] / self._count / seconds / 1000:.1f} kB/s; their process took "
            f"{heard['cpu_s'] / seconds * 100:.0f} % of a core"
        )


class _Viewer(asyncio.Protocol):
    def __init__(self, host: str) -> None:
        self._host = host
        self._data = bytearray()
        self._upgraded = False
        self.watching: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.n_frames = 0
        self.n_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /ws/dashboard HTTP/1.1\r\nHost: {self._host}\r\nOrigin: http://{self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.n_bytes += len(data)
        self._data += data
        if not self._upgraded:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head.split(b"\r\n")[0]:
                self.watching.set_exception(RuntimeError(head.decode()))
            self._upgraded, self._data = True, rest
        while (frame := self._frame()) is not None:
            opcode, payload = frame
            if opcode == TEXT:
                self.n_frames += 1
                if not self.watching.done():
                    self.watching.set_result(None)
            elif opcode == PING:  # answered under a mask of zeros
                self._transport.write(bytes([0x80 | PONG, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
            elif opcode == CLOSE:
                self._transport.close()

    def _frame(self) -> tuple[int, bytes] | None:
        """The next whole one; what a server sends is not masked."""
        data = self._data
        if len(data) < 2:
            return None
        start, length = 2, data[1]
        if length == 126 and len(data) >= 4:
            start, (length,) = 4, struct.unpack_from("!H", data, 2)
        elif length == 127 and len(data) >= 10:
            start, (length,) = 10, struct.unpack_from("!Q", data, 2)
        elif length >= 126:
            return None
        if len(data) < start + length:
            return None
        payload = bytes(data[start : start + length]) if data[0] & 0x0F == PING else b""
        opcode = data[0] & 0x0F
        del data[: start + length]
        return opcode, payload

    def connection_lost(self, error: Exception | None) -> None:
        if not self.watching.done():
            self.watching.set_exception(error or ConnectionError("hung up on"))


async def _watch(url: str, count: int) -> None:
    """Until a line comes in."""
    loop, address = asyncio.get_running_loop(), urlsplit(url)
    host, port = str(address.hostname), int(address.port or 80)
    viewers = []
    for _ in range(count):
        _, viewer = await loop.create_connection(lambda: _Viewer(address.netloc), host, port)
        viewers.append(viewer)
    async with asyncio.timeout(START_TIMEOUT_S):
        await asyncio.gather(*(viewer.watching for viewer in viewers))
    before = [(viewer.n_frames, viewer.n_bytes) for viewer in viewers]
    began_s = _cpu_s()
    print("all watch", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    frames = [viewer.n_frames - n_frames for viewer, (n_frames, _) in zip(viewers, before, strict=True)]
    n_bytes = sum(viewer.n_bytes - earlier for viewer, (_, earlier) in zip(viewers, before, strict=True))
    print(json.dumps({"fewest": min(frames), "most": max(frames), "bytes": n_bytes, "cpu_s": _cpu_s() - began_s}))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
