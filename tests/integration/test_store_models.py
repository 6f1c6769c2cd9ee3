import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import asyncpg
import pytest
from structlog.testing import capture_logs

from gpu_daemon.database.pool import Pool
from gpu_daemon.errors import Conflict
from gpu_daemon.store import models
from gpu_daemon.store.models import ModelStore

LIMIT_S = 20.0
"""Less than the tables are looked at in any case: what comes in this time was noticed."""


@pytest.fixture
def store(pool: Pool) -> ModelStore:
    return ModelStore(pool)


@pytest.fixture
async def changes(store: ModelStore) -> AsyncIterator[AsyncIterator[None]]:
    async with aclosing(store.changes()) as changes:
        await anext(changes)
        yield changes


async def test_a_fresh_database(store: ModelStore) -> None:
    rows = await store.rows()
    assert [row.name for row in rows][:4] == ["tiny", "tiny.en", "base", "base.en"]
    assert {row.name for row in rows if row.enabled} == {"base", "demo"}
    (demo,) = [row for row in rows if row.source == "file"]
    assert demo.path == "bundled:espeak-whisper.pt"
    assert demo.sha256 is not None


async def test_enable_and_disable(store: ModelStore) -> None:
    assert await store.set_enabled("tiny", True)
    assert await store.set_enabled("base", False)
    assert not await store.set_enabled("nonesuch", True)
    assert {row.name for row in await store.rows() if row.enabled} == {"tiny", "demo"}


async def test_a_table_that_wants_more_than_we_know(store: ModelStore, pool: Pool) -> None:
    await pool.execute("DELETE FROM model_settings; ALTER TABLE model_settings ADD COLUMN owner text NOT NULL")
    with pytest.raises(Conflict, match='add it by hand: null value in column "owner"'):
        await store.set_enabled("tiny", True)


async def test_changes_of_either_table_are_noticed(store: ModelStore, pool: Pool, changes: AsyncIterator[None]) -> None:
    for sql in (
        "INSERT INTO whisper_models (name, source) VALUES ('new', 'whisper')",
        "UPDATE model_settings SET enabled = true",
        "DELETE FROM whisper_models WHERE name = 'new'",
    ):
        await pool.execute(sql)
        await asyncio.wait_for(anext(changes), LIMIT_S)


async def test_a_change_of_ours_is_noticed_where_there_are_no_triggers(
    store: ModelStore, pool: Pool, changes: AsyncIterator[None]
) -> None:
    await pool.execute("DROP TRIGGER models_changed ON model_settings")
    await store.set_enabled("tiny", True)
    await asyncio.wait_for(anext(changes), LIMIT_S)


async def test_without_a_notice_the_tables_are_looked_at_now_and_then(
    store: ModelStore, changes: AsyncIterator[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "POLL_S", 0.05)
    for _ in range(3):
        await asyncio.wait_for(anext(changes), LIMIT_S)


async def test_the_watch_survives_its_connection(
    store: ModelStore, pool: Pool, changes: AsyncIterator[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "RECONNECT_S", 0.01)
    for _ in range(2):
        cut = asyncio.create_task(
            pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        with capture_logs() as logs:
            await asyncio.wait_for(anext(changes), LIMIT_S)  # it listens again: something may have been missed
        await cut
        assert [line["event"] for line in logs] == ["models.listener_lost"]
        await pool.execute("UPDATE model_settings SET enabled = true")
        await asyncio.wait_for(anext(changes), LIMIT_S)


async def test_that_the_database_is_away_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "RECONNECT_S", 0.001)
    tried = asyncio.Semaphore(0)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried.release()
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = await asyncpg.create_pool(host="127.0.0.1", port=port, user="x", database="x", min_size=0)
    with capture_logs() as logs:
        async with asyncio.timeout(20), aclosing(ModelStore(pool).changes()) as changes:
            watching = asyncio.create_task(anext(changes))
            for _ in range(6):
                await tried.acquire()
            watching.cancel()
            await asyncio.wait({watching})
    assert [line["event"] for line in logs] == ["models.listener_lost"]
    await pool.close()
    server.close()


async def test_a_watch_that_ends_gives_its_connection_back(store: ModelStore, pool: Pool) -> None:
    for _ in range(pool.get_max_size() + 1):
        async with aclosing(store.changes()) as changes:
            await anext(changes)
    await asyncio.wait_for(pool.close(), LIMIT_S)
