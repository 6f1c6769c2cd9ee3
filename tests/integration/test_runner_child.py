"""The child's side, spoken to frame by frame; the engine is the fake one."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_daemon.jobs.model import JobId
from gpu_daemon.runner.protocol import (
    HEADER,
    AnyMessage,
    Cancel,
    Done,
    Failed,
    Hello,
    JobProgress,
    Launch,
    Models,
    Ping,
    Pong,
    Stop,
    Unload,
    decode,
    encode,
    parse_header,
)
from gpu_daemon.transcript.model import Transcript
from tests.runners import LIMIT_S, pcm, run_of, speech


class Child:
    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer

    @classmethod
    async def spawn(cls, *, parent_pid: int) -> "Child":
        ours, theirs = socket.socketpair()
        launch = Launch(
            socket_fd=theirs.fileno(), parent_pid=parent_pid, device="cpu", model_idle_s=300, vram_reserve_mb=0
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gpu_daemon.runner.child", launch.model_dump_json()),
            env={**os.environ, "GPU_DAEMON_ENGINE": "tests.fake_engine:create"},
            pass_fds=(theirs.fileno(),),
            stderr=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        return cls(process, *await asyncio.open_unix_connection(sock=ours))

    def send(self, message: AnyMessage) -> None:
        self.writer.write(encode(message))

    async def receive(self) -> tuple[AnyMessage, bytes]:
        async with asyncio.timeout(LIMIT_S):
            head_bytes, body_bytes = parse_header(await self.reader.readexactly(HEADER.size))
            return decode(await self.reader.readexactly(head_bytes)), await self.reader.readexactly(body_bytes)

    async def receive_ends(self, count: int) -> list[tuple[Done | Failed, bytes]]:
        ends: list[tuple[Done | Failed, bytes]] = []
        while len(ends) < count:
            message, body = await self.receive()
            if isinstance(message, Done | Failed):
                ends.append((message, body))
        return ends

    async def exit_status(self) -> int:
        async with asyncio.timeout(LIMIT_S):
            return await self.process.wait()

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self.writer.close()


@pytest.fixture
async def child() -> AsyncIterator[Child]:
    child = await Child.spawn(parent_pid=os.getpid())
    yield child
    await child.close()


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "audio.s16"
    path.write_bytes(pcm(speech()))
    return path


async def test_a_whole_conversation(child: Child, audio: Path) -> None:
    assert await child.receive() == (Hello(device_name="fake", torch_version="none"), b"")
    child.send(Ping(number=42))
    assert await child.receive() == (Pong(number=42), b"")
    child.send(run_of(audio, "job-7"))
    seen: list[AnyMessage] = []
    body = b""
    while not seen or not isinstance(seen[-1], Done):
        message, body = await child.receive()
        seen.append(message)
    assert isinstance(seen[0], JobProgress)
    assert all(message.job_id == "job-7" for message in seen if isinstance(message, JobProgress | Done))
    assert any(isinstance(message, Models) and set(message.loaded) == {"demo"} for message in seen)
    assert Transcript.model_validate_json(body).text
    child.send(Unload())
    assert await child.receive() == (Models(loaded={}), b"")
    child.send(Stop())
    assert await child.exit_status() == 0


async def test_jobs_wait_their_turn_and_each_answer_names_its_own(child: Child, audio: Path) -> None:
    for name in ("one", "two", "three"):
        child.send(run_of(audio, name, initial_prompt="fake:error" if name == "two" else None))
    ends = [message for message, _ in await child.receive_ends(3)]
    assert [(end.job_id, end.kind) for end in ends] == [("one", "done"), ("two", "failed"), ("three", "done")]


async def test_a_job_cancelled_before_its_turn_is_not_begun(child: Child, audio: Path) -> None:
    child.send(run_of(audio, "one", initial_prompt="fake:sleep=0.5"))
    child.send(run_of(audio, "two", initial_prompt="fake:sleep=60"))
    child.send(Cancel(job_id=JobId("two")))
    child.send(Cancel(job_id=JobId("unknown")))
    (first, _), (second, _) = await child.receive_ends(2)
    assert isinstance(first, Done)
    assert isinstance(second, Failed)
    assert (second.job_id, second.code) == ("two", "cancelled")


async def test_it_ends_when_the_parent_hangs_up_even_in_the_middle_of_a_job(child: Child, audio: Path) -> None:
    await child.receive()
    child.send(run_of(audio, initial_prompt="fake:hang"))
    await child.receive()
    child.writer.close()
    assert await child.exit_status() == 0


@pytest.mark.parametrize(
    "frame",
    [b"GET / HTTP/1.1\r\n\r\n", HEADER.pack(1, 2, 0) + b"{}", encode(Pong(number=1))],
    ids=["no frame", "no message", "not for a runner"],
)
async def test_a_parent_that_breaks_the_protocol_is_left(child: Child, frame: bytes) -> None:
    await child.receive()
    child.writer.write(frame)
    assert await child.exit_status() == 1


async def test_an_orphan_does_not_begin() -> None:
    child = await Child.spawn(parent_pid=os.getppid())
    assert await child.exit_status() == 1
    await child.close()


async def test_no_torch_is_loaded_for_an_engine_without_it(child: Child) -> None:
    await child.receive()
    assert "libtorch" not in Path(f"/proc/{child.process.pid}/maps").read_text()


async def test_the_kernel_takes_the_runner_first_when_memory_runs_out(child: Child) -> None:
    await child.receive()
    assert int(Path(f"/proc/{child.process.pid}/oom_score_adj").read_text()) >= 500


async def test_an_engine_on_the_cpu_leaves_the_daemon_the_first_go(child: Child) -> None:
    await child.receive()
    assert os.getpriority(os.PRIO_PROCESS, child.process.pid) > os.getpriority(os.PRIO_PROCESS, os.getpid())
