"""Named points, one at every transition of a job, where a test can break the daemon.

All are off unless GPU_DAEMON_FAULTPOINT=NAME:ACTION[:NTH] is in the environment when the daemon starts: the NTH time
(the first, unless said otherwise) that NAME is reached, ACTION is done. `tests/faults/test_fault_points.py` kills the
daemon at each point of this list: a new one fails there until something reaches it.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from gpu_daemon.errors import GpuDaemonError, SettingsError

VARIABLE = "GPU_DAEMON_FAULTPOINT"
EXIT_STATUS = 70
SLEEP_S = 2.0


class FaultPoint(StrEnum):
    # A submission, in order.
    FILE_WRITTEN = "submit.file_written"
    FILE_SYNCED = "submit.file_synced"
    INSERTING = "submit.inserting"
    INSERTED = "submit.inserted"
    ANSWERING = "submit.answering"
    # Its file, when it came as a URL.
    FETCHED = "fetch.done"
    """The row knows nothing of the file yet."""
    FETCH_NOTED = "fetch.noted"
    # A job, in order. `end` is every end: completed, failed, cancelled.
    DECODED = "job.decoded"
    CLAIMING = "job.claiming"
    CLAIMED = "job.claimed"
    RUNNER_TOLD = "job.runner_told"
    RESULT_RECEIVED = "job.result_received"
    RESULT_KEPT = "job.result_kept"
    """On disk, because the database is away."""
    ENDING = "job.ending"
    ENDED = "job.ended"
    REMOVING_FILES = "job.removing_files"
    FILES_REMOVED = "job.files_removed"
    # What else may happen to it.
    REQUEUING = "job.requeuing"
    REQUEUED = "job.requeued"
    CANCELLING_QUEUED = "job.cancelling_queued"
    QUEUED_CANCELLED = "job.queued_cancelled"
    CANCEL_NOTED = "job.cancel_noted"
    CANCELLED_STOPPED = "job.cancelled_stopped"
    """The runner has let go of it; the row does not say so yet."""
    DELETED = "job.deleted"
    EXPIRED = "job.expired"
    # Its callback.
    CALLING_BACK = "callback.calling"
    CALLBACK_ANSWERED = "callback.answered"
    CALLBACK_RECORDED = "callback.recorded"
    REDELIVERED = "callback.redelivered"
    """Due once more; nobody was told yet."""
    # The daemon.
    MIGRATION_WRITTEN = "start.migration_written"
    """In the transaction."""
    MIGRATED = "start.migrated"
    KEPT_RESULT_WRITTEN = "start.kept_result_written"
    ORPHAN_ADOPTED = "start.orphan_adopted"
    RECOVERED = "start.recovered"
    # A checkpoint.
    PART_WRITTEN = "download.part_written"
    PART_SYNCED = "download.part_synced"
    PUBLISHED = "download.published"


class FaultReached(GpuDaemonError):
    code = "fault_reached"


@dataclass(slots=True)
class _Armed:
    point: FaultPoint
    act: Callable[[FaultPoint], None]
    left: int
    """Times until it acts."""


def _kill9(_: FaultPoint) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # whichever thread this is goes no further


def _exit(_: FaultPoint) -> None:
    os._exit(EXIT_STATUS)


def _raise(point: FaultPoint) -> None:
    raise FaultReached(f"the fault point {point} was reached")


def _sleep(_: FaultPoint) -> None:
    time.sleep(SLEEP_S)


ACTIONS: dict[str, Callable[[FaultPoint], None]] = {"kill9": _kill9, "exit": _exit, "raise": _raise, "sleep": _sleep}

_armed: _Armed | None = None


def arm(text: str | None) -> None:
    """`text`: as GPU_DAEMON_FAULTPOINT says it; None or nothing: no point does anything. Raises SettingsError."""
    global _armed
    _armed = _parsed(text) if text else None


def reach(point: FaultPoint) -> None:
    """Raises FaultReached if it is to."""
    if _armed is not None and _armed.point is point:
        _armed.left -= 1
        if _armed.left == 0:
            _armed.act(point)


def _parsed(text: str) -> _Armed:
    name, _, rest = text.partition(":")
    action, _, nth = rest.partition(":")
    if name not in set(FaultPoint) or action not in ACTIONS or not (nth or "1").isdecimal() or nth == "0":
        raise SettingsError(
            f"{VARIABLE}: {text!r} is not NAME:ACTION[:NTH]; actions: {', '.join(ACTIONS)}; names: "
            + ", ".join(FaultPoint)
        )
    return _Armed(FaultPoint(name), ACTIONS[action], int(nth or "1"))
