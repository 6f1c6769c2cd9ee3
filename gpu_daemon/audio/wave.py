"""WAV files that hold what the engine hears already: taken as they are, without starting ffmpeg twice for each.

Only the simplest header will do: 44 bytes, mono, 16 kHz, signed 16 bit, and sizes that agree with the file's. Whatever
differs is ffmpeg's business. So is a guess that ffmpeg would make and we don't: that the samples of such a file are
really a compressed stream. Streams that travel as PCM are stereo of 44.1 or 48 kHz.
"""

import os
import struct
from pathlib import Path

from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
BYTES_PER_SAMPLE = 2
MOST_BYTES = 64 << 20
"""With more, the start of ffmpeg is nothing."""
WINDOW_SAMPLES = SAMPLE_RATE_HZ // 50
"""Of ffmpeg's filter silenceremove, which asks for the root mean square of each."""
LOUD = 0.02
"""Of full scale: twice the threshold in `graph.py`."""
LOUD_POWER = WINDOW_SAMPLES * (LOUD * 32768) ** 2
HEAD_WINDOWS = 22
"""0.44 s: less than the half second of silence that is kept."""
START_BYTES = HEADER.size + HEAD_WINDOWS * WINDOW_SAMPLES * BYTES_PER_SAMPLE


def start_of(source: Path) -> tuple[bytes, int]:
    """A file's first START_BYTES, and how many it has. Blocks."""
    with source.open("rb") as file:
        return file.read(START_BYTES), os.fstat(file.fileno()).st_size


def plain_samples(start: bytes, size_bytes: int) -> int | None:
    """How many there are behind the header; None: not such a file (pure)."""
    n_bytes = size_bytes - HEADER.size
    if not 0 < n_bytes <= MOST_BYTES or n_bytes % BYTES_PER_SAMPLE:
        return None
    rate, width = SAMPLE_RATE_HZ, BYTES_PER_SAMPLE
    form = (b"fmt ", 16, 1, 1, rate, rate * width, width, 8 * width)
    plain = HEADER.pack(b"RIFF", size_bytes - 8, b"WAVE", *form, b"data", n_bytes)
    return n_bytes // BYTES_PER_SAMPLE if start[: HEADER.size] == plain else None


def loud_at_once(start: bytes) -> bool:
    """There is sound so early, and so far above the threshold, that no leading silence is to be dropped (pure)."""
    head = start[HEADER.size : START_BYTES]
    windows = struct.iter_unpack(f"<{WINDOW_SAMPLES}h", head[: len(head) - len(head) % (WINDOW_SAMPLES * 2)])
    return any(sum(sample * sample for sample in window) > LOUD_POWER for window in windows)
