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


def key_of(job_id: str) -> uuid.UUID | None:
    """None for what is not a job's id as we write it."""
    try:
        key = uuid.UUID(job_id)
    except ValueError:
        return None
    return key if str(key) == job_id else None


def job_of(row: asyncpg.Record | Mapping[str, Any]) -> Job:
    """A row of COLUMNS."""
    values: dict[str, Any] = dict(row)
    values["id"] = JobId(str(row["id"]))
    values["state"] = JobState(row["state"])
    values["stage"] = None if row["stage"] is None else Stage(row["stage"])
    values["options"] = _options(row["options"])
    values["metadata"] = None if row["metadata"] is None else json.loads(row["metadata"])
    values["timings"] = {} if row["timings"] == "{}" else json.loads(row["timings"])  # a long queue has none
    return Job(**values)


@lru_cache(maxsize=256)
def _options(text: str) -> JobOptions:
    """Most jobs of a client have the same ones: a long queue is read several times faster."""
    return JobOptions.model_validate_json(text)
