"""The machine itself: its processors, its memory, the disk that DATA_DIR is on."""

from contextlib import suppress
from pathlib import Path

import psutil

from gpu_daemon.gpu.reading import MIB, HostReading


class HostSource:
    """To be read by one thread: how busy the processors are is told since its last reading."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._read_before = False

    def read(self) -> HostReading:
        """Of the whole machine, also in a container. Blocks as long as the disk does."""
        cpu_percent = psutil.cpu_percent()
        if not self._read_before:  # since nothing: it says 0
            self._read_before, cpu_percent = True, None
        memory = psutil.virtual_memory()
        disk = None
        with suppress(OSError):
            disk = psutil.disk_usage(str(self._data_dir))
        return HostReading(
            cpu_percent=cpu_percent,
            memory_used_mb=(memory.total - memory.available) / MIB,
            memory_total_mb=memory.total / MIB,
            disk_free_mb=None if disk is None else disk.free / MIB,
            disk_total_mb=None if disk is None else disk.total / MIB,
        )
