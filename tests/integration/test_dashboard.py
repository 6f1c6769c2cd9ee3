"""The page's state by WebSocket, against a real daemon."""

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gpu_daemon.api import dashboard, live, websocket
from gpu_daemon.api.schemas import DashboardState
from gpu_daemon.clock import monotonic
from gpu_daemon.database.pool import ConnectionParameters
from tests.receiver import Receiver, Reply
from tests.relay import Relay
from tests.serving import ServedDaemon, served_daemon

ANNA, BORIS = "key-of-anna-0123456789", "key-of-boris-9876543210"
HOLD = "fake:sleep=30"
N_CHANGES = 80


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


@asynccontextmanager
async def watching(served: ServedDaemon, key: str | None = None, **options: Any) -> AsyncIterator[ClientConnection]:
    """`key`: sent in the first frame."""
    address = served.url.replace("http", "ws", 1) + "/ws/dashboard"
    async with connect(address, proxy=None, **options) as connection:
        if key is not None:
            await connection.send(json.dumps({"type": "key", "key": key}))
        yield connection


def newest(state: dict[str, Any]) -> tuple[int, str]:
    """Of the events."""
    for event in state["events"]:
        return event["seq"], event["kind"]
    return 0, ""


async def message(connection: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        said: dict[str, Any] = json.loads(await connection.recv())
    return said


async def closed(connection: ClientConnection) -> int:
    """The code it was closed with."""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
    assert connection.close_code is not None
    return connection.close_code


class Seen:
    """The state as a page puts it together."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        assert snapshot["type"] == "snapshot"
        self.seq, self.state = snapshot["seq"], snapshot["state"]

    def take(self, delta: dict[str, Any]) -> None:
        assert (delta["type"], delta["seq"]) == ("delta", self.seq + 1)
        self.seq += 1
        self.state = self.state | delta["state"]

    async def until(self, connection: ClientConnection, fits: Callable[[dict[str, Any]], bool]) -> None:
        while not fits(self.state):
            self.take(await message(connection))

    @property
    def kinds(self) -> list[str]:
        """Of the events, oldest first."""
        return [event["kind"] for event in reversed(self.state["events"])]


def lasting(state: dict[str, Any]) -> dict[str, Any]:
    """Without what is another number at each look."""
    kept = {name: member for name, member in state.items() if name not in ("uptime_s", "telemetry")}
    text = re.sub(r'"(answered_s_ago|latency_ms)": [0-9.]+', r'"\1": 0', json.dumps(kept))
    again: dict[str, Any] = json.loads(text)
    return again


async def test_a_snapshot_and_what_changes_after_it(served: ServedDaemon, receiver: Receiver) -> None:
    async with watching(served) as connection:
        seen = Seen(await message(connection))
        DashboardState.model_validate(seen.state)
        assert seen.state["telemetry"]["gpus"] == {}
        heard = await served.submit(name="secret-name.wav", callback_url=f"{receiver.url}?token=secret-token")
        failed = await served.submit(prompt="fake:error", name="secret-name.wav")
        await seen.until(connection, lambda state: (state["queue"]["completed"], state["queue"]["failed"]) == (1, 1))
        await seen.until(connection, lambda state: state["callbacks"]["delivered"] == 1)
        (event,) = [event for event in seen.state["events"] if event["kind"] == "job_failed"]
        assert (event["level"], event["text"]) == ("error", f"job {failed} failed: engine_error")

        running = await served.submit(prompt=HOLD)
        await seen.until(connection, lambda state: _left(state) is not None)
        (job,) = seen.state["workers"][0]["jobs"]
        assert (job["id"], job["stage"], job["duration_s"]) == (running, "transcribing", 1.0)
        assert 0 < job["speed"] < 1.0
        assert 0 < job["left_s"] < 100
        assert job["started_at"] == (await served.json(f"/jobs/{running}"))["started_at"]
        await served.client.post(f"/jobs/{running}/cancel")
        await seen.until(connection, lambda state: state["queue"]["cancelled"] == 1)
        assert lasting(seen.state) == lasting(await served.json("/dashboard/state"))

        job = await served.json(f"/jobs/{heard}")
        said = json.dumps(seen.state)
        for secret in ("secret-name", "secret-token", str(receiver.url), job["result"]["text"], heard):
            assert secret not in said

        await connection.send(json.dumps({"type": "snapshot"}))
        while (again := await message(connection))["type"] == "delta":
            seen.take(again)
        assert (again["type"], again["seq"]) == ("snapshot", seen.seq)
        assert lasting(again["state"]) == lasting(seen.state)


def _left(state: dict[str, Any]) -> float | None:
    jobs = state["workers"][0]["jobs"]
    return jobs[0]["left_s"] if jobs else None


async def test_however_much_happens_there_are_four_updates_a_second(served: ServedDaemon) -> None:
    async with watching(served) as connection:
        seen = Seen(await message(connection))
        began_s, first = monotonic(), seen.seq
        for _ in range(30):
            await served.client.post("/workers/0/drain")
            await served.client.post("/workers/0/resume")
        await served.client.post("/drain")
        await seen.until(connection, lambda state: state["paused_by_drain"])
        assert seen.seq - first <= (monotonic() - began_s) / live.TICK_S + 1
        assert seen.kinds[-2:] == ["worker_resumed", "drained"]
        assert len(seen.kinds) == 50
        assert [event["seq"] for event in seen.state["events"]] == list(range(61, 11, -1))
        assert seen.state["health"]["status"] == "draining"


async def test_who_reads_too_slowly_gets_a_snapshot_instead_of_what_he_missed(
    served: ServedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TICK_S", 0.01)
    monkeypatch.setattr(websocket, "SEND_BUFFER_BYTES", 4096)
    async with watching(served, sock=_small_window(served), max_queue=1, close_timeout=1) as connection:
        async with watching(served) as other:
            seen = Seen(await message(other))
            await asyncio.gather(_change(served), seen.until(other, lambda state: newest(state)[0] == N_CHANGES))
        late = Seen(await message(connection))
        while (said := await message(connection))["type"] == "delta":
            late.take(said)
        told = late.seq
        late = Seen(said)
        assert late.seq > told + 1
        await late.until(connection, lambda state: newest(state)[0] == N_CHANGES)
        assert lasting(late.state) == lasting(seen.state)


async def _change(served: ServedDaemon) -> None:
    """So much that a connection with small buffers is full of it."""
    for number in range(N_CHANGES):
        await served.client.post("/workers/0/" + ("resume" if number % 2 else "drain"))


def _small_window(served: ServedDaemon) -> socket.socket:
    """Connected, and with room for little that is not read."""
    host, port = served.url.removeprefix("http://").split(":")
    connected = socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connected.connect((host, int(port)))
    connected.setblocking(False)
    return connected


async def test_who_may_watch(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setattr(dashboard, "KEY_TIMEOUT_S", 0.3)
    keys = (SecretStr(ANNA), SecretStr(BORIS))
    async with served_daemon(tmp_path, database, monkeypatch, api_keys=keys) as served:
        here = served.url
        for origin in ("https://example.org", "null", here + "0", "file://"):
            with pytest.raises(InvalidStatus) as refused:
                async with watching(served, origin=origin):
                    pass
            assert refused.value.response.status_code == 403, origin
            assert json.loads(refused.value.response.body)["error"]["code"] == "foreign_origin"
        with pytest.raises(InvalidStatus) as refused:
            async with watching(served, additional_headers={"X-API-Key": "nobody"}):
                pass
        assert refused.value.response.status_code == 401

        async with watching(served) as silent, watching(served, "nobody") as wrong, watching(served, "") as empty:
            assert [await closed(each) for each in (silent, wrong, empty)] == [4401] * 3
        async with watching(served, "half a pair: \ud800") as no_text:
            assert await closed(no_text) == 4401
        for nonsense, code in (("{", 4400), ("[]", 4400), ('{"type": "?"}', 4400), (b"{}", 4400), ("x" * 70_000, 1009)):
            async with watching(served, ANNA, origin=here) as connection:
                assert (await message(connection))["type"] == "snapshot"
                await connection.send(nonsense)
                assert await closed(connection) == code

        served.client.headers["X-API-Key"] = ANNA
        failed = await served.submit(prompt="fake:error", callback_url=receiver.url)
        held = await served.submit(prompt=HOLD)
        header = {"Authorization": f"Bearer {BORIS}"}
        async with watching(served, ANNA) as of_anna, watching(served, additional_headers=header) as of_boris:
            anna, boris = Seen(await message(of_anna)), Seen(await message(of_boris))
            for seen, connection in ((anna, of_anna), (boris, of_boris)):
                await seen.until(connection, lambda state: _left(state) is not None and state["queue"]["failed"] == 1)
            shown = [
                (
                    *seen.state["queue"]["running_ids"],
                    *[job["id"] for job in seen.state["workers"][0]["jobs"]],
                    *[event["text"] for event in seen.state["events"] if event["kind"] == "job_failed"],
                )
                for seen in (anna, boris)
            ]
            assert shown[0] == (held, held, f"job {failed} failed: engine_error")
            assert shown[1] == (None, "a job failed: engine_error")
            for key, seen in ((ANNA, anna), (BORIS, boris)):
                served.client.headers["X-API-Key"] = key
                assert (
                    lasting(await served.json("/dashboard/state"))["workers"][0]["jobs"][0]["id"]
                    == (seen.state["workers"][0]["jobs"][0]["id"])
                )
            assert failed not in json.dumps(boris.state)
            assert held not in json.dumps(boris.state)


async def test_callbacks_that_have_not_arrived(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    keys = (SecretStr(ANNA), SecretStr(BORIS))
    async with served_daemon(tmp_path, database, monkeypatch, api_keys=keys) as served:
        served.client.headers["X-API-Key"] = ANNA
        receiver.plan(Reply(503, {"Retry-After": "3600"}), Reply(410))
        async with watching(served, ANNA) as connection:
            seen = Seen(await message(connection))
            retried = await served.submit(callback_url=f"{receiver.url}?token=secret-token")
            await seen.until(connection, lambda state: state["callbacks"]["retrying"] == 1)
            dead = await served.submit(callback_url=receiver.url)
            await seen.until(connection, lambda state: state["callbacks"]["dead"] == 1)
            await seen.until(connection, lambda state: newest(state)[1] == "callback_dead")
        answer = await served.client.get("/dashboard/callbacks")
        one, other = answer.json()["callbacks"]
        assert (one["job_id"], one["state"], one["next_attempt_at"]) == (dead, "dead", None)
        assert (other["job_id"], other["state"], other["attempts"]) == (retried, "pending", 1)
        assert other["next_attempt_at"] > "2026"
        assert other["last_error"]
        assert other["host"] in receiver.url
        assert "secret-token" not in answer.text
        served.client.headers["X-API-Key"] = BORIS
        assert await served.json("/dashboard/callbacks") == {"callbacks": []}


async def test_the_database_goes_and_comes_back(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(database)
    async with served_daemon(tmp_path, await relay.start(), monkeypatch) as served:
        try:
            await served.finished(await served.submit())
            async with watching(served) as connection:
                seen = Seen(await message(connection))
                await seen.until(connection, lambda state: state["queue"]["completed"] == 1)
                assert seen.state["database"]["answers"]
                relay.go_away()
                await seen.until(connection, lambda state: not state["database"]["answers"])
                assert seen.state["database"]["latency_ms"] is None
                assert seen.state["queue"]["completed"] is seen.state["callbacks"]["delivered"] is None
                await seen.until(connection, lambda state: newest(state)[1] == "database_lost")
                away = {"status": "error", "reason": "the database does not answer"}
                await seen.until(connection, lambda state: state["health"] == away)
                health = await served.json("/health")
                assert away.items() <= health.items()
                assert "gpu_daemon_ready 0.0" in (await served.client.get("/metrics")).text
                await served.client.post("/workers/0/drain")  # the rest goes on
                await seen.until(connection, lambda state: state["workers"][0]["state"] == "drained")
                async with watching(served) as another:
                    assert Seen(await message(another)).state["workers"][0]["state"] == "drained"
                relay.refuse = False
                await seen.until(connection, lambda state: state["queue"]["completed"] == 1)
                await seen.until(connection, lambda state: newest(state)[1] == "database_back")
                await seen.until(connection, lambda state: state["health"]["status"] == "draining")
        finally:
            relay.refuse = False
    await relay.stop()


async def test_a_stop_waits_for_no_viewer(
    tmp_path: Path,
    database: ConnectionParameters,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(live, "TICK_S", 0.01)
    monkeypatch.setattr(websocket, "SEND_BUFFER_BYTES", 4096)
    caplog.set_level(logging.ERROR, "uvicorn.error")
    async with (
        served_daemon(tmp_path, database, monkeypatch) as served,
        watching(served, sock=_small_window(served), max_queue=1, close_timeout=1),
        watching(served) as connection,
    ):
        seen = Seen(await message(connection))
        await asyncio.gather(_change(served), seen.until(connection, lambda state: newest(state)[0] == N_CHANGES))
        stopping = asyncio.create_task(served.daemon.stop())
        assert await closed(connection) == 1012
        await stopping
    assert "graceful shutdown exceeded" not in caplog.text
