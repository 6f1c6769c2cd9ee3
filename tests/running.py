"""A real daemon as a child process, for tests: on a free port, with a data directory and a database of its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.faultpoints import VARIABLE

ROOT = Path(__file__).parent.parent
FAKE_DIARIZER = {
    "GPU_DAEMON_DIARIZER": "tests.fake_diarizer:create",
    "DIARIZATION_MODEL": str(ROOT / "tests" / "fake_pipeline"),
}
FAKE_ENGINE = {"GPU_DAEMON_ENGINE": "tests.fake_engine:create", **FAKE_DIARIZER}
ONE_AT_A_TIME = {"JOBS_PER_GPU": "1"}
"""For tests of what waits, and in which order."""
CANCELLED_WITHIN_S = 5.0 + 5.0
"""What is promised, and as much again for whatever else the machine does: a cancel that is lost takes far longer."""
TERMINAL = {"completed", "failed", "cancelled"}
IN_RUNNER = {"loading", "transcribing", "merging"}


class RunningDaemon:
    def __init__(self, data_dir: Path, database: ConnectionParameters | None, settings: dict[str, str]) -> None:
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": str(ROOT),
            "HOST": "127.0.0.1",
            "PORT": "0",
            "DATA_DIR": str(data_dir),
            "DEVICES": "cpu",
            "DEFAULT_MODEL": "demo",
            "DISK_RESERVE_MB": "64",
            "REUSE_RESULTS": "false",
            "CALLBACK_ALLOWED_NETWORKS": "loopback",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "DEBUG",
        }
        if database is not None:
            self._environment |= {
                "DB_HOST": database.host,
                "DB_PORT": str(database.port),
                "DB_NAME": database.database,
                "DB_USER": database.user,
                "DB_PASS": database.password,
            }
        self._environment |= settings
        self.fault_point: str | None = None
        """NAME:ACTION[:NTH] for the next start."""
        self.data_dir = data_dir
        self.url = ""
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._new_line = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.client = httpx2.AsyncClient(timeout=60, trust_env=False)

    def set(self, **settings: str) -> None:
        """For the next start."""
        self._environment |= settings

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, timeout_s: float = 60) -> None:
        await self.spawn()
        started = await self.line("daemon.started", timeout_s)
        self.url = started["url"]
        await self.client.aclose()
        self.client = httpx2.AsyncClient(base_url=self.url, timeout=60, trust_env=False)

    async def spawn(self) -> None:
        self.lines.clear()
        self.raw.clear()
        fault_point = {} if self.fault_point is None else {VARIABLE: self.fault_point}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gpu_daemon",
            "serve",
            env=self._environment | fault_point,
            cwd=self.data_dir.parent,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 22,
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            text = raw.decode(errors="replace").rstrip()
            self.raw.append(text)
            if text.startswith("{"):
                self.lines.append(json.loads(text))
            async with self._new_line:
                self._new_line.notify_all()
        async with self._new_line:
            self._new_line.notify_all()

    async def line(self, event: str, timeout_s: float = 60, *, nth: int = 1, **fields: Any) -> dict[str, Any]:
        """The `nth` log line of this event with these fields, waiting for it."""

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self.lines
                if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
            ]

        assert self._reader is not None
        try:
            async with asyncio.timeout(timeout_s), self._new_line:
                await self._new_line.wait_for(lambda: len(found()) >= nth or (self._reader and self._reader.done()))
        except TimeoutError:
            raise AssertionError(f"no log line {event} {fields} within {timeout_s} s:\n" + self.tail()) from None
        if len(found()) < nth:
            raise AssertionError(f"the daemon ended without log line {event} {fields}:\n" + self.tail())
        return found()[nth - 1]

    async def cancel_took_s(self, job_id: str) -> float:
        """Of a job that ran: from the request to its end, on the daemon's own clock."""
        lines = [await self.line(event, job_id=job_id) for event in ("job.cancelling", "job.ended")]
        asked, ended = (datetime.fromisoformat(line["timestamp"]) for line in lines)
        return (ended - asked).total_seconds()

    def tail(self) -> str:
        return "\n".join(self.raw[-40:])

    async def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM, as an operator would; the exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await self.ended(timeout_s)

    async def kill(self) -> None:
        """kill -9 of the daemon alone: its children are left to notice."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self.ended()

    async def ended(self, timeout_s: float = 30) -> int:
        assert self._process is not None
        assert self._reader is not None
        status = await asyncio.wait_for(self._process.wait(), timeout_s)
        await asyncio.wait_for(self._reader, timeout_s)
        return status

    async def close(self) -> None:
        await self.client.aclose()
        if self._process is not None and self._process.returncode is None:
            try:
                await self.stop()
            finally:
                if self._process.returncode is None:
                    self._process.kill()
                    await self.ended()

    # What a client does.

    async def submit(self, audio: Path, **fields: str) -> dict[str, Any]:
        with audio.open("rb") as file:
            response = await self.client.post("/transcribe", files={"file": (audio.name, file)}, data=fields)
        assert response.status_code == 202, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def job(self, job_id: str) -> dict[str, Any]:
        response = await self.client.get(f"/jobs/{job_id}")
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        return job

    async def finished(self, job_id: str, timeout_s: float = 60) -> dict[str, Any]:
        """The job once it has ended: waits for the daemon to say so in its log, then asks."""
        job = await self.job(job_id)
        if job["status"] not in TERMINAL:
            await self.line("job.ended", timeout_s, job_id=job_id)
            job = await self.job(job_id)
        return job

    async def in_runner(self, job_id: str, timeout_s: float = 60) -> None:
        """Once the runner has said something of the job; before, its death is not the job's."""
        async with asyncio.timeout(timeout_s), self.client.stream("GET", f"/jobs/{job_id}/events") as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    told = json.loads(line.removeprefix("data:"))
                    if told.get("stage") in IN_RUNNER or "segments" in told:
                        return
        raise AssertionError(f"the job {job_id} ended unseen:\n" + self.tail())

    async def json(self, path: str, status: int = 200) -> Any:
        response = await self.client.get(path)
        assert response.status_code == status, response.text
        return response.json()


