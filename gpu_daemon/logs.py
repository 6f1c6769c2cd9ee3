"""One form for every line, ours and the libraries'; secrets are struck out before anything is written."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("gpu_daemon")

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


def redact(text: str) -> str:
    for pattern, instead in SECRET_PATTERNS:
        text = pattern.sub(instead, text)
    return text


def configure(level: str, format: Literal["auto", "json", "pretty"]) -> None:
    """To stderr; `auto` is pretty on a terminal and JSON else. Libraries are heard from WARNING upwards."""
    on_terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=structlog.dev.plain_traceback)
        if format == "pretty" or (format == "auto" and on_terminal)
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    logging.getLogger("gpu_daemon").setLevel(level)
    logging.captureWarnings(True)


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
