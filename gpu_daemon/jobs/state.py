"""The states of a job, and the one table of moves between them.

A request is not a state: `cancel_requested_at` is a column. A graceful stop is not a failure: it returns the job with
its attempt.
"""

from enum import StrEnum
from types import MappingProxyType

from gpu_daemon.errors import IllegalTransition


class JobState(StrEnum):
    # In: submit (row committed, file synced); retry after a crash of runner or daemon; graceful stop.
    # Out: a worker claims it; cancel; failed, when its file or its model is gone; completed, when an earlier job has
    # the result already.
    QUEUED = "queued"
    # In: claimed by a worker, attempt counted. Out: any of the others. Owned by one (attempt, lease_token).
    PROCESSING = "processing"
    # In: result stored, callback row written, in one transaction. Terminal; deleted after RESULT_TTL_S.
    COMPLETED = "completed"
    # In: an error that another attempt cannot cure, or MAX_ATTEMPTS reached. Terminal; deleted after RESULT_TTL_S.
    FAILED = "failed"
    # In: cancelled by a client, queued or running. Terminal; deleted after RESULT_TTL_S.
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

MOVES = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.PROCESSING, *TERMINAL}),
        JobState.PROCESSING: frozenset({JobState.QUEUED, *TERMINAL}),
        JobState.COMPLETED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    }
)


class Stage(StrEnum):
    """Where a processing job is; or one that waits, while its file is fetched."""

    FETCHING = "fetching"
    PREPARING = "preparing"
    LOADING = "loading"
    TRANSCRIBING = "transcribing"
    DIARIZING = "diarizing"
    MERGING = "merging"


def check_move(old: JobState, new: JobState) -> None:
    if new not in MOVES[old]:
        raise IllegalTransition(f"a job cannot go from {old} to {new}")
