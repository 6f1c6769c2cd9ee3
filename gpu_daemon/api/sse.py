"""Server-Sent Events on the wire (pure): https://html.spec.whatwg.org/multipage/server-sent-events.html"""

import json
from typing import Any

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
"""How OpenAI ends a stream."""
KEEP_ALIVE_S = 15.0
"""Proxies give up after 30 to 100 seconds without a byte."""
LINE_ENDS = str.maketrans({char: f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"})
"""Ends of lines to many a client, though not to the standard; JSON may have them in its strings, as they are or so."""


def message(data: Any, *, event: str | None = None, id: int | None = None) -> bytes:
    """`data` as JSON."""
    return written(json.dumps(data, ensure_ascii=False), event=event, id=id)


def written(data: str, *, event: str | None = None, id: int | None = None) -> bytes:
    """`data` on one line, as JSON always is."""
    lines = ["" if id is None else f"id: {id}\n", "" if event is None else f"event: {event}\n"]
    return f"{''.join(lines)}data: {data.translate(LINE_ENDS)}\n\n".encode()


def retry(after_ms: int) -> bytes:
    """When a client whose connection breaks may come back."""
    return f"retry: {after_ms}\n\n".encode()
