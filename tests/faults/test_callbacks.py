"""Receivers that are away, odd or slow, and a real daemon. Rows of the fault matrix in docs/architecture.md."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from gpu_daemon.callbacks.outbox import AT_ONCE, AT_ONCE_PER_HOST
from gpu_daemon.callbacks.post import TIMEOUT_S
from gpu_daemon.database.pool import Connection, ConnectionParameters, Pool
from gpu_daemon.jobs.retry import CALLBACK_DELAYS_S, JITTER
from gpu_daemon.store.callbacks import DUE
from tests.receiver import Receiver, Reply
from tests.running import FAKE_ENGINE, RunningDaemon, only_demo, running_daemon
from tests.serving import tone

OLD, NEW = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))
FLOOD = 10_000
PAYLOAD_BYTES = 100_000


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "tone.wav"
    path.write_bytes(tone())
    return path


@asynccontextmanager
async def started(directory: Path, database: ConnectionParameters, **settings: str) -> AsyncIterator[RunningDaemon]:
    """As `running_daemon`, but kill -9 ends it."""
    daemon = RunningDaemon(directory / "data", database, FAKE_ENGINE | settings)
    try:
        await daemon.start()
        yield daemon
        await daemon.kill()
    finally:
        await daemon.close()


async def log_of(daemon: RunningDaemon, job_id: str) -> dict[str, Any]:
    log: dict[str, Any] = await daemon.json(f"/jobs/{job_id}/callbacks")
    return log


async def test_a_receiver_that_is_down_for_an_hour_gets_its_callback(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, receiver: Receiver, audio: Path
) -> None:
    """Fault 13: on schedule, across kill -9 and a rotation of the secret; the time between tries is taken away from
    the row. Each time another receiver's callback makes the daemon look, and arrives."""
    await only_demo(database)
    down = Receiver()
    await down.start()
    down.plan(Reply(500))
    passed_s = 0.0

    async def time_passes(job_id: str, attempt: int) -> None:
        nonlocal passed_s
        wait_s = await pool.fetchval(
            """UPDATE callbacks SET next_attempt_at = now(), schedule_began_at = schedule_began_at - wait
               FROM (SELECT id, next_attempt_at - (SELECT max(at) FROM callback_attempts WHERE callback_id = id) AS wait
                     FROM callbacks WHERE job_id = $1::uuid AND state = 'pending' AND attempts = $2) late
               WHERE late.id = callbacks.id RETURNING extract(epoch FROM wait)::float8""",
            job_id,
            attempt,
        )
        scheduled_s = CALLBACK_DELAYS_S[attempt - 1]
        assert scheduled_s * (1 - JITTER) <= wait_s <= scheduled_s * (1 + JITTER) + 1
        passed_s += wait_s

    async def another_is_told(daemon: RunningDaemon) -> None:
        other = (await daemon.submit(audio, callback_url=receiver.url))["job_id"]
        await daemon.line("callback.delivered", job_id=other, attempt=1)

    async with started(tmp_path, database, CALLBACK_SECRET=OLD) as daemon:
        job_id = (await daemon.submit(audio, callback_url=f"{down.url}/hook", metadata='{"order": 7}'))["job_id"]
        await daemon.line("callback.retried", job_id=job_id, attempt=1)
        await down.away()
        for attempt in (1, 2):
            await time_passes(job_id, attempt)
            await another_is_told(daemon)
            await daemon.line("callback.retried", job_id=job_id, attempt=attempt + 1)

    for attempt in (3, 4, 5):
        await time_passes(job_id, attempt)
        if attempt == 5:
            await down.start()
        async with started(tmp_path, database, CALLBACK_SECRET=f"{NEW},{OLD}") as daemon:
            await another_is_told(daemon)
            event = "callback.delivered" if attempt == 5 else "callback.retried"
            await daemon.line(event, job_id=job_id, attempt=attempt + 1)
            log = await log_of(daemon, job_id)
    assert passed_s > 3600
    first, last = down.requests
    assert first.headers["webhook-id"] == last.headers["webhook-id"] == log["webhook_id"]
    assert int(first.headers["webhook-timestamp"]) < int(last.headers["webhook-timestamp"])
    assert Webhook(OLD).verify(first.body.decode(), first.headers)["job_id"] == job_id
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(first.body.decode(), first.headers)
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(last.body.decode(), last.headers)["metadata"] == {"order": 7}
    assert [(tried["number"], tried["status"], tried["delivered"]) for tried in log["deliveries"]] == [
        *((1, 500, False), (2, None, False), (3, None, False), (4, None, False), (5, None, False), (6, 200, True))
    ]
    assert len(receiver.requests) == 5
    await down.stop()


