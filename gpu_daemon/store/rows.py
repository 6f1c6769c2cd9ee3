"""Rows of `jobs`, read."""

import json
import uuid
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import asyncpg

from gpu_daemon.jobs.model import Job, JobId, JobOptions
from gpu_daemon.jobs.state import JobState, Stage

COLUMNS = """
    id, seq, state, stage, progress, attempt, worker_index, priority, client, options, requested_language, file_name,
    source_url, file_size_bytes, file_sha256, duration_s, callback_url, metadata, reused, timings, error_code,
    error_message, created_at, started_at, finished_at, cancel_requested_at
"""
"""All but the result, which may be large, and the lease, which nobody may read."""


_AS_THEY_ARE = tuple(
    name
    for name in map(str.strip, COLUMNS.split(","))
    if name not in ("id", "state", "stage", "options", "metadata", "timings")
)


def key_of(job_id: str) -> uuid.UUID | None:
    """None for what is not a job's id as we write it."""
    try:
        key = uuid.UUID(job_id)
    except ValueError:
        return None
    return key if str(key) == job_id else None


def job_of(row: asyncpg.Record | Mapping[str, Any]) -> Job:
    """A row of COLUMNS, whatever else is in it."""
    return Job(
        **{name: row[name] for name in _AS_THEY_ARE},
        id=JobId(str(row["id"])),
        state=JobState(row["state"]),
        stage=None if row["stage"] is None else Stage(row["stage"]),
        options=_options(row["options"]),
        metadata=None if row["metadata"] is None else json.loads(row["metadata"]),
        timings={} if row["timings"] == "{}" else json.loads(row["timings"]),  # a long queue has none
    )


@lru_cache(maxsize=256)
def _options(text: str) -> JobOptions:
    """Most jobs of a client have the same ones: a long queue is read several times faster."""
    return JobOptions.model_validate_json(text)
