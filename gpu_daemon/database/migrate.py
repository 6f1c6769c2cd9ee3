"""Brings the schema up to date: numbered SQL files, each applied once in a transaction of its own, under one lock."""

import asyncio
import contextlib
import hashlib
from pathlib import Path

import asyncpg

from gpu_daemon.database.pool import AWAY, Connection, Pool
from gpu_daemon.errors import StartupError
from gpu_daemon.faultpoints import FaultPoint, reach

MIGRATION_LOCK = 0x6770755F6D  # "gpu_m"
LOCK_TIMEOUT_S = 300.0
MIGRATION_TIMEOUT_S = 3600.0


async def migrate(pool: Pool, directory: Path) -> list[str]:
    """Names of the migrations applied now. May be killed at any point and run again.

    Raises StartupError when the database was migrated by a newer version, or a recorded file has been changed since.
    """
    files = await asyncio.to_thread(lambda: {path.stem: path.read_text() for path in sorted(directory.glob("*.sql"))})
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK, timeout=LOCK_TIMEOUT_S)
        try:
            return await _migrate(connection, files)
        finally:
            # The lock is the session's: one that cannot be asked any more has none.
            with contextlib.suppress(*AWAY):
                await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)


async def _migrate(connection: Connection, files: dict[str, str]) -> list[str]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS gpu_daemon_migrations ("
        " name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    recorded = {row["name"]: row["sha256"] for row in await connection.fetch("SELECT * FROM gpu_daemon_migrations")}
    _check(files, recorded)
    applied = [name for name in files if name not in recorded]
    for name in applied:
        await _apply(connection, name, files[name])
        reach(FaultPoint.MIGRATED)
    return applied


def _check(files: dict[str, str], recorded: dict[str, str]) -> None:
    for name, sha256 in recorded.items():
        if name not in files:
            raise StartupError(
                f"the database is newer than this daemon: it has the migration {name}; update the daemon"
            )
        if _sha256(files[name]) != sha256:
            raise StartupError(f"the migration {name} was changed after it was applied; restore its file")


async def _apply(connection: Connection, name: str, sql: str) -> None:
    try:
        async with connection.transaction():
            await connection.execute(sql, timeout=MIGRATION_TIMEOUT_S)
            await connection.execute(
                "INSERT INTO gpu_daemon_migrations (name, sha256) VALUES ($1, $2)", name, _sha256(sql)
            )
            reach(FaultPoint.MIGRATION_WRITTEN)
    except asyncpg.PostgresError as error:
        raise StartupError(f"the migration {name} cannot be applied to this database: {error}") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
