"""What the stores raise when the database does not answer, and how they find out what it did all the same."""

import contextlib
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from gpu_daemon.database.pool import Connection, Pool
from gpu_daemon.errors import OutcomeUnknown, Unavailable

DATABASE_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg says on a connection that the server has just given up
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,  # its disk
    asyncpg.ReadOnlySQLTransactionError,
)

REFUSED = (asyncpg.InsufficientResourcesError, asyncpg.PostgresSystemError, asyncpg.ReadOnlySQLTransactionError)
"""Of these, what the server says of a statement that it has given up: nothing of it was made."""

AWAY = "the database does not answer; try again in a moment"


def is_away(error: Exception) -> bool:
    """Not what asyncpg says of an argument that it cannot encode."""
    return isinstance(error, DATABASE_AWAY) and not isinstance(error, ValueError)


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """A pooled connection. Raises Unavailable when the database is away, OutcomeUnknown when it goes away meanwhile.

    One that does not let us in (another password, a database that is being restored) is as good as away.
    """
    try:
        connected = await pool.acquire(timeout=10)
    except (*DATABASE_AWAY, asyncpg.PostgresError) as error:
        raise Unavailable(AWAY, retry_after_s=5, code="database_unavailable") from error
    try:
        yield connected
    except DATABASE_AWAY as error:
        if not is_away(error):
            raise
        if isinstance(error, REFUSED):
            raise Unavailable(AWAY, retry_after_s=5, code="database_unavailable") from error
        raise OutcomeUnknown(AWAY, retry_after_s=5) from error
    finally:
        # One that cannot be given back is thrown away by the pool; what was done on it is done.
        with contextlib.suppress(*DATABASE_AWAY):
            await pool.release(connected)


class Doubts:
    """Writes whose answer was lost: the connection broke after they were sent, so they may have been made."""

    def __init__(self) -> None:
        self._writes: set[Hashable] = set()

    def __contains__(self, write: Hashable) -> bool:
        return write in self._writes

    @contextmanager
    def about(self, write: Hashable) -> Iterator[None]:
        """In doubt when OutcomeUnknown is raised inside, settled otherwise."""
        try:
            yield
        except OutcomeUnknown:
            self._writes.add(write)
            raise
        self._writes.discard(write)
