"""Steps that are recorded once and then launched whole: a step of large-v3 is 800 kernels, and Python takes longer to
launch them than the GPU to compute them.

What is replayed is what was recorded: the same kernels, on the same memory, with the same numbers from the host. So all
that changes from step to step is on the device, and what the host decides (the shape) has a record of its own.
"""

import sys
from collections import Counter
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Protocol

import torch

Work = Callable[[], None]
AFTER = 8
"""Steps that a shape is launched kernel by kernel before it is recorded, which costs as much as some of them."""


class Recorder(Protocol):
    after: int
    """Works of a shape before one is recorded."""

    def pool(self) -> object:
        """Memory that records share which are not replayed at the same time."""

    def record(self, work: Work, pool: object) -> Work | None:
        """Does the work, and gives what does it again; None: it has to be done as it is."""


class CudaGraphs:
    """Of CUDA, and of HIP, which torch calls by the same name."""

    def __init__(self) -> None:
        self.after = AFTER
        self._failed: set[type] = set()

    def pool(self) -> object:
        return torch.cuda.graph_pool_handle()

    def record(self, work: Work, pool: object) -> Work | None:
        """The work is done on the stream that is recorded next, where libraries then have what they set up once;
        recording computes nothing."""
        before = torch.cuda.current_stream()
        stream = _stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):  # torch itself does not leave a stream whose record has failed
            work()
            before.wait_stream(stream)
            return None if RuntimeError in self._failed else self._recorded(work, pool, stream)

    def _recorded(self, work: Work, pool: Any, stream: torch.cuda.Stream) -> Work | None:
        graph = torch.cuda.CUDAGraph()
        try:
            # What is forbidden meanwhile is forbidden to this thread: the diarizer, in another, may take memory.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                work()
        except torch.OutOfMemoryError as error:
            self._tell(torch.OutOfMemoryError, error)
            return None
        except RuntimeError as error:
            # torch's allocator may not know that this record has ended: there must not be another.
            self._tell(RuntimeError, error)
            return None
        return graph.replay

    def _tell(self, kind: type, error: RuntimeError) -> None:
        if kind not in self._failed:
            sys.stderr.write(f"a step cannot be recorded and is launched kernel by kernel: {error}\n")
        self._failed.add(kind)


@cache
def _stream() -> torch.cuda.Stream:
    """One for the process: libraries keep memory for each that they have worked on."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch is half typed


class Graphs:
    """Of the steps of one batch, by their shape; only as long as its tensors are the same."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._pool = None if recorder is None else recorder.pool()
        self._done: Counter[Hashable] = Counter()
        self._replays: dict[Hashable, Work | None] = {}

    def run(self, shape: Hashable, work: Work) -> None:
        """`work` does the same whenever it comes with the same shape."""
        replay = self._replays.get(shape)
        if replay is not None:
            replay()
        elif self._recorder is None or shape in self._replays or self._done[shape] < self._recorder.after:
            self._done[shape] += 1
            work()
        else:
            self._replays[shape] = self._recorder.record(work, self._pool)
