"""A WebSocket's connection, which uvicorn keeps: what one that does not read may cost."""

import socket
from asyncio.transports import BaseTransport

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_FRAME_BYTES = 64 * 1024
"""That a client may send."""
SEND_BUFFER_BYTES = 128 * 1024
"""Of the kernel's memory; without it, a few megabytes for each that does not read."""


class DashboardProtocol(WebSocketsSansIOProtocol):
    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def shutdown(self) -> None:
        """The server stops: what a client has not read by now it will not read in time."""
        super().shutdown()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
