"""A real web server on loopback: each path is answered as a test says."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tests.ports import kept_port
from tests.receiver import Received

Page = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes the whole answer."""


def answer(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Page:
    """`headers` may say another length than the body has."""
    said = {"Content-Length": str(len(body))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in said.items())

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} Planned\r\n{head}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()

    return write


def redirect(location: str, status: int = 302, headers: Mapping[str, str] | None = None) -> Page:
    return answer(status, b"not what was asked for", {"Location": location} | dict(headers or {}))


def endless(piece: bytes, pause_s: float = 0.0, *, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Page:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return write


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Not a word."""


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@dataclass
class Held:
    """A page that stops in the middle of its body until it is released, the first time; later it does not."""

    body: bytes
    after: int
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.body)}\r\n\r\n".encode() + self.body[: self.after])
        await writer.drain()
        if not self.stopped.is_set():
            self.stopped.set()
            await self.released.wait()
        writer.write(self.body[self.after :])
        await writer.drain()


class Site:
    def __init__(self) -> None:
        self.pages: dict[str, list[Page]] = {}
        """By path, without the query; the last of several goes on answering."""
        self.requests: list[Received] = []
        self.connections = 0
        """So far."""
        self.url = ""
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port: socket.socket | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """On a free port, unless one is said; after `away`, where it was."""
        if self._port is None and port == 0:
            self._port = kept_port(host)
        if self._port is not None:
            host, port = self._port.getsockname()
        self._server = await asyncio.start_server(self._accept, host, port)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        await self.away()
        if self._port is not None:
            self._port.close()

    async def away(self) -> None:
        """Whoever connects is refused, until `start`."""
        if self._server is not None:
            self._server.close()
            for task in list(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            await self._server.wait_closed()

    def put(self, path: str, *pages: Page) -> str:
        """The page's URL."""
        self.pages[path] = list(pages)
        return self.url + path

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            path = request.split(" ")[1]
            self.requests.append(Received(path, headers, b"", asyncio.get_running_loop().time()))
            pages = self.pages.get(path.partition("?")[0], [answer(404)])
            await (pages.pop(0) if len(pages) > 1 else pages[0])(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
