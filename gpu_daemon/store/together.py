"""Writes that come together are made together: one round trip and one commit for all that wait."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from gpu_daemon.database.pool import Connection, Pool
from gpu_daemon.store.failures import connection, is_away

MOST = 64
HELD_S = 0.05
"""So long a connection that has nothing to write waits for something: to get one costs as much as a short statement."""


@dataclass(frozen=True, slots=True)
class _Asked:
    arguments: tuple[object, ...]
    answer: "asyncio.Future[asyncpg.Record | None]"


class Together:
    """One statement that writes one row, for many callers; those that come while it is under way wait for the next.

    Nobody waits for company. What one caller's arguments do wrong is that caller's error alone.
    """

    def __init__(self, pool: Pool, statement: str, *, in_order: bool = False) -> None:
        """`statement` is given the caller's arguments and a number, its last one, which it returns as `nth`.

        `in_order`: rows are written as they were asked for; else in the order of their first argument, so that two
        transactions which write the same rows cannot wait for each other.
        """
        self._pool = pool
        self._statement = statement
        self._in_order = in_order
        self._waiting: list[_Asked] = []
        self._came = asyncio.Event()
        self._batch: list[_Asked] = []  # under way, and not answered
        self._writing: asyncio.Task[None] | None = None

    async def write(self, *arguments: object) -> asyncpg.Record | None:
        """Committed when it returns; None: it returned no row. A caller that is cancelled does not stop it.

        Raises what PostgreSQL says of these arguments, Unavailable, OutcomeUnknown.
        """
        asked = _Asked(arguments, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._came.set()
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="writes together")
        return await asked.answer

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                try:
                    async with connection(self._pool) as db:
                        while await self._has_work() and not db.is_closed():
                            await self._write(db, self._next())
                except Exception as error:  # no connection, or it broke under what was to be written
                    for asked in self._batch or self._next():
                        _refuse(asked, error)
                    self._batch = []
        finally:
            self._writing = None

    async def _has_work(self) -> bool:
        if not self._waiting:
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HELD_S):
                    await self._came.wait()
        return bool(self._waiting)

    def _next(self) -> list[_Asked]:
        batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        if not self._in_order:
            batch.sort(key=lambda asked: str(asked.arguments[0]))
        return batch

    async def _write(self, db: Connection, batch: list[_Asked]) -> None:
        """Raises what says that the database is away."""
        self._batch = batch
        try:
            _answer(batch, await self._made(db, batch))
        except Exception as error:
            if is_away(error):
                raise
            if len(batch) == 1:
                _refuse(batch[0], error)
            else:
                await self._write_singly(db, batch)
        self._batch = []

    async def _write_singly(self, db: Connection, batch: list[_Asked]) -> None:
        """Together nothing of it was made: whose fault was it?"""
        for nth, asked in enumerate(batch):
            self._batch = batch[nth:]
            try:
                _answer([asked], await self._made(db, [asked]))
            except Exception as error:
                if is_away(error):
                    raise
                _refuse(asked, error)

    async def _made(self, db: Connection, batch: Sequence[_Asked]) -> list[asyncpg.Record | None]:
        if len(batch) == 1:  # as one statement, whose plan is the same
            rows = await db.fetch(self._statement, *batch[0].arguments, 0)
        else:
            rows = await db.fetchmany(self._statement, [(*one.arguments, nth) for nth, one in enumerate(batch)])
        by_nth = {row["nth"]: row for row in rows}
        return [by_nth.get(nth) for nth in range(len(batch))]


def _answer(batch: Sequence[_Asked], rows: Sequence[asyncpg.Record | None]) -> None:
    for asked, row in zip(batch, rows, strict=True):
        if not asked.answer.done():
            asked.answer.set_result(row)


def _refuse(asked: _Asked, error: Exception) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(error)