async def only_demo(database: ConnectionParameters) -> None:
    """Leave `demo` as the one enabled model: nothing is downloaded then."""
    connection = await asyncpg.connect(
        host=database.host,
        port=database.port,
        database=database.database,
        user=database.user,
        password=database.password,
    )
    try:
        await connection.execute(
            "UPDATE model_settings SET enabled = id_model IN (SELECT id_model FROM whisper_models WHERE name = 'demo')"
        )
    finally:
        await connection.close()


@asynccontextmanager
async def running_daemon(
    directory: Path, database: ConnectionParameters | None, **settings: str
) -> AsyncIterator[RunningDaemon]:
    if database is not None:
        await only_demo(database)
    daemon = RunningDaemon(directory / "data", database, settings)
    try:
        await daemon.start()
        yield daemon
    finally:
        await daemon.close()


def descendants(pid: int) -> set[int]:
    """Process ids of all children, and theirs, that live now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found.update(children)
        todo += children
    return found


def users(directory: Path) -> dict[int, str]:
    """Processes, with their command lines, that have a file under `directory` open or were started with its name."""
    found: dict[int, str] = {}
    name = os.fsencode(directory)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            said = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            said += b"".join(os.fsencode(os.readlink(link)) + b"\0" for link in (entry / "fd").iterdir())
        except OSError:  # it has ended, or is not ours
            continue
        if name + b"/" in said or name + b"\0" in said:
            found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


async def unused(directory: Path, timeout_s: float = 60) -> None:
    """Once no process uses `directory` any more. Processes that are not ours give no signal when they end."""
    try:
        async with asyncio.timeout(timeout_s):
            while users(directory):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"processes are left: {users(directory)}") from None
