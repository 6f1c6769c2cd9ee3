"""A real HTTP server on loopback that publishes checkpoints, and can be made to misbehave."""

import asyncio
import hashlib
import random
import re
from collections import deque
from dataclasses import dataclass, field

BLOCK_BYTES = 1 << 16


def checkpoint(size_bytes: int = 300_000, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@dataclass(frozen=True, slots=True)
class Reply:
    """How one request is answered; as it should be unless said otherwise."""

    status: int = 200
    """Another: no body."""
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    hold_after: int | None = None
    """Bytes of the body after which nothing comes until `Origin.release`."""
    ignore_range: bool = False
    wrong_range: bool = False
    """Starts elsewhere than asked."""
    corrupt: bool = False
    chunked: bool = False
    """Does not say how long the body is."""


@dataclass
class Origin:
    files: dict[str, bytes] = field(default_factory=dict)
    """By path."""
    ranges: list[str | None] = field(default_factory=list)
    """The Range of each request."""
    heads: list[str] = field(default_factory=list)
    """Of each request, line by line."""
    url: str = ""
    _plan: deque[Reply] = field(default_factory=deque)
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    _held: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _connections: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def start(self, port: int = 0, *, host: str = "127.0.0.1") -> None:
        self._server = await asyncio.start_server(self._accept, host, port)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def publish(self, name: str, content: bytes, *, sha256: str | None = None) -> str:
        """The address, made as openai's are: with the SHA-256 before the name."""
        path = f"/models/{sha256 or hashlib.sha256(content).hexdigest()}/{name}.pt"
        self.files[path] = content
        return self.url + path

    def plan(self, *replies: Reply) -> None:
        """For the next requests, one each."""
        self._plan.extend(replies)

    async def requested(self, count: int, timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.ranges) >= count)

    async def held(self, timeout_s: float = 20) -> None:
        """Returns when a reply has come to its `hold_after`."""
        async with asyncio.timeout(timeout_s):
            await self._held.wait()

    def release(self) -> None:
        self._released.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not await self._answer(head.decode(), writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> bool:
        """False: the connection is to be closed."""
        path = head.split(" ", 2)[1]
        asked = re.search(r"^range: *bytes=(\d+)-\r$", head, re.IGNORECASE | re.MULTILINE)
        async with self._arrived:
            self.ranges.append(asked[1] if asked else None)
            self.heads.append(head)
            self._arrived.notify_all()
        reply = self._plan.popleft() if self._plan else Reply()
        content = self.files.get(path)
        if reply.status != 200 or content is None:
            writer.write(f"HTTP/1.1 {reply.status if content else 404} Planned\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        start = int(asked[1]) if asked and not reply.ignore_range else 0
        if start >= len(content):
            writer.write(
                f"HTTP/1.1 416 No\r\nContent-Range: bytes */{len(content)}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            return True
        start += 7 if reply.wrong_range else 0
        body = content[start:]
        lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}"]
        if reply.chunked:
            lines[1] = "Transfer-Encoding: chunked"
        if asked and not reply.ignore_range:
            lines[0] = "HTTP/1.1 206 Partial Content"
            lines.append(f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return await self._send(bytes(255 - byte for byte in body) if reply.corrupt else body, reply, writer)

    async def _send(self, body: bytes, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        end = len(body) if reply.cut_after is None else reply.cut_after
        hold = len(body) + 1 if reply.hold_after is None else reply.hold_after
        for offset in range(0, end, BLOCK_BYTES):
            block = body[offset : min(offset + BLOCK_BYTES, end)]
            if offset + len(block) > hold:
                writer.write(block[: hold - offset])
                await writer.drain()
                self._held.set()
                await self._released.wait()
                block = block[hold - offset :]
                hold = len(body) + 1
            if reply.chunked:
                block = f"{len(block):x}\r\n".encode() + block + b"\r\n"
            writer.write(block)
            await writer.drain()
        if reply.chunked:
            writer.write(b"0\r\n\r\n")
        return reply.cut_after is None
