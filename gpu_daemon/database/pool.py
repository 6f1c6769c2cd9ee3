"""Connections to PostgreSQL, wherever it runs."""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from gpu_daemon import clock
from gpu_daemon.errors import StartupError
from gpu_daemon.events import EventHub
from gpu_daemon.jobs.retry import backoff_s
from gpu_daemon.logs import log

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
PATIENCE_S = 20.0
"""For a server that is still starting."""
MAX_CONNECTIONS = 10
COMMAND_TIMEOUT_S = 30.0
DAEMON_LOCK = 0x6770755F64  # "gpu_d": any number that nobody else takes
LOCK_TRIES = 20
LOCK_CHECK_S = 30.0
LOCK_RETRY_S = 10.0
AWAY = (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)
STILL_STARTING = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionParameters:
    host: str
    """A host name, or the directory of the Unix socket."""
    port: int
    database: str
    user: str
    password: str

    def arguments(self) -> dict[str, Any]:
        """For asyncpg."""
        return {
            "host": self.host,
            "port": self.port,
            "database": self.database,
            "user": self.user,
            "password": self.password or None,
            "timeout": 10,
            "server_settings": {"application_name": "gpu_daemon"},
        }


async def connect(parameters: ConnectionParameters, *, patience_s: float = PATIENCE_S) -> Connection:
    """Waits for a server that is not there yet. Raises StartupError naming the setting to look at."""
    deadline = clock.monotonic() + patience_s
    rng = random.Random()  # noqa: S311 - jitter
    where = f"{parameters.database} on {parameters.host}:{parameters.port}"
    failures = 0
    while True:
        try:
            return await asyncpg.connect(**parameters.arguments())
        except STILL_STARTING as error:
            failures += 1
            wait_s = backoff_s(failures, first_s=0.05, most_s=1, rng=rng)
            if clock.monotonic() + wait_s > deadline:
                reason = str(error) or type(error).__name__
                raise StartupError(f"DB_HOST: cannot reach the database {where}: {reason}") from error
            await asyncio.sleep(wait_s)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StartupError(f"DB_NAME, DB_USER, DB_PASS: the database {where} refuses us: {error}") from error


async def open_pool(parameters: ConnectionParameters) -> Pool:
    """Raises StartupError."""
    await (await connect(parameters)).close()
    # No least size: asyncpg would write a traceback into the log again and again while the database is away.
    pool: Pool = await asyncpg.create_pool(
        **parameters.arguments(),
        min_size=0,
        max_size=MAX_CONNECTIONS,
        command_timeout=COMMAND_TIMEOUT_S,
        reset=_nothing_to_reset,
    )
    return pool


async def _nothing_to_reset(_: Connection) -> None:
    """asyncpg ends an open transaction itself; as nobody changes the session, its further query is a waste."""


async def answers(pool: Pool, timeout_s: float = 2.0) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return bool(await pool.fetchval("SELECT true"))
    except (*AWAY, asyncpg.PostgresError, asyncpg.InternalClientError):
        return False


class SingleDaemonLock:
    """Held on a connection of its own while the daemon lives: two daemons on one database would run jobs twice."""

    def __init__(self, parameters: ConnectionParameters, hub: EventHub) -> None:
        self._parameters = parameters
        self._hub = hub
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.trouble: str | None = None
        """Why it is not held, as far as is known without asking; None: it is."""

    async def acquire(self) -> None:
        """Raises StartupError. A daemon that was killed a moment ago is given time to be noticed by the server."""
        if not await self._taken():
            raise StartupError("another daemon works on this database; give this one a database of its own (DB_NAME)")
        self._keeper = asyncio.create_task(self._keep(), name="daemon lock")

    async def release(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        await self._drop()

    async def _taken(self) -> bool:
        self._connection = await connect(self._parameters)
        try:
            for _ in range(LOCK_TRIES):
                if await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", DAEMON_LOCK):
                    self.trouble = None
                    return True
                await asyncio.sleep(0.1)
        except BaseException:
            await self._drop()
            raise
        await self._drop()
        return False

    async def _keep(self) -> None:
        """A restart of the server lets go of the lock: take it again, before somebody else does."""
        while True:
            if self._connection is not None and await _holds(self._connection):
                continue
            if self._connection is not None:
                self.trouble = "the database does not answer"
                self._hub.publish("incident", "database", what="database_lost")
                log.warning("database.lock_lost", reason="the connection that held it is gone")
                await self._drop()
            try:
                if await self._taken():
                    self._hub.publish("incident", "database", what="database_back")
                else:
                    self.trouble = "another daemon has started on this database"
                    log.error("database.lock_taken", reason=self.trouble)
                    await asyncio.sleep(LOCK_RETRY_S)
            except (StartupError, *AWAY, asyncpg.PostgresError) as error:
                log.warning("database.lock_waits", error=str(error))

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*AWAY, asyncpg.PostgresError):
                await connection.close(timeout=2)


async def _holds(connection: Connection) -> bool:
    """Waits until the connection ends or LOCK_CHECK_S have passed; is it alive?"""
    ended = asyncio.Event()

    def end(_: object) -> None:
        ended.set()

    connection.add_termination_listener(end)
    try:
        async with asyncio.timeout(LOCK_CHECK_S):
            await ended.wait()
    except TimeoutError:
        try:
            return bool(await connection.fetchval("SELECT true", timeout=10))
        except (*AWAY, asyncpg.PostgresError, asyncpg.InternalClientError):
            return False
    finally:
        connection.remove_termination_listener(end)
    return False
