"""What a job made of its GPU."""

from contextlib import ExitStack
from types import TracebackType

from gpu_daemon.gpu.reading import Usage
from gpu_daemon.gpu.telemetry import Telemetry


class UsageSampler:
    """From a reading at the start to one at the end, with those between.

    async with UsageSampler(telemetry, worker_index) as usage: ... usage.summary()
    """

    def __init__(self, telemetry: Telemetry, worker_index: int) -> None:
        self._telemetry = telemetry
        self._worker_index = worker_index
        self._usage = Usage()
        self._following = ExitStack()

    async def __aenter__(self) -> "UsageSampler":
        self._usage = self._following.enter_context(self._telemetry.following(self._worker_index))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._following:
            if error is None:
                await self._telemetry.refreshed(self._worker_index)

    def summary(self) -> dict[str, float | int | None] | None:
        """The `gpu` member of a result; figures are None where the card did not say. None for a CPU."""
        device = self._telemetry.device(self._worker_index)
        return None if device is None else self._usage.summary(device.index)
