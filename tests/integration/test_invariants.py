"""The judge of the fault tests sees what is wrong."""

import json
import uuid
from pathlib import Path

import pytest

from gpu_daemon.database.pool import ConnectionParameters, Pool
from gpu_daemon.store.jobs import JobStore
from tests.invariants import unsettled, violations, watch
from tests.new_jobs import new_job, store_audio
from tests.receiver import Received

URL = "http://receiver.example/"


def call(job_id: str, status: str = "completed", webhook_id: str | None = None, result: object = None) -> Received:
    body = {"job_id": job_id, "status": status, "result": result}
    said = f"msg_{uuid.UUID(job_id).hex}" if webhook_id is None else webhook_id
    return Received("/", {"webhook-id": said}, json.dumps(body).encode(), 0)


@pytest.fixture
async def done(pool: Pool, database: ConnectionParameters) -> str:
    """A job as it should be, all but its delivery."""
    await watch(database)
    store = JobStore(pool)
    job = await store.insert(new_job(callback_url=URL))
    claim = await store.claim(job.id, 0)
    assert claim is not None
    assert await store.complete(claim[0], b"{}", {})
    assert await unsettled(database) == (0, 1)
    await pool.execute("UPDATE callbacks SET state = 'delivered', delivered_at = now()")
    assert await unsettled(database) == (0, 0)
    return job.id


async def test_nothing_is_wrong(tmp_path: Path, database: ConnectionParameters, done: str) -> None:
    assert await violations(database, tmp_path, [call(done, result={})] * 2, told={done}) == []


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ("UPDATE jobs SET state = 'failed', result = NULL", "went from completed to failed"),
        ("UPDATE jobs SET state = 'queued', finished_at = NULL", "is still queued"),
        ("UPDATE jobs SET result = NULL", "is completed without a result"),
        ("UPDATE jobs SET attempt = 2, lease_token = gen_random_uuid()", "is at attempt 2 after 1 claims"),
        ("DELETE FROM callbacks", "its callback is None"),
        ("UPDATE callbacks SET state = 'dead'", "its callback is dead"),
        ("DELETE FROM jobs", "was accepted and is gone"),
    ],
)
async def test_a_wrong_row(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, done: str, breaks: str, said: str
) -> None:
    await pool.execute(breaks)
    found = await violations(database, tmp_path, [call(done, result={})], told={done})
    assert any(said in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("status", "webhook_id", "result", "said"),
    [
        ("failed", None, {}, "its receiver was told failed"),
        ("completed", None, {"text": "other"}, "its receiver was told completed with {'text': 'other'}"),
        ("completed", "msg_1", {}, "was called back under {'msg_1'}"),
    ],
)
async def test_a_wrong_call(
    tmp_path: Path,
    database: ConnectionParameters,
    done: str,
    status: str,
    webhook_id: str | None,
    result: object,
    said: str,
) -> None:
    (found,) = await violations(database, tmp_path, [call(done, status, webhook_id, result)], told={done})
    assert said in found


async def test_what_is_missing_or_left(tmp_path: Path, database: ConnectionParameters, done: str) -> None:
    store_audio(tmp_path, new_job().id)
    stranger = str(uuid.uuid4())
    found = await violations(database, tmp_path, [call(stranger)], told={done}, deleted={done})
    assert [sentence.split(": ")[-1] for sentence in found] == [
        f"{done} was deleted and is still there",
        next(path.name for path in tmp_path.iterdir()),
        "its receiver was never called",
        "called back, but there is no such job",
    ]
