"""How the daemon is connected to (pure)."""

from typing import Any
from urllib.parse import urlsplit

import httpx2

from gpu_daemon.client.views import NO_ANSWER, GpuDaemonClientError

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0
"""Events come, or a sign of life, more often than that."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def options(base_url: str, api_key: str | None) -> dict[str, Any]:
    """Of an httpx2 client. Raises GpuDaemonClientError."""
    try:
        httpx2.URL(base_url)
        scheme, host = urlsplit(base_url).scheme, urlsplit(base_url).hostname
        if scheme not in ("http", "https") or not host:
            raise ValueError("it begins with http:// or https:// and a host")
    except (httpx2.InvalidURL, ValueError) as error:
        raise GpuDaemonClientError(f"{base_url!r} is no address: {error}", code=NO_ANSWER) from error
    return {
        "base_url": base_url,
        "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        "timeout": httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        "trust_env": host not in LOOPBACK,  # no proxy leads back to this machine
    }


def event_headers(after: int | None) -> dict[str, str]:
    return {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
