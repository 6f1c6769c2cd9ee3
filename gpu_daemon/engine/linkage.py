"""Hierarchical clustering by scipy, in a process of its own: it grows with the square of the speech, on one core, and
holds the lock that all threads of Python share for most of the time. For pipelines whose `method` is not "centroid".

Run as a file, it is that process: it imports scipy and nothing else, and ends with whoever started it.
"""

import ctypes
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import linkage

FEW = 600
"""Of so many embeddings (some six minutes of speech) it takes less time here than it takes to start a process."""
BEAT_S = 0.25
HEADER = struct.Struct("<qq?16s16sq")
"""rows, columns, float32 or else float64, method, metric, the parent's process id"""
PR_SET_PDEATHSIG = 1

Dendrogram = npt.NDArray[np.float64]
"""float64[n - 1, 4], as scipy.cluster.hierarchy.linkage gives it"""


def linkage_elsewhere(embeddings: npt.NDArray[Any], method: str, metric: str, beat: Callable[[], None]) -> Dendrogram:
    """scipy's `linkage`. `beat` is called while it goes on, and may raise to end it."""
    if len(embeddings) > FEW:
        try:
            return _ask(embeddings, method, metric, beat)
        except (OSError, EOFError) as error:
            sys.stderr.write(f"clustering goes on in the runner itself: {type(error).__name__}\n")
    dendrogram: Dendrogram = linkage(embeddings, method=method, metric=metric)
    return dendrogram


def _ask(embeddings: npt.NDArray[Any], method: str, metric: str, beat: Callable[[], None]) -> Dendrogram:
    """Raises OSError or EOFError when the process cannot be started, or dies."""
    is_single = embeddings.dtype == np.float32
    rows = np.ascontiguousarray(embeddings, np.float32 if is_single else np.float64)
    header = HEADER.pack(*rows.shape, is_single, method.encode(), metric.encode(), os.getpid())
    with subprocess.Popen([sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as there:
                there.write(header)
                there.write(rows.data)
            answer = bytearray()
            n_bytes = (len(rows) - 1) * 4 * 8
            while len(answer) < n_bytes:
                beat()
                if select.select([process.stdout], [], [], BEAT_S)[0]:
                    part = os.read(process.stdout.fileno(), n_bytes)
                    if not part:
                        raise EOFError("the process for clustering has died")
                    answer += part
        finally:
            process.kill()
    return np.frombuffer(bytes(answer), np.float64).reshape(-1, 4)


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    header = sys.stdin.buffer.read(HEADER.size)
    n_rows, n_columns, is_single, method, metric, parent_pid = HEADER.unpack(header)
    if os.getppid() != parent_pid:
        return
    data = sys.stdin.buffer.read()
    rows = np.frombuffer(data, np.float32 if is_single else np.float64).reshape(n_rows, n_columns)
    dendrogram = linkage(rows, method=method.rstrip(b"\0").decode(), metric=metric.rstrip(b"\0").decode())
    sys.stdout.buffer.write(np.ascontiguousarray(dendrogram, np.float64).tobytes())


if __name__ == "__main__":
    main()
