"""Fixtures for all: a real PostgreSQL, a fresh database per test, a receiver of callbacks; and what ran, by kind."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.migrate import migrate
from gpu_daemon.database.pool import ConnectionParameters, Pool, open_pool
from tests.ports import kept_port
from tests.receiver import Receiver
from tests.web import Site

MIGRATIONS = Path(__file__).parent.parent / "migrations"
KINDS = ("unit", "contract", "integration", "faults", "gpu")
OUTCOMES = ("passed", "failed", "skipped", "xfailed", "error")


# For torch, before it is imported, as runners have it: its threads share the cores with the tests of other workers, and
# those that wait for each other by spinning take four times the processor and eight times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RUN_DIRECTORY = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A temporary directory of this run's own: the one that runs share is shut to other users by each run that starts,
    and a PostgreSQL started by root is another user."""
    if config.option.basetemp is None:
        config.stash[RUN_DIRECTORY] = config.option.basetemp = tempfile.mkdtemp(prefix="gpu_daemon-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if RUN_DIRECTORY in config.stash:
        shutil.rmtree(config.stash[RUN_DIRECTORY], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            path = Path(report.nodeid.split("::")[0])
            kind = path.parts[1] if len(path.parts) > 2 else "other"
            ran.setdefault(kind, Counter())[outcome] += 1
    terminalreporter.section("tests by kind")
    for kind, counts in ran.items():
        said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        terminalreporter.write_line(f"{kind:12} {said or 'none'}")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConnectionParameters]:
    """A server for the whole run; its database `migrated` is a template."""
    loop = asyncio.new_event_loop()
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres") / "data")
    try:
        parameters = loop.run_until_complete(server.start())
        loop.run_until_complete(_make_template(parameters))
        yield parameters
    finally:
        loop.run_until_complete(server.stop())
        loop.close()


async def _make_template(parameters: ConnectionParameters) -> None:
    await _execute(parameters, "ALTER SYSTEM SET fsync = off")  # speed; nobody cuts the power of a test
    await _execute(parameters, "SELECT pg_reload_conf()")
    await _execute(parameters, "CREATE DATABASE migrated")
    pool = await open_pool(replace(parameters, database="migrated"))
    await migrate(pool, MIGRATIONS)
    await pool.close()


async def _execute(parameters: ConnectionParameters, sql: str) -> None:
    connection = await asyncpg.connect(**parameters.arguments())
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


_numbers = itertools.count()


@pytest.fixture
async def empty_database(postgres: ConnectionParameters) -> AsyncIterator[ConnectionParameters]:
    """Without our tables."""
    name = f"empty_{next(_numbers)}"
    await _execute(postgres, f"CREATE DATABASE {name}")
    yield replace(postgres, database=name)
    await _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(postgres: ConnectionParameters) -> AsyncIterator[ConnectionParameters]:
    """Migrated, and this test's own."""
    async with fresh_database(postgres) as database:
        yield database


@asynccontextmanager
async def fresh_database(postgres: ConnectionParameters) -> AsyncIterator[ConnectionParameters]:
    """Migrated; for what several tests share."""
    name = f"test_{next(_numbers)}"
    await _execute(postgres, f"CREATE DATABASE {name} TEMPLATE migrated")
    yield replace(postgres, database=name)
    await _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def pool(database: ConnectionParameters) -> AsyncIterator[Pool]:
    pool = await open_pool(database)
    yield pool
    await pool.close()


@pytest.fixture
def free_port() -> Iterator[int]:
    """Of loopback: nobody listens on it, and nobody else is given it."""
    with kept_port() as kept:
        yield kept.getsockname()[1]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.start()
    yield site
    await site.stop()
