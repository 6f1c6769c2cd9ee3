import asyncio
import os
import pwd
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.pool import ConnectionParameters, answers, connect, open_pool
from gpu_daemon.errors import StartupError

ROOT = Path(__file__).parent.parent.parent
OWNER = """
import asyncio, sys
from pathlib import Path
from gpu_daemon.database.embedded import EmbeddedPostgres

async def main():
    await EmbeddedPostgres(Path(sys.argv[1])).start()
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory in which the server has run once; initdb takes longer than all the rest."""
    directory = tmp_path_factory.mktemp("embedded") / "postgres"

    async def once() -> None:
        server = EmbeddedPostgres(directory)
        began = time.monotonic()
        parameters = await server.start()
        print(f"embedded PostgreSQL, first start: {time.monotonic() - began:.2f} s")
        await execute(parameters, "ALTER SYSTEM SET fsync = off; CREATE TABLE kept (value text)")
        await server.stop()

    asyncio.run(once())
    return directory


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Iterator[Path]:
    """For those who break or move it; the others share one, which saves many seconds."""
    yield Path(shutil.copytree(directory, tmp_path / "data" / "postgres"))
    shutil.rmtree(tmp_path)  # pytest would keep 40 MB for each test


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[EmbeddedPostgres, ConnectionParameters]]:
    server = EmbeddedPostgres(directory)
    try:
        yield server, await server.start()
    finally:
        await server.stop()


async def execute(parameters: ConnectionParameters, sql: str) -> None:
    connection = await asyncpg.connect(**parameters.arguments())
    try:
        for statement in sql.split(";"):
            await connection.execute(statement)
    finally:
        await connection.close()


async def kept(parameters: ConnectionParameters) -> list[str]:
    connection = await connect(parameters)
    try:
        return [row["value"] for row in await connection.fetch("SELECT value FROM kept")]
    finally:
        await connection.close()


async def answering(parameters: ConnectionParameters) -> bool:
    connection = await connect(parameters)
    try:
        return bool(await connection.fetchval("SELECT count(*) >= 0 FROM kept"))
    finally:
        await connection.close()


def server_pid(directory: Path) -> int:
    return int((directory / "postmaster.pid").read_text().split("\n")[0])


def processes_in(directory: Path) -> list[str]:
    """Every process of a server on `directory`, and of what starts it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().split("\0")
            working = (process / "cwd").readlink()
        except OSError:
            continue
        if working == directory or any(str(directory) in word for word in command):
            found.append(f"{process.name} {command}")
    return found


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def daemon_on(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that has started the server."""
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, str(directory)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        assert daemon.stdout is not None
        async with asyncio.timeout(30):
            while await daemon.stdout.readline() != b"started\n":
                assert daemon.returncode is None
        yield daemon
    finally:
        if daemon.returncode is None:
            daemon.kill()
        await daemon.communicate()


def made_at(directory: Path) -> int:
    return (directory / "PG_VERSION").stat().st_mtime_ns


async def test_start_and_stop(directory: Path) -> None:
    made = made_at(directory)
    began = time.monotonic()
    async with running(directory) as (server, parameters):
        print(f"embedded PostgreSQL, warm start: {time.monotonic() - began:.2f} s")
        assert made_at(directory) == made, "what takes long is done once"
        assert await answering(parameters)
        assert processes_in(directory)
        await server.stop()
        assert processes_in(directory) == []
        assert not (directory / "postmaster.pid").exists()
        await server.stop()


async def test_stop_before_start(tmp_path: Path) -> None:
    await EmbeddedPostgres(tmp_path / "postgres").stop()
    assert list(tmp_path.iterdir()) == []


async def test_start_cancelled_half_way_leaves_nothing_running(tmp_path: Path) -> None:
    """While initdb runs, then while the server starts."""
    directory = tmp_path / "postgres"
    server = EmbeddedPostgres(directory)
    starting = asyncio.create_task(server.start())
    while not (tmp_path / "postgres.unfinished" / "base").exists():
        assert not starting.done()
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes_in(tmp_path) == []
    starting = asyncio.create_task(server.start())
    while not (directory / "postmaster.pid").exists():
        assert not starting.done()
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes_in(tmp_path) == []


async def test_a_killed_server_is_started_again(directory: Path) -> None:
    async with running(directory) as (_, parameters):
        pool = await open_pool(parameters)
        await pool.execute("INSERT INTO kept VALUES ('before')")
        busy = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
        while await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'") != 1:
            assert not busy.done()
        os.kill(server_pid(directory), signal.SIGKILL)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await busy
        async with asyncio.timeout(20):
            while not await answers(pool):
                await asyncio.sleep(0.05)
        assert "before" in await kept(parameters)
        await pool.close()
    assert processes_in(directory) == []


