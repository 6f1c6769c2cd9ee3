"""A start that takes long: the queue is long, or the database busy. Its health is told, and nobody is sent away."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from gpu_daemon.api import door
from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.metrics import Metrics
from tests.running import FAKE_ENGINE, RunningDaemon, only_demo
from tests.serving import tone


async def test_who_comes_early_is_told_and_waits(tmp_path: Path, database: ConnectionParameters, pool: Pool) -> None:
    await only_demo(database)
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE)
    client = httpx2.AsyncClient(timeout=60, trust_env=False)
    try:
        async with pool.acquire() as busy, busy.transaction():
            await busy.execute("LOCK TABLE jobs")
            await daemon.spawn()
            url = (await daemon.line("http.listening"))["url"]
            for path in ("/health", "/services/micro/health"):
                health = (await client.get(url + path)).json()
                assert (health["status"], health["reason"]) == ("starting", "the daemon is starting")
                assert health["gpu_available"] is None, "not known yet"
            assert (await client.head(f"{url}/health/live")).status_code == 200
            ready = await client.get(f"{url}/health/ready", headers={"x-request-id": "early"})
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
            assert ready.headers["x-request-id"] == "early"
            file = {"file": ("one.wav", tone(0.2))}
            early = asyncio.create_task(client.post(f"{url}/transcribe", files=file, data={"wait": "true"}))
            await client.get(f"{url}/health/live")
            assert not early.done()
        answer = await early
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"]
    finally:
        await client.aclose()
        await daemon.close()


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", 0.01)
    closed = door.Door(Metrics())
    transport = httpx2.ASGITransport(app=closed)
    async with httpx2.AsyncClient(base_url="http://daemon", transport=transport) as client:
        answer = await client.post("/transcribe", content=b"x")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["code"] == "starting"
