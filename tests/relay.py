"""Stands between a client and PostgreSQL, or the daemon, and breaks connections at chosen moments."""

import asyncio
import contextlib
from dataclasses import replace

from gpu_daemon.database.pool import ConnectionParameters

EXECUTE = b"E\0\0\0\x09\0"
"""Of a prepared statement (extended protocol), whatever it is."""
READY_FOR_QUERY = b"Z\0\0\0\x05"


class Relay:
    def __init__(self, target: ConnectionParameters) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._lose_answer_to: bytes | None = None
        self._then_away = False
        self._break_at: bytes | None = None
        self.lost = 0
        """Answers that were lost."""
        self.refuse = False
        """Hang up on whoever connects."""

    def lose_answer_to(self, message: bytes, *, then_away: bool = False) -> None:
        """The next that contains this is done by the server, but its client sees the connection break.

        `then_away`: so do all others, and nobody may connect until `refuse` is False again.
        """
        self._lose_answer_to, self._then_away = message, then_away

    def break_at(self, message: bytes) -> None:
        """The server never gets the next that contains this: it is away from there on."""
        self._break_at = message

    async def start(self, port: int = 0) -> ConnectionParameters:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        host, port = self._server.sockets[0].getsockname()
        return replace(self._target, host=host, port=port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._break_all()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

    def go_away(self) -> None:
        """Until `refuse` is False again."""
        self.refuse = True
        self._break_all()

    def cut(self) -> None:
        """Connections that there are; the server goes on with what it was told."""
        self._break_all()

    def _break_all(self) -> None:
        for task in self._connections:
            task.cancel()

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [client_out]
        try:
            if not self.refuse:
                server_in, server_out = await self._connect()
                writers.append(server_out)
                await self._relay(client_in, client_out, server_in, server_out)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for writer in writers:
                writer.close()
                with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                    await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._target.host, self._target.port
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _relay(
        self,
        client_in: asyncio.StreamReader,
        client_out: asyncio.StreamWriter,
        server_in: asyncio.StreamReader,
        server_out: asyncio.StreamWriter,
    ) -> None:
        """Until either side hangs up, or the answer is to be lost and has come."""
        losing = False

        async def upstream() -> None:
            nonlocal losing
            while data := await client_in.read(1 << 16):
                if self._break_at is not None and self._break_at in data:
                    self._break_at = None
                    self.go_away()
                    return
                if self._lose_answer_to is not None and self._lose_answer_to in data:
                    self._lose_answer_to, losing = None, True
                server_out.write(data)
                await server_out.drain()

        async def downstream() -> None:
            lost = b""
            while data := await server_in.read(1 << 16):
                if losing:
                    lost += data
                    if READY_FOR_QUERY in lost:
                        self.lost += 1
                        if self._then_away:
                            self.go_away()
                        return
                    continue
                client_out.write(data)
                await client_out.drain()

        tasks = [asyncio.create_task(upstream()), asyncio.create_task(downstream())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