async def test_a_server_that_is_killed_under_many_connections_is_started_again(directory: Path) -> None:
    """Each of its children has a last word in the log, after that of the server that could not start yet."""
    async with running(directory) as (_, parameters):
        connections = await asyncio.gather(*(connect(parameters) for _ in range(30)))
        with capture_logs() as logs:
            os.kill(server_pid(directory), signal.SIGKILL)
            async with asyncio.timeout(30):
                while len(logs) < 2:
                    await asyncio.sleep(0.05)
        assert [line["event"] for line in logs] == ["database.died", "database.restarted"]
        for connection in connections:
            connection.terminate()


@pytest.mark.parametrize("server_too", [False, True], ids=["daemon", "daemon and server"])
async def test_kill_of_the_daemon(directory: Path, server_too: bool) -> None:
    async with daemon_on(directory) as daemon:
        committed = f"committed before {'both were' if server_too else 'the daemon was'} killed"
        socket = ConnectionParameters(
            host=str(directory), port=5432, database="postgres", user="gpu_daemon", password=""
        )
        await execute(socket, f"INSERT INTO kept VALUES ('{committed}')")
        pid = server_pid(directory)
        daemon.kill()
        if server_too:
            os.kill(pid, signal.SIGKILL)
        await daemon.wait()
        async with running(directory) as (_, parameters):
            assert committed in await kept(parameters)
    await gone(pid)
    assert processes_in(directory) == []


async def test_the_server_shuts_down_by_itself_when_the_daemon_is_killed(directory: Path) -> None:
    async with daemon_on(directory) as daemon:
        pid = server_pid(directory)
        daemon.kill()
        await gone(pid)
    assert processes_in(directory) == []
    assert "database system is shut down" in directory.with_suffix(".log").read_text()


async def test_a_second_daemon_in_the_same_directory_is_refused_and_harms_nothing(directory: Path) -> None:
    async with running(directory) as (_, parameters):
        with pytest.raises(StartupError, match="DATA_DIR: another daemon works in"):
            await EmbeddedPostgres(directory).start()
        assert await answering(parameters)


async def test_the_process_id_of_a_dead_server_was_given_to_somebody_else(directory: Path) -> None:
    async with running(directory):
        pid_file = (directory / "postmaster.pid").read_text()
        lock_file = (directory / ".s.PGSQL.5432.lock").read_text()
    owner = directory.stat()
    somebody = await asyncio.create_subprocess_exec("sleep", "60", user=owner.st_uid, group=owner.st_gid)
    try:
        for name, text in {"postmaster.pid": pid_file, ".s.PGSQL.5432.lock": lock_file}.items():
            first, _, _ = text.partition("\n")
            (directory / name).write_text(text.replace(first, str(somebody.pid), 1))
            os.chown(directory / name, owner.st_uid, owner.st_gid)
        async with running(directory) as (_, parameters):
            assert await answering(parameters)
        assert somebody.returncode is None
    finally:
        somebody.kill()
        await somebody.wait()


async def test_a_directory_with_a_long_name(copy: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120) / "postgres"
    long.parent.mkdir()
    copy.rename(long)
    async with running(long) as (_, parameters):
        assert len(parameters.host) < 90
        assert await answering(parameters)
        assert Path(parameters.host).stat().st_mode & 0o777 == 0o700
    assert not Path(parameters.host).exists()


async def test_a_crash_during_initdb(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    (tmp_path / "postgres.unfinished" / "base").mkdir(parents=True)
    (tmp_path / "postgres.unfinished" / "PG_VERSION").write_text("18\n")
    async with running(directory) as (_, parameters):
        await execute(parameters, "SELECT 1")
    assert not (tmp_path / "postgres.unfinished").exists()


async def test_a_directory_of_another_version(copy: Path) -> None:
    (copy / "PG_VERSION").write_text("16\n")
    with pytest.raises(StartupError, match="made by PostgreSQL 16, this daemon brings 18"):
        await EmbeddedPostgres(copy).start()


async def test_a_server_that_cannot_start_says_why(copy: Path) -> None:
    (copy / "postgresql.conf").write_text("shared_buffers = 'much'\n")
    with pytest.raises(StartupError, match='invalid value for parameter "shared_buffers"'):
        await EmbeddedPostgres(copy).start()
    assert processes_in(copy) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user made for the server")
async def test_root(copy: Path, tmp_path: Path) -> None:
    """As in a container: everything below a home directory that lets nobody through."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    inside = home / "postgres"
    copy.rename(inside)
    for path in (inside, *inside.rglob("*")):
        os.chown(path, 0, 0)  # as after a copy by root
    async with running(inside) as (_, parameters):
        server_uid = pwd.getpwnam("pgserver").pw_uid
        assert Path(f"/proc/{server_pid(inside)}").stat().st_uid == server_uid
        assert await answering(parameters)
        assert inside.stat().st_uid == server_uid
        assert home.stat().st_mode & 0o777 == 0o701
