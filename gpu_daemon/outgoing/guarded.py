"""Connections that go only where the policy allows: checked when they are made, on the address they are made to."""

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import httpcore2
import httpx2

from gpu_daemon.outgoing.target import Address, AddressPolicy, literal

RESOLVE_TIMEOUT_S = 5.0
MAX_TRIED = 3
"""Addresses of one host."""


class AddressRefused(httpcore2.ConnectError):
    """The message names no address: it is shown to the client, who must not be told what lives in our network."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self, policy: AddressPolicy, setting: str) -> None:
        self._policy = policy
        self._setting = setting
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await _resolve(host, port)
        if not all(self._policy.allows(address, host) for address in addresses):
            # One bad answer among good ones is refused too: it is how the check is got round.
            raise AddressRefused(f"the address is not one that {self._setting} allows")
        failure: Exception | None = None
        for address in addresses[:MAX_TRIED]:
            try:
                return await self._backend.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError("the host name has no address")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, policy: AddressPolicy, setting: str) -> None:
        """`setting`: what the policy was read from; a refusal names it."""
        super().__init__(trust_env=False)
        # httpx2 has no parameter for the backend; its connection pool has.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(policy, setting),
        )


async def _resolve(host: str, port: int) -> list[Address]:
    if (address := literal(host)) is not None:
        return [address]
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout("the host name could not be resolved in time") from error
    except OSError as error:
        raise httpcore2.ConnectError(f"the host name cannot be resolved: {error.strerror or error}") from error
    return list(dict.fromkeys(ip_address(str(entry[4][0]).split("%")[0]) for entry in found))
