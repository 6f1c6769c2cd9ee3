"""One try to deliver: a POST under limits, and what its answer means."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx2

from gpu_daemon import __version__
from gpu_daemon.outgoing.guarded import GuardedTransport
from gpu_daemon.outgoing.target import AddressPolicy

TIMEOUT_S = 15.0
MAX_RESPONSE_BYTES = 64 * 1024
RETRY_AFTER_STATUSES = frozenset({429, 503})
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 86400.0
GONE = 410


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    status: int | None
    error: str | None
    """None: delivered."""
    final: bool = False
    """It would be the same next time."""
    retry_after_s: float | None = None


def new_client(policy: AddressPolicy) -> httpx2.AsyncClient:
    """No connection is kept: a receiver may close one just when the next callback is sent, which would cost a retry."""
    return httpx2.AsyncClient(
        transport=GuardedTransport(policy, "CALLBACK_ALLOWED_NETWORKS"),
        follow_redirects=False,
        trust_env=False,
        timeout=TIMEOUT_S,
        headers={"User-Agent": f"gpu_daemon/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
    )


def refusal(url: str) -> str | None:
    """Why nothing is ever sent to `url`."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return f"callback_url is not a URL: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "callback_url must be an http or https URL with a host"
    return None


async def post(client: httpx2.AsyncClient, url: str, headers: dict[str, str], body: bytes, now: datetime) -> Answer:
    """Never raises for what a receiver can do."""
    response: httpx2.Response | None = None
    try:
        async with asyncio.timeout(TIMEOUT_S), client.stream("POST", url, content=body, headers=headers) as response:
            await _read_some(response)
    except TimeoutError:
        failure = f"no answer within {TIMEOUT_S:.0f} s"
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"[:500]
    if response is None:
        return Answer(status=None, error=failure)
    # The status has been said: however its body goes on, that is the answer.
    return _answer(response.status_code, response.headers.get("retry-after"), now)


def _answer(status: int, retry_after: str | None, now: datetime) -> Answer:
    if 200 <= status < 300:
        return Answer(status=status, error=None)
    return Answer(
        status=status,
        error=f"HTTP {status}" + (", a redirect, which is not followed" if 300 <= status < 400 else ""),
        final=status == GONE,
        retry_after_s=parse_retry_after(retry_after, now) if status in RETRY_AFTER_STATUSES else None,
    )


async def _read_some(response: httpx2.Response) -> None:
    """So that a receiver that is still writing a short answer is not cut off."""
    read = 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        if read > MAX_RESPONSE_BYTES:
            return


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds, from a number of seconds or an HTTP date; None for anything else."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else _seconds_until(value, now)
    except (ValueError, TypeError):
        return None
    return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, seconds))


def _seconds_until(http_date: str, now: datetime) -> float:
    moment = parsedate_to_datetime(http_date)
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