async def test_receivers_that_answer_oddly(tmp_path: Path, database: ConnectionParameters, audio: Path) -> None:
    """Fault 14: a redirect, 410, 429 with Retry-After, a 200 that comes too late, a body without end."""
    replies = {
        "moved": Reply(301, {"Location": "http://127.0.0.1:1/"}),
        "gone": Reply(410),
        "later": Reply(429, {"Retry-After": "2"}),
        "late": Reply(200, delay_s=60),
        "endless": Reply(200, endless=True),
    }
    receivers = {name: Receiver() for name in replies}
    jobs: dict[str, str] = {}
    logs: dict[str, dict[str, Any]] = {}
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        for name, reply in replies.items():
            await receivers[name].start()
            receivers[name].plan(reply)
            jobs[name] = (await daemon.submit(audio, callback_url=receivers[name].url))["job_id"]
        for name, event, attempt in (
            ("moved", "callback.retried", 1),
            ("gone", "callback.dead", 1),
            ("later", "callback.delivered", 2),
            ("endless", "callback.delivered", 1),
            ("late", "callback.retried", 1),
        ):
            await daemon.line(event, job_id=jobs[name], attempt=attempt)
            logs[name] = await log_of(daemon, jobs[name])

    def first_try(name: str) -> tuple[Any, ...]:
        tried = logs[name]["deliveries"][0]
        return tried["status"], tried["error"], tried["delivered"]

    assert first_try("moved") == (301, "HTTP 301, a redirect, which is not followed", False)
    assert first_try("gone") == (410, "HTTP 410", False)
    assert (logs["gone"]["state"], logs["gone"]["next_attempt_at"]) == ("dead", None)
    assert first_try("later") == (429, "HTTP 429", False)
    assert receivers["later"].requests[1].at_s - receivers["later"].requests[0].at_s >= 2
    assert first_try("late") == (None, f"no answer within {TIMEOUT_S:.0f} s", False)
    assert TIMEOUT_S <= logs["late"]["deliveries"][0]["duration_s"] < 2 * TIMEOUT_S
    assert first_try("endless") == (200, None, True)
    assert logs["endless"]["deliveries"][0]["duration_s"] < TIMEOUT_S, "cut off, not waited for"
    for receiver in receivers.values():
        await receiver.stop()


async def flood(pool: Pool, url: str, payload_bytes: int) -> None:
    """Jobs that have ended and owe a callback now."""
    async with pool.acquire() as db, db.transaction():
        await db.execute(
            """INSERT INTO jobs (id, state, options, requested_language, file_name, file_size_bytes, file_sha256,
                                 callback_url, finished_at)
               SELECT gen_random_uuid(), 'completed', '{"model": "demo"}', 'auto', 'a.wav', 1, '0', $1, now()
               FROM generate_series(1, $2)""",
            url,
            FLOOD,
            timeout=120,
        )
        await db.execute(
            """INSERT INTO callbacks (job_id, url, payload)
               SELECT id, callback_url, json_build_object('text', repeat('x', $1)) FROM jobs WHERE callback_url = $2""",
            payload_bytes,
            url,
            timeout=120,
        )


async def test_a_flood_of_callbacks_to_a_slow_receiver_delays_no_other(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, receiver: Receiver, audio: Path
) -> None:
    """Fault 38: a few at a time for the slow one, the others' at once, and the flood stays in the database."""
    slow = Receiver()
    await slow.start()
    slow.plan(*[Reply(hang=True)] * AT_ONCE)
    await flood(pool, slow.url, PAYLOAD_BYTES)
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        await slow.wait_for(AT_ONCE_PER_HOST)
        for _ in range(3):
            job_id = (await daemon.submit(audio, callback_url=receiver.url))["job_id"]
            await daemon.line("callback.delivered", job_id=job_id, attempt=1)
        peak_kb = int(Path(f"/proc/{daemon.pid}/status").read_text().split("VmHWM:")[1].split()[0])
        begun = len(slow.requests)
        given_up = await pool.fetchval("SELECT count(*) FROM callback_attempts WHERE error IS NOT NULL")
        assert begun <= AT_ONCE_PER_HOST + given_up
    assert peak_kb * 1024 < FLOOD * PAYLOAD_BYTES / 2
    await slow.stop()


async def test_what_is_due_is_found_without_reading_a_flood(pool: Pool) -> None:
    """Fault 38, in the database: rows that are read, whether it knows how many there are or not."""
    await flood(pool, "http://slow.example/", 100)
    await flood(pool, "http://slower.example/", 100)
    await pool.execute("DELETE FROM callbacks WHERE host = 'slower.example' AND id % 1000 <> 0")

    async def rows_read(db: Connection) -> int:
        text = await db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {DUE}", AT_ONCE, AT_ONCE_PER_HOST, [], [])
        todo, read = [json.loads(text)[0]["Plan"]], 0
        while todo:
            plan = todo.pop()
            todo += plan.get("Plans", [])
            if plan.get("Relation Name") == "callbacks":
                read += plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
        return int(read)

    async with pool.acquire() as db:
        assert 2 * AT_ONCE_PER_HOST <= await rows_read(db) < 50
        await db.execute("ANALYZE callbacks")
        assert 2 * AT_ONCE_PER_HOST <= await rows_read(db) < 50
