"""The tables `whisper_models` and `model_settings`, ours or somebody else's: columns are looked at, not guessed."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass

import asyncpg

from gpu_daemon.database.pool import Connection, Pool
from gpu_daemon.errors import Conflict, StartupError
from gpu_daemon.logs import log
from gpu_daemon.store.failures import DATABASE_AWAY, connection

CHANNEL = "gpu_daemon_models"
POLL_S = 30.0
RECONNECT_S = 1.0
KEY_COLUMNS = ("id_model", "model_id")
NAME_COLUMNS = ("name", "model_name", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    name: str
    source: str
    path: str | None
    sha256: str | None
    enabled: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tables:
    """What the columns are called here; ready for SQL."""

    key: str
    name: str
    path: str
    sha256: str
    settings_key: str
    settings_key_type: str


class ModelStore:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def rows(self) -> list[ModelRow]:
        async with connection(self._pool) as db:
            tables = await _tables(db)
            rows = await db.fetch(
                f"""SELECT {tables.name} AS name, source, {tables.path} AS path, {tables.sha256} AS sha256,
                           EXISTS (SELECT FROM model_settings s
                                   WHERE s.{tables.settings_key}::text = m.{tables.key}::text AND s.enabled) AS enabled
                    FROM whisper_models m WHERE source IN ('whisper', 'file') AND {tables.name} IS NOT NULL
                    ORDER BY m.{tables.key}"""
            )
        return [ModelRow(**dict(row)) for row in rows]

    async def set_enabled(self, name: str, enabled: bool) -> bool:
        """False: there is no such model. Raises Conflict when the table's own columns forbid it."""
        async with connection(self._pool) as db, db.transaction():
            tables = await _tables(db)
            key = await db.fetchval(
                f"""SELECT m.{tables.key}::text FROM whisper_models m
                    WHERE {tables.name} = $1 AND source IN ('whisper', 'file')""",
                name,
            )
            if key is None:
                return False
            changed = await db.execute(
                f"UPDATE model_settings SET enabled = $2 WHERE {tables.settings_key}::text = $1", key, enabled
            )
            if changed.endswith(" 0"):
                await _insert_setting(db, tables, key, enabled)
            await db.execute(f"NOTIFY {CHANNEL}")  # tables that are not ours have no trigger for it
        return True

    async def changes(self) -> AsyncGenerator[None, None]:
        """Whenever the tables may have changed: at once when the database says so (LISTEN), every POLL_S in any case.

        The first comes as soon as it listens: what changed before that made no notice. So it is after a lost
        connection, which is made again. Iterate under `aclosing`: it holds a pooled connection.
        """
        away = False
        while True:
            with contextlib.suppress(*DATABASE_AWAY):
                async with self._pool.acquire(timeout=10) as listening, aclosing(_notices(listening)) as notices:
                    async for _ in notices:
                        away = False
                        yield
            if not away:
                log.warning("models.listener_lost")
            away = True
            await asyncio.sleep(RECONNECT_S)


async def _notices(listening: asyncpg.Connection) -> AsyncGenerator[None, None]:
    changed = asyncio.Event()

    def notice(*_: object) -> None:
        changed.set()

    await listening.add_listener(CHANNEL, notice)
    listening.add_termination_listener(notice)
    try:
        yield
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await changed.wait()
            changed.clear()
            await listening.execute("SELECT 1")  # raises if the connection is gone
            yield
    finally:
        if not listening.is_closed():
            listening.remove_termination_listener(notice)
            await listening.remove_listener(CHANNEL, notice)


async def _insert_setting(db: Connection, tables: _Tables, key: str, enabled: bool) -> None:
    try:
        await db.execute(
            f"""INSERT INTO model_settings ({tables.settings_key}, enabled)
                VALUES ($1::text::{tables.settings_key_type}, $2)""",
            key,
            enabled,
        )
    except asyncpg.IntegrityConstraintViolationError as error:
        raise Conflict(
            f"model_settings has no row for this model and cannot be given one, add it by hand: {error.args[0]}",
            param="enabled",
        ) from error


async def _tables(db: Connection) -> _Tables:
    """Raises StartupError when one of the two tables or of their keys is missing."""
    types: dict[str, dict[str, str]] = {"whisper_models": {}, "model_settings": {}}
    for row in await db.fetch(
        """SELECT relname, attname, format_type(atttypid, atttypmod) AS type
           FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
           WHERE attrelid IN (to_regclass('whisper_models'), to_regclass('model_settings')) AND attnum > 0
             AND NOT attisdropped"""
    ):
        types[row["relname"]][row["attname"]] = row["type"]
    models, settings = types["whisper_models"], types["model_settings"]
    key, settings_key = _key_column("whisper_models", models), _key_column("model_settings", settings)
    name = next((name for name in NAME_COLUMNS if name in models), key)
    return _Tables(
        key=key,
        name=f"m.{name}::text",
        path="m.path" if "path" in models else "NULL::text",
        sha256="m.sha256" if "sha256" in models else "NULL::text",
        settings_key=settings_key,
        settings_key_type=settings[settings_key],
    )


def _key_column(table: str, columns: Collection[str]) -> str:
    for name in KEY_COLUMNS:
        if name in columns:
            return name
    raise StartupError(f"the database's table {table} has no column {' or '.join(KEY_COLUMNS)}: models cannot be read")
