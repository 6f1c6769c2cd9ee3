"""Jobs for tests that need no upload."""

import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpu_daemon import clock
from gpu_daemon.jobs.model import Job, JobId, JobOptions, NewJob
from gpu_daemon.jobs.state import JobState
from gpu_daemon.scheduling.preparation import SOURCE_NAME


def new_job(**changes: Any) -> NewJob:
    values: dict[str, Any] = {
        "id": JobId(str(uuid.uuid4())),
        "options": JobOptions(model="demo"),
        "requested_language": "auto",
        "priority": 0,
        "client": None,
        "file_name": "talk.wav",
        "source_url": None,
        "file_size_bytes": 5,
        "file_sha256": "0" * 64,
        "duration_s": 1.0,
        "callback_url": None,
        "metadata": None,
    }
    return NewJob(**values | changes)


def store_audio(jobs_dir: Path, job_id: JobId) -> Path:
    """A directory as an upload leaves it."""
    directory = jobs_dir / job_id
    directory.mkdir(parents=True)
    (directory / SOURCE_NAME).write_bytes(b"audio")
    return directory


def stored_job(**changes: Any) -> Job:
    """As the database has it."""
    values: dict[str, Any] = {
        "seq": 1,
        "state": JobState.QUEUED,
        "stage": None,
        "progress": 0.0,
        "attempt": 0,
        "worker_index": None,
        "cancel_requested_at": None,
        "created_at": clock.now(),
        "started_at": None,
        "finished_at": None,
        "error_code": None,
        "error_message": None,
        "reused": False,
        "timings": {},
    }
    new = new_job()
    return Job(**{each.name: getattr(new, each.name) for each in fields(new)} | values | changes)
