"""Models in memory, by least recent use (no torch here)."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpu_daemon.engine.base import LoadedModel, ModelSpec
from gpu_daemon.errors import JobError

M = TypeVar("M")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Held(Generic[M]):
    spec: ModelSpec
    model: M
    size_bytes: int


class ModelCache(Generic[M]):
    def __init__(self, *, free_bytes: Callable[[], int | None], reserve_bytes: int) -> None:
        """`free_bytes`: what the device has left, after what was dropped has been given back; None: not to be counted.

        `reserve_bytes` are kept free beside a model, for its work.
        """
        self._free_bytes = free_bytes
        self._reserve_bytes = reserve_bytes
        self._held: OrderedDict[str, _Held[M]] = OrderedDict()

    def get(self, spec: ModelSpec) -> M | None:
        held = self._held.get(spec.name)
        if held is None or held.spec != spec:
            return None
        self._held.move_to_end(spec.name)
        return held.model

    def put(self, spec: ModelSpec, model: M, size_bytes: int) -> None:
        self._held[spec.name] = _Held(spec, model, size_bytes)
        self._held.move_to_end(spec.name)

    def make_room(self, size_bytes: int) -> None:
        """Raises JobError when even an empty device has too little, because somebody else is using it."""
        free = self._free_bytes()
        while self._held and free is not None and free < size_bytes + self._reserve_bytes:
            self._held.popitem(last=False)
            free = self._free_bytes()
        if free is not None and free < size_bytes:
            raise JobError(
                f"the GPU has {free // MIB} MiB free and the model needs {size_bytes // MIB} MiB",
                code="gpu_oom",
                retryable=True,
            )

    def drop(self, name: str) -> None:
        self._held.pop(name, None)

    def clear(self) -> None:
        self._held.clear()

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(LoadedModel(name, held.size_bytes) for name, held in self._held.items())
