"""Fetching a checkpoint: resumable, checked, atomic."""

import errno
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import MappingProxyType

import httpx2

from gpu_daemon import __version__
from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.part import PartFile
from gpu_daemon.clock import monotonic

CONNECT_TIMEOUT_S = 15
SILENCE_TIMEOUT_S = 30  # there is no limit in all: a slow line may take hours
HEADERS = {"User-Agent": f"gpu_daemon/{__version__}", "Accept-Encoding": "identity"}
WRITE_BYTES = 1 << 20
WRITE_EVERY_S = 0.5
MOST_BYTES = 64 << 30
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
ERRNO = re.compile(r"^\[Errno -?\d+\] ")

OnProgress = Callable[[int, int | None], None]
"""Bytes on the disk, and in all if the server said."""


class DownloadFailed(Exception):
    """The message is for people, clients among them: it names no path."""

    def __init__(self, message: str, *, status: int | None = None, error_code: str | None = None) -> None:
        """`status`: of the answer, if it was a refusal. `error_code`: what a hub says beside it."""
        super().__init__(message)
        self.status = status
        self.error_code = error_code


class NotAsPublished(DownloadFailed):
    """Every byte came, and some are others than were to come."""


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


class Downloader:
    def __init__(self, free_bytes: Callable[[Path], int] = _free_bytes) -> None:
        self._free_bytes = free_bytes
        self._client: httpx2.AsyncClient | None = None

    async def fetch(
        self,
        url: str,
        sha256: str,
        target: Path,
        on_progress: OnProgress,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """True: `target` is there and was checked. False: another process put it there meanwhile.

        Raises DownloadFailed, and Busy while another process downloads it. Cancelling leaves what came, for later.
        A redirect to another host does not take an Authorization header along.
        """
        part = PartFile(target)
        try:
            await blocking(part.open, on_cancel=part.stop)
            if target.exists():
                await blocking(part.discard)
                return False
            await self._receive(url, part, target.parent, on_progress, headers)
            if part.sha256() != sha256:
                await blocking(part.discard)
                on_progress(0, None)
                raise NotAsPublished(
                    f"what {_host(url)} sent is not what was published (its SHA-256 is {part.sha256()[:12]}…, "
                    f"not {sha256[:12]}…); it was thrown away"
                )
            await blocking(part.publish)
            return True
        except httpx2.HTTPError as error:
            raise DownloadFailed(_reason(error, _host_of(error) or _host(url))) from error
        except OSError as error:
            if error.errno in NO_ROOM:
                await blocking(part.discard)  # the jobs need the room more
                on_progress(0, None)
                raise DownloadFailed("the disk is full") from error
            raise DownloadFailed(f"cannot write to the models' directory: {error.strerror}") from error
        finally:
            part.close()

    async def read(self, url: str, most_bytes: int, *, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
        """Something small, whole and in memory. Raises DownloadFailed. Redirects as above."""
        client = await self._connected()
        body = bytearray()
        try:
            async with client.stream("GET", url, headers=HEADERS | dict(headers)) as response:
                if response.status_code != httpx2.codes.OK:
                    raise _refused(response, _host(url))
                async with aclosing(response.aiter_bytes()) as pieces:
                    async for piece in pieces:
                        body += piece
                        if len(body) > most_bytes:
                            raise DownloadFailed(f"{_host(url)} sends more than it should")
        except httpx2.HTTPError as error:
            raise DownloadFailed(_reason(error, _host_of(error) or _host(url))) from error
        return bytes(body)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _receive(
        self, url: str, part: PartFile, directory: Path, on_progress: OnProgress, headers: Mapping[str, str]
    ) -> None:
        client = await self._connected()
        wanted = {"Range": f"bytes={part.size_bytes}-"} if part.size_bytes else {}
        async with client.stream("GET", url, headers=HEADERS | dict(headers) | wanted) as response:
            total_bytes = await _begin(response, part, _host(url))
            on_progress(part.size_bytes, total_bytes)
            if part.size_bytes == total_bytes:
                return
            missing_bytes = (total_bytes or part.size_bytes) - part.size_bytes
            free_bytes = await blocking(partial(self._free_bytes, directory))
            if free_bytes < missing_bytes:
                raise DownloadFailed(
                    f"no room on the disk: {_megabytes(missing_bytes)} are to come, {_megabytes(free_bytes)} are free"
                )
            async with aclosing(_pieces(response)) as pieces:
                async for piece in pieces:
                    await blocking(partial(part.append, piece))
                    on_progress(part.size_bytes, total_bytes)
                    if part.size_bytes > MOST_BYTES:
                        raise DownloadFailed(f"{_host(url)} sends without end")
            if total_bytes is not None and part.size_bytes != total_bytes:
                raise DownloadFailed(f"{_host(url)} sent {part.size_bytes} of {total_bytes} bytes")

    async def _connected(self) -> httpx2.AsyncClient:
        """Made when first needed: reading the certificates takes a while. Proxies named in the environment are used."""
        if self._client is None:
            timeout = httpx2.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            made = await blocking(partial(httpx2.AsyncClient, timeout=timeout, follow_redirects=True))
            if self._client is None:
                self._client = made
        return self._client


async def _begin(response: httpx2.Response, part: PartFile, host: str) -> int | None:
    """Bytes in all, if the server says; `part` is ready for the body that follows. Raises DownloadFailed."""
    if response.status_code == httpx2.codes.OK:
        if part.size_bytes:  # it knows no ranges: everything comes again
            await blocking(part.restart)
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None
    if response.status_code in (httpx2.codes.PARTIAL_CONTENT, httpx2.codes.RANGE_NOT_SATISFIABLE):
        content_range = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        start, total = content_range.groups() if content_range else (None, None)
        total_bytes = int(total) if total and total.isdigit() else None
        if start == str(part.size_bytes) or (start is None and total_bytes == part.size_bytes):
            return total_bytes
        await blocking(part.restart)
        raise DownloadFailed(f"what had come is no part of what {host} has; the download starts over")
    raise _refused(response, host)


def _refused(response: httpx2.Response, host: str) -> DownloadFailed:
    return DownloadFailed(
        f"{host} answered {response.status_code} {response.reason_phrase}",
        status=response.status_code,
        error_code=response.headers.get("X-Error-Code"),
    )


async def _pieces(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Large enough to be worth a thread each; when the connection is cut, what had come is given before it raises."""
    buffer = bytearray()
    cut: httpx2.HTTPError | None = None
    written_s = monotonic()
    try:
        async for chunk in response.aiter_raw():
            buffer += chunk
            if len(buffer) >= WRITE_BYTES or monotonic() - written_s >= WRITE_EVERY_S:
                yield bytes(buffer)
                buffer.clear()
                written_s = monotonic()
    except httpx2.HTTPError as error:
        cut = error
    if buffer:
        yield bytes(buffer)
    if cut is not None:
        raise cut


def _reason(error: httpx2.HTTPError, host: str) -> str:
    if isinstance(error, httpx2.ConnectTimeout):
        return f"could not reach {host} (no answer within {CONNECT_TIMEOUT_S} s)"
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return f"could not reach {host} ({ERRNO.sub('', str(error)) or 'connection error'})"
    if isinstance(error, httpx2.ReadTimeout):
        return f"{host} sent nothing for {SILENCE_TIMEOUT_S} s"
    if isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError):
        return f"the connection to {host} was cut"
    if isinstance(error, httpx2.LocalProtocolError):
        return f"the request to {host} could not be sent"  # what it says may hold a header, and that a token
    return f"{host}: {error or type(error).__name__}"


def _host(url: str) -> str:
    return httpx2.URL(url).host


def _host_of(error: httpx2.HTTPError) -> str | None:
    """The one that it is about, which may be another than was asked first."""
    try:
        return error.request.url.host
    except RuntimeError:  # it is about none
        return None


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
