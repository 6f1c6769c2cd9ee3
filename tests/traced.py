"""Graphs as a GPU has them, on a CPU: the operations of a work are written down with the memory that they read and
wrote, and done again there, without any Python that led to them.

In between all memory is spoilt that is not the batch's own, as other graphs of the same pool do.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_daemon.engine.graphs import Work

WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh")
"""A GPU waits in these for the host, or the host for it: they cannot be recorded."""


class Traced:
    """A Recorder."""

    def __init__(self, after: int = 1) -> None:
        self.after = after
        self.n_replays = 0
        self.outside: list[Tensor] = []
        """What was read or written that the work has not made itself."""

    def pool(self) -> None:
        return None

    def record(self, work: Work, pool: object) -> Work:
        with _Operations() as operations:
            work()
        self.outside += operations.outside
        return partial(self._replay, operations)

    def _replay(self, operations: "_Operations") -> None:
        self.n_replays += 1
        operations.spoil()
        operations.repeat()


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is half typed
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outside: list[Tensor] = []
        self._done: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in WAITS):
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        given = tensors((args, kwargs))
        self.outside += [tensor for tensor in given if place(tensor) not in self._made]
        known = {place(tensor) for tensor in given}
        self._made |= {place(tensor): tensor for tensor in tensors(result) if place(tensor) not in known}
        self._done.append((func, args, kwargs or {}, tensors(result)))
        return result

    def spoil(self) -> None:
        for tensor in self._made.values():
            tensor.fill_(
                float("nan") if tensor.is_floating_point() else True if tensor.dtype == torch.bool else 1 << 40
            )

    def repeat(self) -> None:
        for func, args, kwargs, results in self._done:
            for before, now in zip(results, tensors(func(*args, **kwargs)), strict=True):
                if place(before) != place(now):
                    before.copy_(now)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    """The memory that it is a view of."""
    storage: int = tensor.untyped_storage()._cdata
    return storage
