"""GPUs for the process that reads them (gpu/child.py): cards of tests/fake_nvml.py that a test changes at will."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.clock import monotonic
from gpu_daemon.gpu.child import READERS_VARIABLE, Reader, Watched
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.nvml import NvmlSource
from gpu_daemon.gpu.reading import GpuReading
from tests.fake_nvml import Card, FakeNvml, rtx_4090

DIRECTORY_VARIABLE = "MADE_GPUS"
LIMIT_S = 30.0


class MadeGpus:
    """The test's side. Each card is a file, which its reader looks at every time."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        directory.mkdir()
        self._directory = directory
        self._cards = [rtx_4090(number) for number in range(count)]
        for number in range(count):
            self.change(number)
        monkeypatch.setenv(READERS_VARIABLE, f"{__name__}:reader_of")
        monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory))

    def devices(self) -> list[Device]:
        return [
            Device(kind="cuda", index=index, name=card.name, uuid=card.uuid) for index, card in enumerate(self._cards)
        ]

    def change(self, number: int, **fields: Any) -> None:
        card = self._cards[number]
        for name, value in fields.items():
            setattr(card, name, value)
        changed = self._directory / "changed"
        changed.write_text(json.dumps(asdict(card)))
        changed.rename(self._directory / card.uuid)

    def hang(self, number: int) -> Callable[[], None]:
        """Its next reading does not return before what this returns is called."""
        pipe = self._directory / f"{self._cards[number].uuid}.hangs"
        os.mkfifo(pipe)

        def let_go() -> None:
            descriptor = os.open(pipe, os.O_RDWR)
            pipe.unlink()
            os.close(descriptor)

        return let_go

    def reader_pid(self) -> int:
        return int((self._directory / "pid").read_text())


def reader_of(gpu: Watched) -> Reader:
    """The child's side."""
    directory = Path(os.environ[DIRECTORY_VARIABLE])
    written = directory / f"pid {gpu.worker}"
    written.write_text(str(os.getpid()))
    written.rename(directory / "pid")
    assert gpu.uuid is not None
    return partial(_opened, directory, gpu.uuid)


@contextmanager
def _opened(directory: Path, uuid: str) -> Iterator[Callable[[], GpuReading]]:
    yield partial(_read, directory, uuid)


def _read(directory: Path, uuid: str) -> GpuReading:
    hangs = directory / f"{uuid}.hangs"
    if hangs.exists():
        os.close(os.open(hangs, os.O_RDONLY))  # the kernel gives it when somebody opens the other end
    fields = json.loads((directory / uuid).read_text())
    if fields["processes"] is not None:
        fields["processes"] = {int(pid): used for pid, used in fields["processes"].items()}
    return NvmlSource(FakeNvml([Card(**fields)])).read(uuid)


async def until(fits: Callable[[], bool]) -> None:
    deadline = monotonic() + LIMIT_S
    while not fits():
        assert monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)
