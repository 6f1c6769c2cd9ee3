"""The body of a submission straight to disk: hashed on the way, capped in every direction, in constant memory."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gpu_daemon.api.form import FormReader
from gpu_daemon.api.json_body import MAX_JSON_BYTES, MAX_VOICES_BYTES, json_fields
from gpu_daemon.audio.pace import FileLimits, Pace
from gpu_daemon.audio.probe import AudioInfo, plain
from gpu_daemon.audio.sink import BATCH_BYTES, FileSink
from gpu_daemon.audio.wave import loud_at_once
from gpu_daemon.blocking import blocking
from gpu_daemon.errors import TooLarge, TooSlow
from gpu_daemon.faultpoints import FaultPoint, reach


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    fields: Mapping[str, list[str]]
    file_name: str | None = None
    """None, like the other two: no file came."""
    size_bytes: int | None = None
    sha256: str | None = None
    plain: AudioInfo | None = None
    """Of a file that is known without ffmpeg; it is synced already."""
    is_loud: bool = False
    """And it has no leading silence that could be dropped."""


async def receive_upload(
    receive: Receive,
    content_type: str | None,
    target: Path,
    limits: FileLimits,
    *,
    on_file: Callable[[dict[str, list[str]]], None],
) -> Upload:
    """The fields, and the file, if one comes, in `target`, whose directory is made here and is the caller's to remove.

    It is synced only if it is `plain`. Raises InvalidRequest and its like, DiskFull, ClientDisconnect.
    """
    form = FormReader(content_type, max_file_bytes=limits.file_bytes, on_file=on_file)
    sink = FileSink(target, reserve_bytes=limits.reserve_bytes)
    pace = Pace(limits)
    try:
        more = True
        while more:
            body, more = await _next(receive, pace, limits)
            form.feed(body)
            if form.waiting_bytes >= BATCH_BYTES:
                await blocking(partial(sink.write, form.take()))
        form.finish()
        if form.file_name is None:
            return Upload(fields=form.fields)
        plain_info, is_loud = await blocking(partial(_finish, sink, form.take()))
    finally:
        sink.close()
    return Upload(
        fields=form.fields,
        file_name=form.file_name,
        size_bytes=form.file_size_bytes,
        sha256=sink.sha256,
        plain=plain_info,
        is_loud=is_loud,
    )


def _finish(sink: FileSink, rest: bytearray) -> tuple[AudioInfo | None, bool]:
    """All that is to be done with most files, in one go: each way to a thread and back costs more than the work."""
    sink.write(rest)
    reach(FaultPoint.FILE_WRITTEN)
    info = plain(sink.start, sink.size_bytes)
    if info is not None:
        sink.sync()
        reach(FaultPoint.FILE_SYNCED)
    sink.close()
    return info, info is not None and loud_at_once(sink.start)


async def receive_json(receive: Receive, limits: FileLimits) -> Upload:
    """A submission without a file. Raises InvalidRequest and its like, ClientDisconnect."""
    body, more, pace = bytearray(), True, Pace(limits)
    while more:
        piece, more = await _next(receive, pace, limits)
        body += piece
        if len(body) > MAX_JSON_BYTES + MAX_VOICES_BYTES:
            raise TooLarge(f"a JSON body may have {MAX_JSON_BYTES // 1024} KiB at most, without the voices in it")
    if len(body) > MAX_JSON_BYTES:
        return Upload(fields=await blocking(partial(json_fields, bytes(body))))
    return Upload(fields=json_fields(bytes(body)))


async def _next(receive: Receive, pace: Pace, limits: FileLimits) -> tuple[bytes, bool]:
    """A piece of the body, and whether there are more. Raises TooSlow, ClientDisconnect."""
    try:
        async with asyncio.timeout(pace.patience_s):
            message = await receive()
    except TimeoutError:
        raise TooSlow("the upload stalled; send it again") from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body: bytes = message.get("body", b"")
    if not pace.came(len(body)):
        raise TooSlow(f"the upload is slower than {limits.least_bytes_per_s} bytes per second")
    return body, bool(message.get("more_body", False))
