"""What is said of a model."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from gpu_daemon.events import EventHub


class ModelState(StrEnum):
    """Moved by the model's Supply only; a row that is changed starts again."""

    DISABLED = "disabled"
    """Nothing is done about it; jobs are refused."""
    WAITING = "waiting"
    """Enabled; in line behind other downloads, or another process is downloading it."""
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    """A file that was already there is being hashed."""
    READY = "ready"
    FAILED = "failed"
    """`error` says why; tried again at `retry_at`, if that can help. Jobs are refused meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatus:
    name: str
    source: str
    """`whisper` or `file`."""
    enabled: bool
    state: ModelState
    size_bytes: int | None
    done_bytes: int
    """Of a download; the whole size when ready."""
    rate_bytes_per_s: float | None
    """While downloading."""
    error: str | None
    retry_at: datetime | None

    def publish(self, hub: EventHub) -> None:
        hub.publish(
            "model",
            self.name,
            state=self.state,
            size_bytes=self.size_bytes,
            done_bytes=self.done_bytes,
            rate_bytes_per_s=self.rate_bytes_per_s,
            error=self.error,
        )
