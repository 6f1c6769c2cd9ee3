"""What may enter, decided before a byte of the upload is read."""

import shutil

from gpu_daemon.errors import DiskFull, TooLarge, Unavailable
from gpu_daemon.settings import Settings

MULTIPART_OVERHEAD_BYTES = 1 << 20
"""The fields and boundaries around the file."""


def check_size(settings: Settings, size_bytes: int | None) -> None:
    """`size_bytes`: the request's Content-Length, None when it does not say. Raises TooLarge."""
    if size_bytes is not None and size_bytes > settings.max_file_size_bytes + MULTIPART_OVERHEAD_BYTES:
        raise TooLarge(f"the file is larger than the limit of {settings.max_file_size_mb} MB", param="file")


def check_queue(settings: Settings, queued: int, wait_s: float | None) -> None:
    """Raises Unavailable."""
    if queued >= settings.max_queue:
        retry_after_s = 30 if wait_s is None else max(1, min(600, round(wait_s / max(queued, 1))))
        raise Unavailable(
            f"the queue is full ({queued} jobs); try again later", retry_after_s=retry_after_s, code="queue_full"
        )


def check_disk(settings: Settings, size_bytes: int | None) -> None:
    """Room for the upload above the reserve. Raises DiskFull."""
    free = shutil.disk_usage(settings.data_dir).free
    if free - (size_bytes or 0) < settings.disk_reserve_mb * 1024 * 1024:
        raise DiskFull("there is too little disk space for the file; try again later", retry_after_s=60)
