"""The page's state by WebSocket, against a real daemon."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from gpu_daemon.api.schemas import DashboardState
from gpu_daemon.database.pool import ConnectionParameters
from tests.serving import ServedDaemon, served_daemon


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


@asynccontextmanager
async def watching(served: ServedDaemon, **headers: str) -> AsyncIterator[ClientConnection]:
    url = served.url.replace("http", "ws", 1) + "/ws/dashboard"
    async with connect(url, additional_headers=headers, proxy=None, compression=None) as socket:
        yield socket


async def message(socket: ClientConnection, timeout_s: float = 20) -> dict[str, Any]:
    async with asyncio.timeout(timeout_s):
        said: dict[str, Any] = json.loads(await socket.recv())
    return said


async def test_a_snapshot_and_what_changes_after_it(served: ServedDaemon) -> None:
    async with watching(served) as socket:
        seen = Seen(await message(socket))
        DashboardState.model_validate(seen.state)
        job_id = await served.submit()
        await seen.until(socket, lambda state: state["queue"]["completed"] == 1)
        assert lasting(seen.state) == lasting(await served.json("/dashboard/state"))
        assert job_id not in json.dumps(seen.state)


class Seen:
    """The state as a page puts it together."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        assert snapshot["type"] == "snapshot"
        self.seq, self.state = snapshot["seq"], snapshot["state"]

    def take(self, delta: dict[str, Any]) -> None:
        assert (delta["type"], delta["seq"]) == ("delta", self.seq + 1)
        self.seq += 1
        self.state = self.state | delta["state"]

    async def until(self, socket: ClientConnection, fits: Callable[[dict[str, Any]], bool]) -> None:
        while not fits(self.state):
            self.take(await message(socket))


def lasting(state: dict[str, Any]) -> dict[str, Any]:
    """Without what is another number at each look."""
    text = re.sub(r'"(uptime_s|answered_s_ago|latency_ms)": [0-9.]+', r'"\1": 0', json.dumps(state))
    again: dict[str, Any] = json.loads(text)
    return again
