import asyncio
import time
from dataclasses import replace

import asyncpg
import pytest
from structlog.testing import capture_logs

from gpu_daemon.database import pool as pool_module
from gpu_daemon.database.pool import ConnectionParameters, Pool, SingleDaemonLock, answers, connect, open_pool
from gpu_daemon.errors import StartupError
from gpu_daemon.events import EventHub
from tests.relay import Relay


async def test_nobody_listens(free_port: int) -> None:
    nowhere = ConnectionParameters(host="127.0.0.1", port=free_port, database="d", user="u", password="")
    with pytest.raises(StartupError, match=rf"^DB_HOST: cannot reach the database d on 127.0.0.1:{free_port}: "):
        await connect(nowhere, patience_s=0.1)


async def test_a_server_that_comes_a_little_later(postgres: ConnectionParameters, free_port: int) -> None:
    connecting = asyncio.create_task(connect(replace(postgres, host="127.0.0.1", port=free_port)))
    await asyncio.wait({connecting}, timeout=0.2)
    assert not connecting.done()
    relay = Relay(postgres)
    await relay.start(free_port)
    connection = await connecting
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()
    await relay.stop()


async def test_a_database_that_does_not_exist_is_said_at_once(postgres: ConnectionParameters) -> None:
    began = time.monotonic()
    with pytest.raises(StartupError, match=r'^DB_NAME, DB_USER, DB_PASS: .* database "nonesuch" does not exist'):
        await open_pool(replace(postgres, database="nonesuch"))
    assert time.monotonic() - began < pool_module.PATIENCE_S


async def test_the_pool_is_named_and_impatient(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pool.fetchval("SELECT current_setting('application_name')") == "gpu_daemon"
    assert pool_module.COMMAND_TIMEOUT_S <= 60
    with pytest.raises(TimeoutError):
        await pool.execute("SELECT pg_sleep(30)", timeout=0.05)


async def test_answers(database: ConnectionParameters, pool: Pool) -> None:
    assert await answers(pool)
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    assert not await answers(pool, timeout_s=0.05)
    for connection in held:
        await pool.release(connection)
    assert await answers(pool)
    closed = await open_pool(database)
    await closed.close()
    assert not await answers(closed)


async def test_one_daemon_at_a_time(database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LOCK_TRIES", 2)
    first, second = SingleDaemonLock(database, EventHub()), SingleDaemonLock(database, EventHub())
    await second.release()
    await first.acquire()
    with pytest.raises(StartupError, match="another daemon works on this database"):
        await second.acquire()
    await first.release()
    await first.release()
    await second.acquire()
    await second.release()


async def test_the_lock_is_taken_again_when_its_connection_is_lost(database: ConnectionParameters, pool: Pool) -> None:
    lock = SingleDaemonLock(database, EventHub())
    await lock.acquire()
    with capture_logs() as logs:
        (holder,) = await lock_holders(pool)
        await pool.execute("SELECT pg_terminate_backend($1)", holder)
        async with asyncio.timeout(10):
            while await lock_holders(pool) in ([], [holder]):
                await asyncio.sleep(0.01)
    assert [line["event"] for line in logs] == ["database.lock_lost"]
    await lock.release()
    assert await lock_holders(pool) == []


async def lock_holders(pool: Pool) -> list[int]:
    rows: list[asyncpg.Record] = await pool.fetch(
        """SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    )
    return [row["pid"] for row in rows]
