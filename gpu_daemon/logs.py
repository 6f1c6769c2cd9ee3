"""One form for every line, ours and the libraries'; secrets are struck out before anything is written.

Ours do not go through `logging`, which takes a quarter of a millisecond for each.
"""

import contextlib
import contextvars
import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("gpu_daemon")

SECRET = "[secret]"  # noqa: S105 - what is written instead of one
SECRET_NAMES = frozenset({"authorization", "proxy-authorization", "x-api-key", "api_key", "hf_token", "password"})
SECRET_PATTERNS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), f"hf_{SECRET}"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]{8,}"), f"whsec_{SECRET}"),
    (re.compile(r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {SECRET}"),
    # A header as somebody printed it: `Authorization: Basic dXNl`, `'x-api-key': 'key'`, `(b'authorization', b'key')`.
    (
        re.compile(
            r"(?i)\b(authorization|x-api-key)(['\"]?\s*[:=,]\s*(?:b?['\"])?(?:(?:bearer|basic) )?)[^\s'\",;)}]+"
        ),
        rf"\1\2{SECRET}",
    ),
    # Userinfo reaches to the last @ before the path: a password may hold an @ that nobody encoded.
    (re.compile(r"(?<=://)[^/\s?#'\"]*@"), f"{SECRET}@"),
)
SECRET_SIGNS = ("hf_", "whsec_", "bearer", "authorization", "x-api-key", "api_key", "password", "@")
"""One of them is in every line with a secret, by its name or by its pattern: most lines have none."""


def may_hold_secret(text: str) -> bool:
    folded = text.lower()
    return any(sign in folded for sign in SECRET_SIGNS)


def redact(text: str) -> str:
    if not may_hold_secret(text):
        return text
    for pattern, instead in SECRET_PATTERNS:
        text = pattern.sub(instead, text)
    return text


def about(**said: object) -> contextvars.Context:
    """For a task of its own: each of its lines says this, and nothing of whoever began it.

    A callable is asked at each line. None is left out.
    """
    context = contextvars.Context()
    context.run(
        structlog.contextvars.bind_contextvars, **{name: value for name, value in said.items() if value is not None}
    )
    return context


def configure(level: str, format: Literal["auto", "json", "pretty"]) -> None:
    """To stderr; `auto` is pretty on a terminal and JSON else. Libraries are heard from WARNING upwards."""
    on_terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        _merge_context,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [
            structlog.processors.format_exc_info,
            _redact,
            structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=structlog.dev.plain_traceback),
        ]
        if format == "pretty" or (format == "auto" and on_terminal)
        else [structlog.processors.format_exc_info, _json]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    lines = _Lines(handler)
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=lambda *_: lines,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    logging.captureWarnings(True)


def _merge_context(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event = structlog.contextvars.merge_contextvars(logger, method, event)
    for name in [name for name, value in event.items() if callable(value)]:
        value = event.pop(name)()
        if value is not None:
            event[name] = value
    return event


class _Lines:
    """Where our lines end: with the libraries', one at a time. One that cannot be written fails nobody's work."""

    def __init__(self, handler: "logging.StreamHandler[TextIO]") -> None:
        self._handler = handler

    def write(self, line: str) -> None:
        self._handler.acquire()
        try:
            with contextlib.suppress(OSError, ValueError):
                self._handler.stream.write(f"{line}\n")
                self._handler.flush()
        finally:
            self._handler.release()

    debug = info = warning = error = critical = exception = write


def _json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    try:
        line = _encode(event)
    except (TypeError, ValueError):  # names that are no strings, or what holds itself
        line = ""
    return line if line and not may_hold_secret(line) else _encode(_redact(logger, method, event))


def _plain(value: Any) -> Any:
    """Of what JSON does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, set | frozenset) else str(value)


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain).encode


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: _without_secrets(name, value) for name, value in event.items()}


def _without_secrets(name: str, value: Any) -> Any:
    if name.lower() in SECRET_NAMES:
        return SECRET
    if isinstance(value, Mapping):
        return {str(key): _without_secrets(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_secrets("", item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))
