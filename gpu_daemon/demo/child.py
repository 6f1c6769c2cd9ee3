"""A daemon as a child process, on a free port, with a data directory of its own and nobody else's settings."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_daemon.errors import StartupError
from gpu_daemon.settings import Settings

CHECKOUT = Path(__file__).parent.parent.parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
KEPT_LINES = 30
PASSED_ON = frozenset({"DEVICES"})
"""Settings of the caller that count here too; the others (his database!) must not."""


class DaemonChild:
    """`with DaemonChild(directory) as daemon: daemon.url`. Raises StartupError with the daemon's own last words."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        foreign = {name.upper() for name in Settings.model_fields} - PASSED_ON
        self._environment = {name: value for name, value in os.environ.items() if name.upper() not in foreign}
        self._environment |= {
            "PYTHONPATH": str(CHECKOUT),
            "HOST": "127.0.0.1",
            "PORT": "0",
            "DATA_DIR": str(data_dir),
            "LOG_FORMAT": "json",
            **settings,
        }
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._spoken = threading.Event()
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.started: Mapping[str, Any] = {}
        """What the daemon said when it had started: url, devices, database, models."""

    @property
    def url(self) -> str:
        return str(self.started["url"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def last_words(self) -> str:
        return "\n".join(self._last_lines)

    def __enter__(self) -> "DaemonChild":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu_daemon", "serve"],
            env=self._environment,
            cwd=self._data_dir,  # where there is no .env
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours; we stop it in order
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if not self._spoken.wait(START_TIMEOUT_S):
            raise StartupError(f"the daemon did not start within {START_TIMEOUT_S:.0f} s:\n{self.last_words()}")
        if not self.started:
            raise StartupError(f"the daemon ended instead of starting:\n{self.last_words()}")

    def stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join()

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                self._last_lines.append(text)
                said = json.loads(text) if text.startswith("{") else {}
                if said.get("event") == "daemon.started":
                    self.started = said
                    self._spoken.set()
        self._spoken.set()
