from datetime import UTC, datetime

import pytest

from gpu_daemon.callbacks.post import MAX_RETRY_AFTER_S, parse_retry_after, refusal

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("120", 120),
        (" 120 ", 120),
        ("0", 1),
        ("99999999", MAX_RETRY_AFTER_S),
        ("9" * 400, MAX_RETRY_AFTER_S),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60),
        ("Fri, 02 Jan 2026 05:05:05 +0200", 60),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 1),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://one.example/", False),
        ("HTTPS://one.example/", False),
        ("ftp://one.example/", True),
        ("file:///etc/passwd", True),
        ("http:///path", True),
        ("http://[::1", True),
        ("one.example", True),
        ("", True),
    ],
)
def test_refusal(url: str, refused: bool) -> None:
    assert (refusal(url) is not None) is refused
