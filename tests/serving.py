"""The daemon inside the test's own event loop, for tests of its API: real parts, a fake engine in its runner."""

import asyncio
import io
import math
import shutil
import struct
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gpu_daemon.daemon import Daemon
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.settings import Settings
from tests.running import FAKE_ENGINE, TERMINAL, only_demo

POLL_S = 0.02
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@cache
def tone(seconds: float = 1.0, rate_hz: int = 16_000) -> bytes:
    """A WAV file that one can hear."""
    samples = (round(9000 * math.sin(2 * math.pi * 440 * i / rate_hz)) for i in range(int(seconds * rate_hz)))
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(rate_hz)
        wav.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()


class ServedDaemon:
    def __init__(self, daemon: Daemon, settings: Settings) -> None:
        self.daemon = daemon
        self.settings = settings
        self.url = daemon.url
        self.client = httpx2.AsyncClient(base_url=self.url, timeout=30, trust_env=False)

    def directories(self) -> list[str]:
        """Of jobs that have files."""
        return [path.name for path in self.settings.jobs_dir.iterdir()]

    async def post(self, audio: bytes | None = None, *, name: str = "tone.wav", **fields: Any) -> httpx2.Response:
        return await self.client.post(
            "/transcribe", files={"file": (name, tone() if audio is None else audio)}, data=fields
        )

    async def submit(self, **fields: Any) -> str:
        response = await self.post(**fields)
        assert response.status_code == 202, response.text
        job_id: str = response.json()["job_id"]
        return job_id

    async def json(self, path: str, **params: Any) -> Any:
        response = await self.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def until(self, job_id: str, fits: Callable[[dict[str, Any]], bool], timeout_s: float = 60) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            while not fits(job := await self.json(f"/jobs/{job_id}")):
                await asyncio.sleep(POLL_S)
        result: dict[str, Any] = job
        return result

    async def finished(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda job: job["status"] in TERMINAL)


@asynccontextmanager
async def served_daemon(
    directory: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[ServedDaemon]:
    for name, value in FAKE_ENGINE.items():
        monkeypatch.setenv(name, value)
    await only_demo(database)
    given: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "data_dir": directory / "data",
        "db_host": database.host,
        "db_port": database.port,
        "db_name": database.database,
        "db_user": database.user,
        "db_pass": database.password,
        "devices": ("cpu",),
        "default_model": "demo",
        "disk_reserve_mb": 64,
        "reuse_results": False,
        "callback_allowed_networks": ("loopback",),
    }
    made = Settings(_env_file=None, **given | settings)
    daemon = Daemon(made)
    await daemon.start()
    served = ServedDaemon(daemon, made)
    try:
        yield served
    finally:
        await served.client.aclose()
        await daemon.stop()
