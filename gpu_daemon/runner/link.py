"""One life of a child process, from spawn to reap: its socket, its output, its heartbeat."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Self

from gpu_daemon import clock
from gpu_daemon.logs import log
from gpu_daemon.runner.protocol import (
    HEADER,
    FromRunner,
    Hello,
    Launch,
    Ping,
    Pong,
    ProtocolError,
    ToRunner,
    decode,
    encode,
    parse_header,
)

PING_INTERVAL_S = 2.0
KILL_TIMEOUT_S = 10.0
"""SIGKILL takes milliseconds, except for a process that hangs inside a driver: that one is given up."""
LAST_WORDS_TIMEOUT_S = 1.0
STDERR_TAIL_BYTES = 4096

Receive = Callable[[FromRunner, bytes], None]


class Link:
    """Never reused: a runner that starts again gets a new one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        output: asyncio.StreamReader,
        output_pipe: asyncio.ReadTransport,
        *,
        receive: Receive,
        ended: Callable[[], None],
    ) -> None:
        self.pid = process.pid
        self.hello: Hello | None = None
        self.settled = asyncio.Event()
        """It said hello, or it ended before it could."""
        self.ended = asyncio.Event()
        self.abandoned = False
        """SIGKILL did not end it: a thread of it hangs inside a driver."""
        self.answered_at_s: float | None = None
        """On the monotonic clock."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._output = output
        self._output_pipe = output_pipe
        self._receive = receive
        self._on_end = ended
        self._stderr = b""
        self._pinged = 0
        self._ponged = 0
        self._life = asyncio.create_task(self._live(), name=f"runner {process.pid}")

    @classmethod
    async def open(
        cls,
        launch: Callable[[int], Launch],
        environment: Mapping[str, str],
        *,
        receive: Receive,
        ended: Callable[[], None],
    ) -> Self:
        """`launch` is given the child's end of the socket. Raises OSError when no process can be started."""
        ours, theirs = socket.socketpair()
        output_end, their_output = os.pipe()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        output = asyncio.StreamReader()
        output_pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(output_end, "rb")
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-X",
                "faulthandler",
                "-m",
                "gpu_daemon.runner.child",
                launch(theirs.fileno()).model_dump_json(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=their_output,  # libraries print
                stderr=their_output,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            writer.close()
            output_pipe.close()
            raise
        finally:
            theirs.close()
            os.close(their_output)
        return cls(process, reader, writer, output, output_pipe, receive=receive, ended=ended)

    def send(self, message: ToRunner) -> None:
        """Lost if the child is gone: `ended` tells."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    def send_signal(self, number: signal.Signals) -> None:
        """To the child and whatever it started."""
        if self._process.returncode is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                log.debug("runner.already_gone", pid=self.pid)

    async def kill(self) -> None:
        """Gone and reaped, unless its driver hangs."""
        if not await self.ends_within(KILL_TIMEOUT_S, signal.SIGKILL):
            self.abandoned = True
            log.error("runner.unkillable", pid=self.pid)

    async def ends_within(self, timeout_s: float, number: signal.Signals | None = None) -> bool:
        if number is not None:
            self.send_signal(number)
        try:
            async with asyncio.timeout(timeout_s):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True

    @property
    def stderr(self) -> str:
        """The last it printed."""
        return self._stderr.decode(errors="replace").strip()

    @property
    def exit(self) -> str:
        """How it ended, as the end of a sentence."""
        code = self._process.returncode
        if code is None:
            return "does not answer"
        if code >= 0:
            return f"ended with exit status {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    async def _live(self) -> None:
        reading = asyncio.create_task(self._read())
        draining = asyncio.create_task(self._drain())
        pinging = asyncio.create_task(self._ping())
        try:
            await self._process.wait()
            # What it sent and printed last may still be under way.
            await asyncio.wait({reading, draining}, timeout=LAST_WORDS_TIMEOUT_S)
        finally:
            for task in (reading, draining, pinging):
                task.cancel()
            await asyncio.wait({reading, draining, pinging})
            self.send_signal(signal.SIGKILL)  # only if this task was cancelled is there anybody to hear it
            self._output_pipe.close()
            self._writer.close()
            with suppress(ConnectionError):
                await self._writer.wait_closed()
            self.settled.set()
            self.ended.set()
            self._on_end()

    async def _read(self) -> None:
        """Frames until the end of the stream. A child that breaks the protocol is of no use: it is killed."""
        try:
            while True:
                head_bytes, body_bytes = parse_header(await self._reader.readexactly(HEADER.size))
                message = decode(await self._reader.readexactly(head_bytes))
                body = await self._reader.readexactly(body_bytes)
                self._dispatch(message, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            log.debug("runner.hung_up", pid=self.pid)
        except ProtocolError as error:
            log.error("runner.broke_protocol", pid=self.pid, error=str(error))
        except Exception:
            log.exception("runner.unreadable", pid=self.pid)
        self.send_signal(signal.SIGKILL)

    def _dispatch(self, message: object, body: bytes) -> None:
        if not isinstance(message, FromRunner):
            raise ProtocolError(f"a runner does not send {type(message).__name__}")
        if isinstance(message, Hello | Pong):
            self.answered_at_s = clock.monotonic()
        if isinstance(message, Hello):
            self.hello = message
            self.settled.set()
        elif isinstance(message, Pong):
            self._ponged = message.number
        else:
            self._receive(message, body)

    async def _drain(self) -> None:
        line = b""
        while chunk := await self._output.read(STDERR_TAIL_BYTES):
            self._stderr = (self._stderr + chunk)[-STDERR_TAIL_BYTES:]
            *lines, line = (line + chunk).split(b"\n")
            line = line[-STDERR_TAIL_BYTES:]
            for complete in lines:
                log.debug("runner.printed", pid=self.pid, line=complete.decode(errors="replace"))

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            if self.hello is not None and self._ponged == self._pinged:
                self._pinged += 1
                self.send(Ping(number=self._pinged))
