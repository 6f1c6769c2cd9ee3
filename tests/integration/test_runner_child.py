"""The child's side, spoken to frame by frame; the engine is the fake one."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from gpu_daemon.jobs.model import JobId
from gpu_daemon.runner.protocol import (
    HEADER,
    AnyMessage,
    Cancel,
    Done,
    Failed,
    Hello,
    JobProgress,
    JobSegments,
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
from gpu_daemon.transcript.model import Segment, Transcript
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

    async def beat_of(self, job_id: str) -> None:
        while not isinstance(message := (await self.receive())[0], JobProgress) or message.job_id != job_id:
            pass

    async def next_models(self) -> dict[str, int]:
        while not isinstance(message := (await self.receive())[0], Models):
            pass
        return message.loaded

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


async def test_jobs_in_flight_do_not_wait_for_each_other(child: Child, audio: Path, tmp_path: Path) -> None:
    child.send(run_of(audio, "one", initial_prompt=f"fake:until={tmp_path / 'go'}"))
    child.send(run_of(audio, "two", initial_prompt="fake:error"))
    child.send(run_of(audio, "three"))
    ends = await child.receive_ends(2)
    assert [(end.job_id, end.kind) for end, _ in ends] == [("two", "failed"), ("three", "done")]
    (tmp_path / "go").touch()
    ((one, transcript),) = await child.receive_ends(1)
    assert (one.job_id, one.kind) == ("one", "done")
    assert transcript == ends[1][1]


async def test_what_is_heard_comes_while_it_is_heard(child: Child, audio: Path) -> None:
    child.send(run_of(audio, "job-7", skip_samples=8000))
    heard: list[Segment] = []
    while True:
        message, body = await child.receive()
        if isinstance(message, JobSegments):
            assert (message.job_id, message.first) == ("job-7", len(heard))
            heard += TypeAdapter(list[Segment]).validate_json(body)
        if isinstance(message, Done):
            break
    assert heard == list(Transcript.model_validate_json(body).segments)
    assert heard[0].start == 0.5


async def test_a_cancelled_job_is_dropped_and_its_neighbour_goes_on(child: Child, audio: Path, tmp_path: Path) -> None:
    child.send(run_of(audio, "one", initial_prompt=f"fake:until={tmp_path / 'go'}"))
    child.send(run_of(audio, "two", initial_prompt="fake:sleep=60"))
    await child.beat_of("two")
    child.send(Cancel(job_id=JobId("two")))
    child.send(Cancel(job_id=JobId("unknown")))
    ((two, _),) = await child.receive_ends(1)
    assert isinstance(two, Failed)
    assert (two.job_id, two.code) == ("two", "cancelled")
    (tmp_path / "go").touch()
    ((one, _),) = await child.receive_ends(1)
    assert (one.job_id, one.kind) == ("one", "done")


@pytest.mark.parametrize(("prompt", "code"), [("fake:bug", "engine_error"), ("fake:full", "gpu_oom")])
async def test_what_a_step_raises_is_tried_again_unless_a_job_was_alone(
    child: Child, audio: Path, prompt: str, code: str
) -> None:
    child.send(run_of(audio, "one", initial_prompt="fake:sleep=60"))
    await child.beat_of("one")
    child.send(run_of(audio, "two", initial_prompt=prompt))
    ends = [end for end, _ in await child.receive_ends(2)]
    assert {(end.job_id, end.code, end.retryable) for end in ends if isinstance(end, Failed)} == {
        ("one", code, True),
        ("two", code, True),
    }
    child.send(run_of(audio, "two", initial_prompt=prompt))
    ((alone, _),) = await child.receive_ends(1)
    assert isinstance(alone, Failed)
    assert (alone.code, alone.retryable) == (code, code == "gpu_oom")
    child.send(run_of(audio, "three"))
    ((three, _),) = await child.receive_ends(1)
    assert isinstance(three, Done)


async def test_a_lost_device_ends_everything(child: Child, audio: Path) -> None:
    child.send(run_of(audio, "one", initial_prompt="fake:sleep=60"))
    child.send(run_of(audio, "two", initial_prompt="fake:lost"))
    ends = [end for end, _ in await child.receive_ends(2)]
    assert {(end.job_id, end.code) for end in ends if isinstance(end, Failed)} == {
        ("one", "gpu_error"),
        ("two", "gpu_error"),
    }
    assert await child.exit_status() == 1


async def test_others_beat_and_obey_while_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, audio: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    monkeypatch.setenv("FAKE_LOAD_UNTIL", str(there))
    there.touch()
    child = await Child.spawn(parent_pid=os.getpid())
    for name in ("one", "two"):
        child.send(run_of(audio, name, initial_prompt="fake:sleep=60"))
        await child.beat_of(name)
    there.unlink()
    child.send(run_of(audio, "three", model="second"))
    await child.beat_of("three")
    for _ in range(2):
        await child.beat_of("one")
    child.send(Cancel(job_id=JobId("two")))
    ((two, _),) = await child.receive_ends(1)
    assert isinstance(two, Failed)
    assert (two.job_id, two.code) == ("two", "cancelled")
    there.touch()
    ((three, _),) = await child.receive_ends(1)
    assert (three.job_id, three.kind) == ("three", "done")
    await child.close()


async def test_a_model_without_room_waits_for_another_job_and_nobody_overtakes(
    monkeypatch: pytest.MonkeyPatch, audio: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_ROOM", "1")
    child = await Child.spawn(parent_pid=os.getpid())
    child.send(run_of(audio, "one", initial_prompt=f"fake:until={tmp_path / 'go'}"))
    child.send(run_of(audio, "two", model="second"))
    child.send(run_of(audio, "three"))
    for _ in range(2):
        await child.beat_of("two")
    (tmp_path / "go").touch()
    ends = [end for end, _ in await child.receive_ends(3)]
    assert [(end.job_id, end.kind) for end in ends] == [("one", "done"), ("two", "done"), ("three", "done")]
    await child.close()


async def test_a_model_in_use_is_put_away_when_it_is_no_more(child: Child, audio: Path, tmp_path: Path) -> None:
    child.send(run_of(audio, "one", initial_prompt=f"fake:until={tmp_path / 'go'}"))
    assert set(await child.next_models()) == {"demo"}
    child.send(run_of(audio, "two", model="second"))
    await child.receive_ends(1)
    child.send(Unload(model="demo"))
    child.send(Unload(model="second"))
    assert set(await child.next_models()) == {"demo"}
    (tmp_path / "go").touch()
    ((one, _),) = await child.receive_ends(1)
    assert (one.job_id, one.kind) == ("one", "done")
    assert await child.next_models() == {}


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
