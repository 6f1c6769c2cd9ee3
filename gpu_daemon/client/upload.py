"""A request as httpx2 takes it; a file is streamed, never in memory as a whole."""

import base64
import io
import mimetypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_daemon.client.calls import Ask, OnUpload


@contextmanager
def arguments(ask: Ask) -> Iterator[dict[str, Any]]:
    """For `request`. Raises OSError when the file cannot be read."""
    given: dict[str, Any] = {"method": ask.method, "url": ask.path, "params": ask.params, "headers": ask.headers}
    if ask.json is not None:
        given["json"] = ask.json
    if ask.form is None:
        yield given
        return
    parts: list[tuple[str, Any]] = [(name, (None, value)) for name, values in ask.form.items() for value in values]
    for name, path in ask.voices.items():
        parts += [
            ("known_speaker_names[]", (None, _readable(name))),
            ("known_speaker_references[]", (None, _data_url(path))),
        ]
    if ask.file is None:
        yield given | {"files": parts}
        return
    with _Upload(ask.file, ask.on_upload) as file:
        yield given | {"files": [*parts, ("file", (_readable(ask.file.name), file))]}


def _readable(name: str) -> str:
    """What the file system or the shell gave as bytes that are no text, with a mark in their place."""
    return os.fsencode(name).decode(errors="replace")


def _data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


class _Upload(io.FileIO):
    """A file that tells how much of it has been read."""

    def __init__(self, path: Path, on_progress: OnUpload | None) -> None:
        super().__init__(path)
        self._on_progress = on_progress
        self._size_bytes = path.stat().st_size
        self._sent_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(-1 if size is None else size) or b""
        self._sent_bytes += len(block)
        if self._on_progress is not None:
            self._on_progress(self._sent_bytes, self._size_bytes)
        return block
