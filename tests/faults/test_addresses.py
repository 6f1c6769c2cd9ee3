"""Where the daemon goes when a client names the address. Rows 15 to 17 of the fault matrix in docs/faults.md."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gpu_daemon import clock
from gpu_daemon.audio.fetch import Fetcher, FetchLimits, next_hop
from gpu_daemon.callbacks.post import Answer, new_client, post, refusal
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.errors import JobError, UrlBlocked
from gpu_daemon.outgoing.target import AddressPolicy
from tests.addresses import LOOPBACK, NEVER, PRIVATE, SPECIAL
from tests.serving import served_daemon
from tests.web import Site, answer, redirect

CALLBACKS = AddressPolicy.parse(("public", "private"))
FETCHES = AddressPolicy.parse(("public",))
EVERYTHING = AddressPolicy.parse(("public", "private", "loopback", "0.0.0.0/0", "::/0"))
ALLOWED, CANARY = "127.0.0.2", "127.0.0.1"
ONE_ADDRESS = AddressPolicy.parse(("public", "private", f"{ALLOWED}/32"))
"""It stands for the internet: nothing else on loopback is allowed."""
BLOCKED = "the url, or what it is redirected to, may not be fetched (FETCH_ALLOWED_NETWORKS)"
UNKNOWN = "the server of the url gave no usable answer"
DISGUISED = ("localhost", "localhost.", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "[::ffff:7f00:1]")

_connects: list[list[Any]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        for heard in _connects:
            heard.append(arguments[1])


sys.addaudithook(_hear)


@pytest.fixture
def connects() -> Iterator[list[Any]]:
    """Where anything in this process has tried to connect to."""
    heard: list[Any] = []
    _connects.append(heard)
    yield heard
    _connects.remove(heard)


async def call_back(url: str, policy: AddressPolicy) -> Answer:
    async with new_client(policy) as client:
        return await post(client, url, {}, b"{}", clock.now())


async def fetch(url: str, policy: AddressPolicy, directory: Path) -> str:
    """What the client is told, or what was fetched."""
    fetcher = Fetcher(policy, FetchLimits(file_bytes=1 << 20, reserve_bytes=0))
    try:
        await fetcher.fetch(url, directory / "job" / "source")
    except JobError as error:
        return error.message
    finally:
        await fetcher.close()
    return (directory / "job" / "source").read_text()


def host_of(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def test_the_audit_hook_hears_connections(connects: list[Any]) -> None:
    with socket.socket() as one, pytest.raises(OSError):
        one.connect(("127.0.0.1", 9))
    assert connects == [("127.0.0.1", 9)]


async def test_no_packet_goes_to_an_address_that_is_not_allowed(tmp_path: Path, connects: list[Any]) -> None:
    """Fault 15: callbacks."""
    for address, policy in [
        *((address, EVERYTHING) for address in NEVER),
        *((address, CALLBACKS) for address in (*SPECIAL, *LOOPBACK)),
        *((address, FETCHES) for address in PRIVATE),
    ]:
        answer = await call_back(f"http://{host_of(address)}/", policy)
        assert (answer.status, answer.final) == (None, False), address
        assert "CALLBACK_ALLOWED_NETWORKS" in str(answer.error), address
        assert await fetch(f"http://{host_of(address)}/", policy, tmp_path) == BLOCKED, address
    assert connects == []


@pytest.mark.parametrize("host", DISGUISED)
async def test_a_name_or_number_of_this_machine_is_seen_through(
    tmp_path: Path, site: Site, connects: list[Any], host: str
) -> None:
    url = f"http://{host}:{site.port}/x"
    told = await fetch(url, FETCHES, tmp_path)
    assert told == BLOCKED or (told, host) == (UNKNOWN, "localhost.")  # whether it is a name depends on the resolver
    assert (await call_back(url, CALLBACKS)).status is None
    assert (site.connections, connects) == (0, [])


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://127.0.0.1:6379/_x", "ftp://127.0.0.1/x", "//127.0.0.1/x", "http:///x", "x"]
)
async def test_other_schemes_are_nobody_s_business(tmp_path: Path, connects: list[Any], url: str) -> None:
    assert await fetch(url, EVERYTHING, tmp_path) == BLOCKED
    assert refusal(url) is not None
    assert connects == []


Resolver = Callable[..., Awaitable[list[Any]]]


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: tuple[str, ...]) -> list[str]:
    """The name server gives these answers, one each time, and the last one for ever. The names it was asked for."""
    left, asked = list(answers), list[str]()

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


@asynccontextmanager
async def two_sites() -> AsyncIterator[tuple[Site, Site]]:
    """One at an address that is allowed, and a canary at another one, on the same port."""
    allowed, canary = Site(), Site()
    await canary.start(CANARY)
    await allowed.start(ALLOWED, canary.port)
    try:
        yield allowed, canary
    finally:
        await allowed.stop()
        await canary.stop()


async def test_a_name_is_resolved_once_and_that_address_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 16: the name means another address as soon as it has been looked at."""
    async with two_sites() as (allowed, canary):
        allowed.put("/x", answer(body=b"audio"))
        url = f"http://rebinding.example:{canary.port}/x"
        asked = resolving(monkeypatch, (ALLOWED,), (CANARY,))
        assert await fetch(url, ONE_ADDRESS, tmp_path) == "audio"
        assert asked == ["rebinding.example"]
        (tmp_path / "job" / "source").unlink()
        (tmp_path / "job").rmdir()
        assert await fetch(url, ONE_ADDRESS, tmp_path) == BLOCKED
        resolving(monkeypatch, (ALLOWED,), (CANARY,))
        assert (await call_back(url, ONE_ADDRESS)).status == 200
        assert (await call_back(url, ONE_ADDRESS)).status is None
        assert (allowed.connections, canary.connections) == (2, 0)


