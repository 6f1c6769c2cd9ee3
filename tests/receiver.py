"""A real receiver of callbacks on loopback."""

import asyncio
import contextlib
import json
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.ports import kept_port


@dataclass(frozen=True, slots=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    at_s: float
    """On the event loop's clock."""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0
    held: bool = False
    """Answer when `release` is called."""
    hang: bool = False
    """Never answer."""
    hang_in_body: bool = False
    """Status and headers, then nothing more."""
    disconnect: bool = False
    """Hang up without an answer."""
    endless: bool = False
    """A body without end."""


class Receiver:
    """Answers with the replies planned by `plan`, in order, then with 200."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        """So far."""
        self._plan: deque[Reply] = deque()
        self._arrived = asyncio.Condition()
        self._released = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._port: socket.socket | None = None
        self.url = ""

    async def start(self) -> None:
        """On a free port; after `away`, on the one that it had."""
        if self._port is None:
            self._port = kept_port()
        host, port = self._port.getsockname()
        self._server = await asyncio.start_server(self._accept, host, port)
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        await self.away()
        if self._port is not None:
            self._port.close()

    async def away(self) -> None:
        """Whoever connects is refused, until `start`."""
        if self._server is not None:
            self._server.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

    def plan(self, *replies: Reply) -> None:
        self._plan.extend(replies)

    def release(self) -> None:
        """Answers that are held go out."""
        self._released.set()

    async def wait_for(self, count: int, timeout_s: float = 20) -> list[Received]:
        """The requests so far, once there are `count`."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)
        return list(self.requests)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await reader.readline()
        if not request:
            return False
        headers: dict[str, str] = {}
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        reply = self._plan.popleft() if self._plan else Reply()
        async with self._arrived:
            path = request.decode().split(" ")[1]
            self.requests.append(Received(path, headers, body, asyncio.get_running_loop().time()))
            self._arrived.notify_all()
        await asyncio.sleep(reply.delay_s)
        if reply.held:
            await self._released.wait()
        if reply.hang:
            await asyncio.Event().wait()
        if reply.disconnect:
            return False
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in reply.headers.items())]
        if reply.endless:
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        length = 10 if reply.hang_in_body else 0
        writer.write("\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode())
        await writer.drain()
        if reply.hang_in_body:
            await asyncio.Event().wait()
        return True
