import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gpu_daemon.jobs.callback import callback_payload, with_delivery
from gpu_daemon.jobs.model import Job, JobId, JobOptions
from gpu_daemon.jobs.state import JobState

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
COMPLETED = Job(
    id=JobId("0f8b8f4e-3c57-4c5a-9d53-5f6f0a1b2c3d"),
    options=JobOptions(model="base", language="ru"),
    requested_language="Russian",
    priority=0,
    client=None,
    file_name="talk.wav",
    source_url=None,
    file_size_bytes=1,
    file_sha256="0" * 64,
    duration_s=1.0,
    callback_url="http://localhost/",
    metadata={"order": "№ 7", "nested": [1, None]},
    seq=1,
    state=JobState.COMPLETED,
    stage=None,
    progress=100.0,
    attempt=1,
    worker_index=0,
    cancel_requested_at=None,
    created_at=CREATED,
    started_at=CREATED + timedelta(seconds=0.2),
    finished_at=CREATED + timedelta(seconds=12.6004),
    error_code=None,
    error_message=None,
    reused=False,
    timings={},
)
RESULT = '{"text": "Привет \\u0000 \\"", "n": 1.10, "b": [1,2]}'


def sent(job: Job, result: str | None) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(with_delivery(callback_payload(job, result), 1_700_000_000_000))
    return payload


def test_completed() -> None:
    assert sent(COMPLETED, RESULT) == {
        "job_id": "0f8b8f4e-3c57-4c5a-9d53-5f6f0a1b2c3d",
        "status": "completed",
        "model": "base",
        "language": "Russian",
        "queue_time_s": 0.2,
        "processing_time_s": 12.4,
        "result": {"text": 'Привет \0 "', "n": 1.1, "b": [1, 2]},
        "error": None,
        "error_code": None,
        "metadata": {"order": "№ 7", "nested": [1, None]},
        "callback": {"delivered": True, "delivered_at_ms": 1_700_000_000_000, "error": None},
    }


def test_the_result_is_the_text_that_was_stored() -> None:
    assert f'"result": {RESULT},' in callback_payload(COMPLETED, RESULT)


@pytest.mark.parametrize(
    ("state", "code"), [(JobState.FAILED, "not_media"), (JobState.CANCELLED, "cancelled")], ids=["failed", "cancelled"]
)
def test_without_a_result(state: JobState, code: str) -> None:
    job = replace(COMPLETED, state=state, error_code=code, error_message='it is "gone"', metadata=None)
    payload = sent(job, None)
    assert payload == {
        **sent(COMPLETED, None),
        "status": state.value,
        "error": 'it is "gone"',
        "error_code": code,
        "metadata": None,
    }
    assert payload["result"] is None


def test_a_job_that_never_started_has_no_times() -> None:
    payload = sent(replace(COMPLETED, state=JobState.CANCELLED, started_at=None), None)
    assert (payload["queue_time_s"], payload["processing_time_s"]) == (None, None)