@pytest.mark.parametrize("answers", [(ALLOWED, CANARY), (CANARY, ALLOWED), (ALLOWED, "169.254.169.254"), ()])
async def test_mixed_answers_are_refused_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: tuple[str, ...]
) -> None:
    async with two_sites() as (allowed, canary):
        resolving(monkeypatch, answers)
        url = f"http://mixed.example:{canary.port}/x"
        if answers:
            assert await fetch(url, ONE_ADDRESS, tmp_path) == BLOCKED
        assert (await call_back(url, ONE_ADDRESS)).status is None
        assert (allowed.connections, canary.connections) == (0, 0)


REDIRECTS = (
    "http://127.0.0.1:{port}/x", "//127.0.0.1:{port}/x", "http://localhost:{port}/x", "http://2130706433:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x", "http://10.0.0.1:{port}/x", "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_x", "http://user:pass@127.0.0.2:{port}/x",
    "http://[::1",
)  # fmt: skip


@pytest.mark.parametrize("location", REDIRECTS)
async def test_every_hop_of_a_redirect_is_checked(tmp_path: Path, connects: list[Any], location: str) -> None:
    """Fault 17."""
    policy = AddressPolicy.parse(("public", f"{ALLOWED}/32"))
    async with two_sites() as (allowed, canary):
        allowed.put("/first", redirect("/second"))
        allowed.put("/second", redirect(location.format(port=canary.port)))
        connects.clear()
        assert await fetch(f"{allowed.url}/first", policy, tmp_path) == BLOCKED
        assert [request.path for request in allowed.requests] == ["/first", "/second"]
        answer = await call_back(f"{allowed.url}/second", policy)
        assert (answer.status, answer.error) == (302, "HTTP 302, a redirect, which is not followed")
        assert {address for address, *_ in connects} == {ALLOWED}
        assert canary.connections == 0


def test_a_redirect_may_not_leave_encryption() -> None:
    secure = httpx2.URL("https://a.example/x/y?secret")
    for location in ("http://a.example/", "HTTP://b.example/"):
        with pytest.raises(UrlBlocked):
            next_hop(secure, location)
    assert str(next_hop(secure, "//b.example/z")) == "https://b.example/z"
    assert str(next_hop(secure, "z")) == "https://a.example/x/z"
    assert str(next_hop(httpx2.URL("http://a.example/"), "https://a.example/")) == "https://a.example/"


async def test_the_daemon_refuses_what_it_can_see_and_blocks_the_rest(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    """Fault 15, from the outside: with the settings as they are when nobody sets them."""
    async with served_daemon(
        tmp_path, database, monkeypatch, callback_allowed_networks=("public", "private")
    ) as served:
        for address in (*NEVER, *SPECIAL, *LOOPBACK, *PRIVATE):
            url = f"http://{host_of(address)}:{site.port}/x?secret"
            for name in ("url", "callback_url"):
                if name == "callback_url" and address in PRIVATE:
                    continue
                body = {"url": "https://example.org/x"} | {name: url}
                response = await served.client.post("/transcribe", json=body)
                error = response.json()["error"]
                assert (response.status_code, error["code"], error["param"]) == (400, "address_not_allowed", name)
                assert "secret" not in error["message"]
        for host in ("localhost", "2130706433", "0x7f.1"):
            response = await served.client.post(
                "/transcribe", json={"url": f"http://{host}:{site.port}/x", "wait": True}
            )
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (400, "url_blocked", "url")
            assert host not in error["message"]
        assert served.directories() == []
        assert site.connections == 0
