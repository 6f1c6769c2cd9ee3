"""Audio by URL, from servers that nobody vouches for: to addresses that are allowed, under limits, and never halfway.

The URL of a client's recording is often a secret (a signed one is as good as a password), and what exactly a server or
a network answered is a way to look into networks that are not the client's: neither is said in any message or log.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from email.message import Message
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from urllib.parse import unquote

import httpx2

from gpu_daemon import __version__
from gpu_daemon.audio.pace import FileLimits, Pace
from gpu_daemon.audio.sink import BATCH_BYTES, FileSink, sync_file
from gpu_daemon.blocking import blocking
from gpu_daemon.errors import FetchFailed, TooLarge, UrlBlocked
from gpu_daemon.jobs.file_name import display_name
from gpu_daemon.outgoing.guarded import AddressRefused, GuardedTransport
from gpu_daemon.outgoing.target import AddressPolicy

SETTING = "FETCH_ALLOWED_NETWORKS"
MOST_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
AGAIN = frozenset({408, 425, 429})
"""Statuses below 500 that another time may be others."""
HEADERS = {"User-Agent": f"gpu_daemon/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
NO_ANSWER = "the server of the url gave no usable answer"
TOO_SLOW = "the server of the url sends too slowly"


OnBytes = Callable[[int, int | None], None]
"""Told how many have come, and how many there will be; None: the server does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits(FileLimits):
    least_bytes_per_s: int = 16 * 1024
    total_s: float = 3600.0
    answer_s: float = 30.0
    """Until an answer begins, for each redirect anew: names, connections and headers together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    size_bytes: int
    sha256: str
    file_name: str | None
    """As the server calls the file, cleaned; None: it does not say."""


class Fetcher:
    def __init__(self, policy: AddressPolicy, limits: FetchLimits) -> None:
        self._policy = policy
        self._limits = limits
        self._client: httpx2.AsyncClient | None = None

    async def fetch(self, url: str, target: Path, on_bytes: OnBytes = lambda *_: None) -> Fetched:
        """`target` is there and synced when this returns, and nothing of it if it does not.

        Raises UrlBlocked, FetchFailed, TooLarge, DiskFull.
        """
        part = target.with_name(target.name + ".part")
        part.unlink(missing_ok=True)  # of a daemon that was killed
        sink = FileSink(part, reserve_bytes=self._limits.reserve_bytes)
        try:
            async with asyncio.timeout(self._limits.total_s):
                response = await self._answer(url)
                try:
                    size_bytes = await self._receive(response, sink, on_bytes)
                finally:
                    await response.aclose()
                sink.close()
                await blocking(partial(_publish, part, target))
        except TimeoutError:
            raise FetchFailed(TOO_SLOW, retryable=True) from None
        finally:
            sink.close()
            part.unlink(missing_ok=True)
        return Fetched(size_bytes=size_bytes, sha256=sink.sha256, file_name=_file_name(response))

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _answer(self, url: str) -> httpx2.Response:
        """The one with the file, open, after all redirects."""
        client = await self._connected()
        here = _parsed(url)
        for _ in range(MOST_REDIRECTS + 1):
            with _network():
                try:
                    async with asyncio.timeout(self._limits.answer_s):
                        response = await client.send(client.build_request("GET", here), stream=True)
                except TimeoutError:
                    raise FetchFailed(NO_ANSWER, retryable=True) from None
            if response.status_code == httpx2.codes.OK:
                return response
            await response.aclose()
            if response.status_code not in REDIRECTS or "location" not in response.headers:
                raise _refused(response.status_code)
            here = next_hop(here, response.headers["location"])
        raise FetchFailed(f"the url is redirected more than {MOST_REDIRECTS} times")

    async def _receive(self, response: httpx2.Response, sink: FileSink, on_bytes: OnBytes) -> int:
        """Bytes."""
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise FetchFailed("the server of the url sends the file compressed, which it was asked not to do")
        said = response.headers.get("content-length", "")
        length_bytes = int(said) if said.isdecimal() and len(said) < 20 else None
        self._check_size(length_bytes or 0)
        pace, came_bytes, batch = Pace(self._limits), 0, bytearray()
        async with aclosing(response.aiter_raw()) as chunks:
            while (chunk := await _next(chunks, pace)) is not None:
                came_bytes += len(chunk)
                self._check_size(came_bytes)
                on_bytes(came_bytes, length_bytes)
                batch += chunk
                if len(batch) >= BATCH_BYTES:
                    await blocking(partial(sink.write, batch))
                    batch = bytearray()
        await blocking(partial(sink.write, batch))
        return came_bytes

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._limits.file_bytes:
            raise TooLarge(f"the file is larger than the limit of {self._limits.file_bytes // 1024 // 1024} MB")

    async def _connected(self) -> httpx2.AsyncClient:
        """Made when first needed: reading the certificates takes a while."""
        if self._client is None:
            made = await blocking(partial(_new_client, self._policy, self._limits))
            if self._client is None:
                self._client = made
        return self._client


def _new_client(policy: AddressPolicy, limits: FetchLimits) -> httpx2.AsyncClient:
    """It keeps no cookies: what one server sets must not be carried to the next, nor from one job to another."""
    return httpx2.AsyncClient(
        transport=GuardedTransport(policy, SETTING),
        follow_redirects=False,
        trust_env=False,
        timeout=httpx2.Timeout(limits.answer_s, read=limits.idle_s),
        headers=HEADERS,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


def _parsed(url: str) -> httpx2.URL:
    """Raises UrlBlocked."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise _blocked() from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise _blocked()
    return parsed


def next_hop(here: httpx2.URL, location: str) -> httpx2.URL:
    """Raises UrlBlocked."""
    try:
        there = _parsed(str(here.join(location)))
    except (httpx2.InvalidURL, ValueError):
        raise _blocked() from None
    if here.scheme == "https" and there.scheme != "https":
        raise _blocked()
    return there


async def _next(chunks: AsyncIterator[bytes], pace: Pace) -> bytes | None:
    """None: that was all. Raises FetchFailed, UrlBlocked."""
    with _network():
        try:
            async with asyncio.timeout(pace.patience_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise FetchFailed(TOO_SLOW, retryable=True) from None
    if chunk is not None and not pace.came(len(chunk)):
        raise FetchFailed(TOO_SLOW, retryable=True)
    return chunk


@contextmanager
def _network() -> Iterator[None]:
    """What a network and a server can do becomes one error: which it was would tell what lives there."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError) as error:
        if isinstance(error.__cause__, AddressRefused):
            raise _blocked() from None
        raise FetchFailed(NO_ANSWER, retryable=True) from None


def _blocked() -> UrlBlocked:
    return UrlBlocked(f"the url, or what it is redirected to, may not be fetched ({SETTING})")


def _refused(status: int) -> FetchFailed:
    return FetchFailed(f"the server of the url answered {status}", retryable=status >= 500 or status in AGAIN)


def _publish(part: Path, target: Path) -> None:
    sync_file(part)
    part.rename(target)
    sync_file(target)


def _file_name(response: httpx2.Response) -> str | None:
    header = Message()
    header["Content-Disposition"] = response.headers.get("content-disposition", "")
    name = header.get_filename("")
    return display_name(name) if name else None


def name_in_url(url: str) -> str:
    """What a URL calls its file, for people to read."""
    return display_name(unquote(httpx2.URL(url).path))
