"""Writes that come together are made together: one round trip and one commit for all that wait."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from gpu_daemon.database.pool import Pool
from gpu_daemon.errors import Unavailable
from gpu_daemon.store.failures import connection

MOST = 64


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
        self._writing: asyncio.Task[None] | None = None

    async def write(self, *arguments: object) -> asyncpg.Record | None:
        """Committed when it returns; None: it returned no row. A caller that is cancelled does not stop it.

        Raises what PostgreSQL says of these arguments, Unavailable, OutcomeUnknown.
        """
        asked = _Asked(arguments, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="writes together")
        return await asked.answer

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                if not self._in_order:
                    batch.sort(key=lambda asked: str(asked.arguments[0]))
                await self._write(batch)
        finally:
            self._writing = None

    async def _write(self, batch: Sequence[_Asked]) -> None:
        try:
            rows = await self._made(batch)
        except Exception as error:
            if len(batch) == 1 or isinstance(error, Unavailable):
                for asked in batch:
                    _refuse(asked, error)
            else:  # nothing of it was made: whose fault was it?
                for asked in batch:
                    await self._write([asked])
        else:
            for asked, row in zip(batch, rows, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(row)

    async def _made(self, batch: Sequence[_Asked]) -> list[asyncpg.Record | None]:
        async with connection(self._pool) as db:
            if len(batch) == 1:  # as one statement, whose plan is the same
                rows = await db.fetch(self._statement, *batch[0].arguments, 0)
            else:
                rows = await db.fetchmany(self._statement, [(*one.arguments, nth) for nth, one in enumerate(batch)])
        by_nth = {row["nth"]: row for row in rows}
        return [by_nth.get(nth) for nth in range(len(batch))]


def _refuse(asked: _Asked, error: Exception) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(error)
