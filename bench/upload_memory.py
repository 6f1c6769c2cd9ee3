"""How much the daemon's memory grows while a large file is streamed to it.

`python -m bench.upload_memory`; ends with 1 when the growth is not below PROMISED_MB. Linux only: reads /proc.
"""

import re
import struct
import sys
import tempfile
import time
from pathlib import Path

from gpu_daemon.client import WhisperClient
from gpu_daemon.demo.child import DaemonChild
from gpu_daemon.demo.tour import sample_audio

PROMISED_MB = 50.0
UPLOAD_BYTES = 1 << 30
MB = 1024 * 1024
RATE_HZ, CHANNELS, SAMPLE_BYTES = 48_000, 2, 2
RESET_PEAK = "5"
"""Of /proc/PID/clear_refs: the peak is from now on (Linux, proc(5))."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as directory:
        upload = _silence(Path(directory) / "silence.wav")
        with DaemonChild(Path(directory) / "data", DEFAULT_MODEL="demo") as daemon, WhisperClient(daemon.url) as client:
            client.enable_model("base", False)
            client.wait(client.submit(sample_audio(), model="demo"))  # whatever the first upload loads is loaded
            before_mb = _memory_mb(daemon.pid, "VmRSS")
            Path(f"/proc/{daemon.pid}/clear_refs").write_text(RESET_PEAK)
            begun = time.monotonic()
            job_id = client.submit(upload, model="demo")
            seconds = time.monotonic() - begun
            peak_mb = _memory_mb(daemon.pid, "VmHWM")
            client.cancel(job_id)
    growth_mb = peak_mb - before_mb
    print(
        f"upload of {UPLOAD_BYTES / MB:.0f} MB: accepted after {seconds:.1f} s, {UPLOAD_BYTES / MB / seconds:.0f} MB/s"
    )
    print(f"memory of the daemon: {before_mb:.1f} MB before, {peak_mb:.1f} MB at most, growth {growth_mb:.1f} MB")
    return 0 if growth_mb < PROMISED_MB else 1


def _memory_mb(pid: int, name: str) -> float:
    [kilobytes] = re.findall(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kilobytes) / 1024


def _silence(path: Path) -> Path:
    """A WAV file that takes no room here: after its header it is a hole."""
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", UPLOAD_BYTES - 8, b"WAVE", b"fmt ", 16, 1, CHANNELS, RATE_HZ),
        *(RATE_HZ * CHANNELS * SAMPLE_BYTES, CHANNELS * SAMPLE_BYTES, 8 * SAMPLE_BYTES, b"data", UPLOAD_BYTES - 44),
    )
    with path.open("wb") as file:
        file.write(header)
        file.truncate(UPLOAD_BYTES)
    return path


if __name__ == "__main__":
    sys.exit(main())
