"""What an error of the device means for the job and for the process."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from gpu_daemon.errors import DeviceLost, JobError

T = TypeVar("T")

STICKY = re.compile(r"\b(CUDA|HIP) error\b|device-side assert")
"""After one of these every call fails: "the process must be terminated and relaunched" (CUDA's documentation)."""


def is_sticky(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and STICKY.search(str(error)) is not None


def guarded(work: Callable[[], T], release: Callable[[], None]) -> T:
    """`work`, with the errors of the device as ours. `release` gives back memory after there was too little.

    Raises JobError (`gpu_oom`), DeviceLost, and whatever else `work` raises.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # handled below: inside this clause the traceback would keep the tensors of the failed work alive
    except RuntimeError as error:
        if is_sticky(error):
            raise DeviceLost("the GPU reported an error that only a new process can clear") from error
        raise
    release()
    raise JobError("the GPU ran out of memory", code="gpu_oom", retryable=True)
