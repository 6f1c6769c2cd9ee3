"""Models in memory, by least recent use (no torch here)."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpu_daemon.engine.base import LoadedModel, ModelSpec
from gpu_daemon.errors import JobError, NoRoom

M = TypeVar("M")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Held(Generic[M]):
    spec: ModelSpec
    model: M
    size_bytes: int


class ModelCache(Generic[M]):
    def __init__(
        self, *, free_bytes: Callable[[], int | None], reserve_bytes: int, in_use: Callable[[M], bool]
    ) -> None:
        """`free_bytes`: what the device has left, after what was dropped has been given back; None: not to be counted.

        `reserve_bytes` are kept free beside a model, for its work. What is `in_use` stays.
        """
        self._free_bytes = free_bytes
        self._reserve_bytes = reserve_bytes
        self._in_use = in_use
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

    def make_room(self, spec: ModelSpec, size_bytes: int) -> None:
        """Raises NoRoom when the models in use leave too little, or another file of the same name is in use; JobError
        when even an empty device has too little, because somebody else is using it."""
        if spec.name in self._held:  # the same name may stand for another file now
            if self._in_use(self._held[spec.name].model):
                raise NoRoom(f"another file of the model {spec.name} is in use")
            self.drop(spec.name)
        free = self._free_bytes()
        while free is not None and free < size_bytes + self._reserve_bytes and self._drop_oldest_idle():
            free = self._free_bytes()
        if free is not None and free < size_bytes:
            error = NoRoom if self._held else JobError
            raise error(
                f"the GPU has {free // MIB} MiB free and the model needs {size_bytes // MIB} MiB",
                code="gpu_oom",
                retryable=True,
            )

    def drop(self, name: str) -> None:
        self._held.pop(name, None)

    def drop_idle(self) -> None:
        while self._drop_oldest_idle():
            pass

    def held(self) -> tuple[M, ...]:
        return tuple(held.model for held in self._held.values())

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(LoadedModel(name, held.size_bytes) for name, held in self._held.items())

    def _drop_oldest_idle(self) -> bool:
        name = next((name for name, held in self._held.items() if not self._in_use(held.model)), None)
        if name is None:
            return False
        self.drop(name)
        return True
