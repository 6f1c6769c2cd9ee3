import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any

import asyncpg
import pytest

from gpu_daemon import clock
from gpu_daemon.database.pool import ConnectionParameters, Pool, open_pool
from gpu_daemon.errors import Conflict, InvalidRequest, OutcomeUnknown, Unavailable
from gpu_daemon.jobs.model import Claim, IdempotencyKey, Job, JobId, JobOptions, SourceFile, Task
from gpu_daemon.jobs.state import MOVES, TERMINAL, JobState, Stage
from gpu_daemon.store import jobs as jobs_module
from gpu_daemon.store.callbacks import CallbackStore, Try
from gpu_daemon.store.jobs import JobStore
from tests.new_jobs import new_job
from tests.relay import EXECUTE, Relay

METADATA = {"order": "№ 7", "nested": [1, None], "nothing": "\0"}
RESULT = '{"z": 1.10,\n  "text": "Привет \\u0000 \\ud83d\\ude00 😀", "a": [1, 2 ] ,"z": 2}'
URL = "http://receiver.example/"


@pytest.fixture
def store(pool: Pool) -> JobStore:
    return JobStore(pool)


async def claimed(store: JobStore, **changes: Any) -> Claim:
    job = await store.insert(new_job(**changes))
    claim = await store.claim(job.id, 0)
    assert claim is not None
    return claim[0]


async def state_of(store: JobStore, job_id: JobId) -> Job:
    job = await store.get(job_id)
    assert job is not None
    return job


async def payload_of(pool: Pool, job_id: JobId) -> dict[str, Any] | None:
    text = await pool.fetchval("SELECT payload FROM callbacks WHERE job_id = $1", uuid.UUID(job_id))
    payload: dict[str, Any] | None = None if text is None else json.loads(text)
    return payload


# In and out.


async def test_what_goes_in_comes_out(store: JobStore) -> None:
    new = new_job(
        options=JobOptions(
            model="base", language="ru", task=Task.TRANSLATE, temperature=(0.0, 0.5), hotwords="ёж; 'DROP"
        ),
        requested_language="Russian",
        priority=-10,
        client="key 1",
        file_name="речь 'x'.mp3",
        file_size_bytes=5_000_000_000,
        duration_s=None,
        callback_url=URL,
        metadata={"b": 1, "a": [None, "\0", "\ud800"], "big": 10**30},
    )
    job = await store.insert(new)
    assert {name: getattr(job, name) for name in asdict(new)} == {name: getattr(new, name) for name in asdict(new)}
    assert (job.state, job.stage, job.progress, job.attempt) == (JobState.QUEUED, None, 0.0, 0)
    assert job.created_at.utcoffset() is not None
    assert list(job.metadata or {}) == ["b", "a", "big"]
    found = await store.get(job.id)
    assert found is not None
    assert {name: getattr(job, name) for name in asdict(found)} == {
        name: getattr(found, name) for name in asdict(found)
    }


async def test_a_fetched_file_is_noted_until_the_job_ends(store: JobStore, pool: Pool) -> None:
    url = "https://example.org/a.wav?signature=secret#t=1?"
    job, uploaded = new_job(source_url=url, file_size_bytes=None, file_sha256=None, duration_s=None), new_job()
    for new in (job, uploaded):
        await store.insert(new)
    file = SourceFile(name="b.wav", size_bytes=7, sha256="7" * 64, duration_s=2.5)
    assert not await store.fetched(uploaded.id, file)
    assert await store.fetched(job.id, replace(file, name=None))
    found = await store.get(job.id)
    assert found is not None
    assert (found.file_name, found.file_size_bytes, found.file_sha256, found.duration_s, found.source_url) == (
        "talk.wav",
        7,
        "7" * 64,
        2.5,
        url,
    )
    assert "secret" not in repr(found)
    claimed = await store.claim(job.id, 0)
    assert claimed is not None
    assert await store.fetched(job.id, file)
    assert await store.fail(claimed[0], "fetch_failed", "x")
    assert not await store.fetched(job.id, replace(file, name="c.wav"))
    found = await store.get(job.id)
    assert found is not None
    assert (found.file_name, found.source_url) == ("b.wav", "https://example.org/a.wav")


async def test_an_upload_without_its_hash_is_no_row(store: JobStore) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await store.insert(new_job(file_sha256=None))


async def test_an_id_that_is_not_a_jobs(store: JobStore) -> None:
    for text in ("", "nonesuch", "'; --", "0" * 32, str(uuid.uuid4()).upper(), str(uuid.uuid4())):
        unknown = JobId(text)
        assert await store.get(unknown) is None
        assert await store.result(unknown) is None
        assert not await store.delete(unknown)
        assert not await store.cancel_queued(unknown)
        assert not await store.request_cancel(unknown)
        assert not await store.fail_queued(unknown, "c", "m")
        assert await store.known([unknown]) == {}


@pytest.mark.parametrize(
    "changes",
    [{"file_name": "a\0b"}, {"options": JobOptions(model="base", initial_prompt="a\0b")}, {"file_name": "a\ud800"}],
    ids=["text", "options", "half a character"],
)
async def test_characters_that_cannot_be_stored_are_the_clients_mistake(
    store: JobStore, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="characters that cannot be stored"):
        await store.insert(new_job(**changes))
    assert await store.queued() == []


async def test_the_same_id_twice_is_refused(store: JobStore) -> None:
    new = new_job()
    await store.insert(new)
    with pytest.raises(asyncpg.UniqueViolationError):
        await store.insert(new)


async def test_newest_first_with_filters(store: JobStore) -> None:
    base = JobOptions(model="base")
    jobs = [
        await store.insert(new_job(client=client, options=options))
        for client, options in [("a", base), ("b", base), ("a", JobOptions(model="demo")), (None, base)]
    ]
    await store.cancel_queued(jobs[0].id)

    async def found(**filters: Any) -> list[int]:
        return [[job.id for job in jobs].index(job.id) for job in await store.newest(**filters)]

    assert await found() == [3, 2, 1, 0]
    assert await found(limit=2) == [3, 2]
    assert await found(limit=2, before_seq=jobs[2].seq) == [1, 0]
    assert await found(client="a") == [2, 0]
    assert await found(model="base") == [3, 1, 0]
    assert await found(states=[JobState.CANCELLED]) == [0]
    assert await found(states=list(JobState), client="a", model="base") == [0]


async def test_the_queue_is_in_its_order(store: JobStore) -> None:
    jobs = [await store.insert(new_job(priority=priority)) for priority in (0, 5, -1, 5, 0)]
    assert [job.seq for job in await store.queued()] == [jobs[index].seq for index in (1, 3, 0, 4, 2)]


async def test_counts_names_every_state(store: JobStore) -> None:
    assert await store.counts() == dict.fromkeys(JobState, 0)
    await store.insert(new_job())
    await claimed(store)
    assert await store.counts() == {**dict.fromkeys(JobState, 0), JobState.QUEUED: 1, JobState.PROCESSING: 1}


async def test_an_idempotency_key_makes_one_job_of_a_client(store: JobStore) -> None:
    key, other = IdempotencyKey("k", "1" * 64), IdempotencyKey("k", "2" * 64)
    first = await store.insert(new_job(client="a"), key)
    assert (await store.insert(new_job(client="a"), key)).id == first.id
    for client in ("b", None):
        assert (await store.insert(new_job(client=client), other)).id != first.id
    with pytest.raises(Conflict) as refused:
        await store.insert(new_job(client="a"), other)
    assert refused.value.code == "idempotency_conflict"
    assert (await store.counts())[JobState.QUEUED] == 3
    assert await store.cancel_queued(first.id)
    assert (await store.insert(new_job(client="a"), key)).state is JobState.CANCELLED
    assert await store.delete(first.id)
    assert (await store.insert(new_job(client="a"), other)).state is JobState.QUEUED


async def test_an_idempotency_key_sent_many_times_at_once(store: JobStore) -> None:
    key = IdempotencyKey("k", "1" * 64)
    made = await asyncio.gather(*(store.insert(new_job(), key) for _ in range(20)))
    assert len({job.id for job in made}) == 1
    assert (await store.counts())[JobState.QUEUED] == 1


# The moves.


async def test_claim_counts_the_attempt_and_keeps_the_first_start(store: JobStore) -> None:
    new = await store.insert(new_job())
    first = await store.claim(new.id, 3)
    assert first is not None
    claim, job = first
    assert (claim.job_id, claim.attempt, job.attempt) == (new.id, 1, 1)
    assert (job.state, job.stage, job.progress, job.worker_index) == (JobState.PROCESSING, Stage.PREPARING, 0.0, 3)
    assert job.started_at is not None
    assert job.queue_time_s is not None
    assert job.queue_time_s >= 0
    assert await store.claim(new.id, 4) is None
    await store.progress(claim, Stage.TRANSCRIBING, 50)
    assert await store.requeue(claim, charge=True)
    waiting = await state_of(store, new.id)
    assert (waiting.state, waiting.stage, waiting.progress, waiting.worker_index, waiting.attempt) == (
        *(JobState.QUEUED, None, 0.0, None),
        1,
    )
    second = await store.claim(new.id, 4)
    assert second is not None
    assert (second[0].attempt, second[1].progress, second[1].started_at) == (2, 0.0, job.started_at)
    assert second[0].lease_token != claim.lease_token
    assert claim.before_s == 0
    assert second[0].before_s > 0


async def test_requeue_without_charge_gives_the_attempt_back(store: JobStore) -> None:
    claim = await claimed(store)
    assert await store.requeue(claim, charge=False)
    assert (await state_of(store, claim.job_id)).attempt == 0
    again = await store.claim(claim.job_id, 0)
    assert again is not None
    assert again[0].attempt == 1
    assert not await store.progress(claim, Stage.LOADING, 1), "the same attempt, but another lease"


async def test_progress(store: JobStore) -> None:
    claim = await claimed(store)
    assert await store.progress(claim, Stage.TRANSCRIBING, 42.5)
    job = await state_of(store, claim.job_id)
    assert (job.stage, job.progress) == (Stage.TRANSCRIBING, 42.5)


async def test_complete(store: JobStore, pool: Pool) -> None:
    claim = await claimed(store, callback_url=URL, metadata=METADATA, requested_language="Russian")
    assert await store.result(claim.job_id) is None
    assert await store.complete(claim, RESULT.encode(), {"transcribing": 1.25})
    job = await state_of(store, claim.job_id)
    assert (job.state, job.stage, job.progress, job.timings) == (
        *(JobState.COMPLETED, None, 100.0),
        {"transcribing": 1.25},
    )
    assert job.finished_at is not None
    assert job.processing_time_s is not None
    assert (job.error_code, job.error_message) == (None, None)
    assert await store.result(claim.job_id) == RESULT
    text = await pool.fetchval("SELECT payload FROM callbacks")
    assert f'"result" : {RESULT},' in text, "as it was stored"
    assert json.loads(text) == {
        "job_id": job.id,
        "status": "completed",
        "model": "demo",
        "language": "Russian",
        "queue_time_s": round(job.queue_time_s or 0, 3),
        "processing_time_s": round(job.processing_time_s, 3),
        "result": json.loads(RESULT),
        "error": None,
        "error_code": None,
        "metadata": METADATA,
    }


async def test_a_large_result_round_trips(store: JobStore) -> None:
    claim = await claimed(store)
    result = json.dumps({"text": "слово " * 2_000_000}, ensure_ascii=False)
    assert await store.complete(claim, result.encode(), {})
    assert await store.result(claim.job_id) == result


async def test_fail(store: JobStore, pool: Pool) -> None:
    claim = await claimed(store, callback_url=URL)
    assert await store.fail(claim, "engine_error", "bad \0 bytes \udcff of a tool")
    job = await state_of(store, claim.job_id)
    assert (job.state, job.error_code, job.error_message) == (
        JobState.FAILED,
        "engine_error",
        "bad � bytes ? of a tool",
    )
    payload = await payload_of(pool, job.id)
    assert payload is not None
    assert (payload["status"], payload["error"], payload["error_code"], payload["result"]) == (
        *("failed", "bad � bytes ? of a tool", "engine_error"),
        None,
    )


async def test_cancel(store: JobStore, pool: Pool) -> None:
    claim = await claimed(store, callback_url=URL)
    assert await store.request_cancel(claim.job_id)
    first = (await state_of(store, claim.job_id)).cancel_requested_at
    assert first is not None
    assert await store.request_cancel(claim.job_id)
    assert (await state_of(store, claim.job_id)).cancel_requested_at == first
    assert await store.cancel(claim)
    assert (await state_of(store, claim.job_id)).state is JobState.CANCELLED
    assert not await store.request_cancel(claim.job_id)
    payload = await payload_of(pool, claim.job_id)
    assert payload is not None
    assert (payload["status"], payload["error_code"]) == ("cancelled", "cancelled")


async def test_a_job_that_waits_is_cancelled_or_failed(store: JobStore, pool: Pool) -> None:
    first, second = [await store.insert(new_job(callback_url=URL)) for _ in range(2)]
    assert not await store.request_cancel(first.id)
    assert await store.cancel_queued(first.id)
    assert await store.fail_queued(second.id, "audio_missing", "gone")
    for job, state, code in [(first, "cancelled", "cancelled"), (second, "failed", "audio_missing")]:
        assert (await state_of(store, job.id)).state == state
        payload = await payload_of(pool, job.id)
        assert payload is not None
        assert (payload["status"], payload["error_code"], payload["queue_time_s"]) == (state, code, None)


async def test_no_callback_is_owed_without_a_url(store: JobStore, pool: Pool) -> None:
    await store.complete(await claimed(store), b"{}", {})
    assert await pool.fetchval("SELECT count(*) FROM callbacks") == 0


MOVE_BY: dict[str, tuple[JobState, Callable[[JobStore, Claim], Awaitable[bool]]]] = {
    "claim": (JobState.PROCESSING, lambda store, claim: _is_claimed(store, claim)),
    "requeue": (JobState.QUEUED, lambda store, claim: store.requeue(claim, charge=True)),
    "complete": (JobState.COMPLETED, lambda store, claim: store.complete(claim, b"{}", {})),
    "fail": (JobState.FAILED, lambda store, claim: store.fail(claim, "c", "m")),
    "cancel": (JobState.CANCELLED, lambda store, claim: store.cancel(claim)),
    "fail_queued": (JobState.FAILED, lambda store, claim: store.fail_queued(claim.job_id, "c", "m")),
    "cancel_queued": (JobState.CANCELLED, lambda store, claim: store.cancel_queued(claim.job_id)),
    "complete_queued": (JobState.COMPLETED, lambda store, claim: _is_reused(store, claim)),
}
FROM_QUEUE = {"claim", "fail_queued", "cancel_queued", "complete_queued"}


async def _is_claimed(store: JobStore, claim: Claim) -> bool:
    return await store.claim(claim.job_id, 0) is not None


async def _is_reused(store: JobStore, claim: Claim) -> bool:
    job = await store.get(claim.job_id)
    assert job is not None
    return await store.complete_queued(job, b"{}", model_sha256="0" * 64)


async def in_state(store: JobStore, state: JobState) -> Claim:
    """A job in `state`, and the claim that brought it there (or, queued again, had it)."""
    claim = await claimed(store, callback_url=URL)
    if state is JobState.QUEUED:
        await store.requeue(claim, charge=True)
    elif state is not JobState.PROCESSING:
        move = next(move for to, move in MOVE_BY.values() if to is state)
        assert await move(store, claim)
    return claim


@pytest.mark.parametrize("name", MOVE_BY)
async def test_only_the_moves_of_the_table_are_made(store: JobStore, pool: Pool, name: str) -> None:
    new, move = MOVE_BY[name]
    for old in JobState:
        await pool.execute("DELETE FROM jobs")
        claim = await in_state(store, old)
        before = await pool.fetchrow("SELECT * FROM jobs")
        allowed = old is (JobState.QUEUED if name in FROM_QUEUE else JobState.PROCESSING)
        assert await move(store, claim) is allowed, f"from {old}"
        after = await pool.fetchrow("SELECT * FROM jobs")
        assert after is not None
        if allowed:
            assert new in MOVES[old]
            assert after["state"] == new
        else:
            assert after == before, f"from {old}"
        assert await pool.fetchval("SELECT count(*) FROM callbacks") == (after["state"] in TERMINAL), f"from {old}"


async def test_a_claim_that_is_not_the_right_one_changes_nothing(store: JobStore, pool: Pool) -> None:
    claim = await claimed(store, callback_url=URL)
    before = await pool.fetchrow("SELECT * FROM jobs")
    for wrong in (replace(claim, lease_token=str(uuid.uuid4())), replace(claim, attempt=2)):
        for name in ("requeue", "complete", "fail", "cancel"):
            assert not await MOVE_BY[name][1](store, wrong), name
        assert not await store.progress(wrong, Stage.LOADING, 50)
    assert await pool.fetchrow("SELECT * FROM jobs") == before
    assert await pool.fetchval("SELECT count(*) FROM callbacks") == 0


async def test_the_end_and_its_callback_are_one(store: JobStore, pool: Pool) -> None:
    """When the callback cannot be written nothing has happened, not even the result."""
    for name in ("complete", "fail", "cancel", "fail_queued", "cancel_queued"):
        await pool.execute("DELETE FROM jobs")
        claim = await in_state(store, JobState.QUEUED if name in FROM_QUEUE else JobState.PROCESSING)
        before = await pool.fetchrow("SELECT * FROM jobs")
        await pool.execute("ALTER TABLE callbacks ADD CONSTRAINT never CHECK (false)")
        with pytest.raises(asyncpg.CheckViolationError):
            await MOVE_BY[name][1](store, claim)
        assert await pool.fetchrow("SELECT * FROM jobs") == before, name
        await pool.execute("ALTER TABLE callbacks DROP CONSTRAINT never")
        assert await MOVE_BY[name][1](store, claim), name


async def test_of_two_at_once_exactly_one_wins(store: JobStore, pool: Pool) -> None:
    for second in ("complete", "cancel", "fail", "requeue"):
        names = ("complete", second)
        for _ in range(5):
            claim = await claimed(store, callback_url=URL)
            outcomes = await asyncio.gather(*(MOVE_BY[name][1](store, claim) for name in names))
            assert sorted(outcomes) == [False, True], names
            state = (await state_of(store, claim.job_id)).state
            assert state is MOVE_BY[names[outcomes.index(True)]][0]
            payload = await payload_of(pool, claim.job_id)
            assert (None if payload is None else payload["status"]) == (state.value if state in TERMINAL else None)


async def test_of_a_claim_and_a_cancel_exactly_one_wins(store: JobStore) -> None:
    for _ in range(10):
        job = await store.insert(new_job())
        taken, cancelled = await asyncio.gather(store.claim(job.id, 0), store.cancel_queued(job.id))
        assert (taken is not None) is not cancelled


# After a crash, and later.


async def test_orphans(store: JobStore, pool: Pool) -> None:
    async def at_attempt(attempt: int, *, cancel: bool = False) -> JobId:
        claim = await claimed(store, callback_url=URL)
        for _ in range(attempt - 1):
            assert await store.requeue(claim, charge=True)
            again = await store.claim(claim.job_id, 0)
            assert again is not None
            claim = again[0]
        if cancel:
            await store.request_cancel(claim.job_id)
        return claim.job_id

    first, last, unwanted = await at_attempt(1), await at_attempt(3), await at_attempt(1, cancel=True)
    handed_back = await claimed(store)
    await store.request_cancel(handed_back.job_id)
    await store.requeue(handed_back, charge=False)
    waiting = (await store.insert(new_job())).id
    done = await claimed(store)
    await store.complete(done, b"{}", {})

    requeued, ended = await store.orphans(3)
    assert requeued == [first]
    assert sorted(ended) == sorted([last, unwanted, handed_back.job_id])
    jobs = {job.id: job for job in await store.newest()}
    assert (jobs[first].state, jobs[first].attempt) == (JobState.QUEUED, 1)
    assert (jobs[last].state, jobs[last].error_code) == (JobState.FAILED, "runner_crashed")
    assert jobs[unwanted].state is JobState.CANCELLED
    assert jobs[handed_back.job_id].state is JobState.CANCELLED
    assert (jobs[waiting].state, jobs[waiting].attempt) == (JobState.QUEUED, 0)
    assert jobs[done.job_id].state is JobState.COMPLETED
    payload = await payload_of(pool, last)
    assert payload is not None
    assert payload["error"] == "the daemon died in each of 3 attempts at this job"
    assert await store.orphans(3) == ([], [])


async def test_delete_takes_terminal_jobs_with_their_callback(store: JobStore, pool: Pool) -> None:
    claim = await claimed(store, callback_url=URL)
    waiting = await store.insert(new_job())
    assert not await store.delete(claim.job_id)
    assert not await store.delete(waiting.id)
    await store.complete(claim, b"{}", {})
    assert await store.delete(claim.job_id)
    assert await store.get(claim.job_id) is None
    assert await pool.fetchval("SELECT count(*) FROM callbacks") == 0


async def test_expired(store: JobStore, pool: Pool) -> None:
    plain, owing, told, fresh = [await claimed(store, callback_url=url) for url in (None, URL, URL, None)]
    running = await claimed(store)
    for claim in (plain, owing, told, fresh):
        await store.complete(claim, b"{}", {})
    await pool.execute(
        "UPDATE jobs SET finished_at = now() - interval '101 s' WHERE id <> $1 AND finished_at IS NOT NULL",
        uuid.UUID(fresh.job_id),
    )
    callbacks = CallbackStore(pool)
    (delivery,) = [due for due in (await callbacks.due(10)).deliveries if due.job_id == told.job_id]
    assert await callbacks.delivered(delivery, Try(at=clock.now(), duration_s=0.1, status=200, error=None))
    assert sorted(await store.expired(100)) == sorted([plain.job_id, told.job_id])
    assert await store.expired(1000) == []
    assert await callbacks.redeliver(told.job_id)
    assert not await store.delete(told.job_id, unless_owing=True)
    assert not await store.delete(running.job_id, unless_owing=True)
    assert await store.delete(plain.job_id, unless_owing=True)
    assert running.job_id not in await store.expired(0)


async def test_known(store: JobStore) -> None:
    claim = await claimed(store)
    job = await store.insert(new_job())
    known = await store.known([claim.job_id, job.id, JobId(str(uuid.uuid4())), JobId("lost+found")])
    assert known == {claim.job_id: JobState.PROCESSING, job.id: JobState.QUEUED}


async def test_a_database_that_goes_away_is_unavailable_and_then_back(
    store: JobStore, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "DOUBT_TIMEOUT_S", 0.3)
    async with pool.acquire() as spare:
        transaction = spare.transaction()
        await transaction.start()
        await spare.execute("LOCK TABLE jobs")
        inserting = asyncio.create_task(store.insert(new_job()))
        while not await spare.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            assert not inserting.done()
        await spare.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        with pytest.raises(Unavailable, match="the database does not answer"):
            await inserting
        await transaction.rollback()
    assert await store.counts() == dict.fromkeys(JobState, 0)


# The connection breaks after the server has done what it was told: was it done? Fault 8.


@pytest.fixture
async def relayed(database: ConnectionParameters) -> AsyncIterator[tuple[JobStore, Relay]]:
    relay = Relay(database)
    pool = await open_pool(await relay.start())
    yield JobStore(pool), relay
    await pool.close()
    await relay.stop()


async def test_an_insert_whose_answer_is_lost_is_found(relayed: tuple[JobStore, Relay]) -> None:
    store, relay = relayed
    relay.lose_answer_to(EXECUTE)
    job = await store.insert(new_job())
    assert relay.lost == 1
    assert [queued.id for queued in await store.queued()] == [job.id]


async def test_an_insert_that_the_server_is_still_at_is_waited_for(
    relayed: tuple[JobStore, Relay], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit takes longer than its connection lives: it is not there yet, and will be."""
    monkeypatch.setattr(jobs_module, "DOUBT_PAUSE_S", 0.01)
    store, relay = relayed
    await pool.execute("""
        CREATE FUNCTION busy_disk() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER busy_disk AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION busy_disk();
    """)
    async with pool.acquire() as spare, asyncio.timeout(20):

        async def until_they_wait(count: int) -> None:
            while await spare.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < count:
                assert not inserting.done()
                await asyncio.sleep(0.01)

        await spare.execute("SELECT pg_advisory_lock(7)")
        inserting = asyncio.create_task(store.insert(new_job()))
        await until_they_wait(1)
        relay.cut()
        await until_they_wait(2)
        await spare.execute("SELECT pg_advisory_unlock(7)")
        job = await inserting
    assert [queued.id for queued in await store.queued()] == [job.id]


async def test_an_insert_that_nobody_can_ask_about_is_of_unknown_outcome(
    relayed: tuple[JobStore, Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "DOUBT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(jobs_module, "DOUBT_PAUSE_S", 0.01)
    store, relay = relayed
    await store.counts()
    relay.lose_answer_to(EXECUTE, then_away=True)
    with pytest.raises(OutcomeUnknown):
        await store.insert(new_job())


async def test_a_claim_whose_answer_is_lost_is_given_when_it_is_asked_for_again(
    relayed: tuple[JobStore, Relay],
) -> None:
    store, relay = relayed
    job = await store.insert(new_job())
    relay.lose_answer_to(EXECUTE)
    with pytest.raises(Unavailable):
        await store.claim(job.id, 0)
    assert (await state_of(store, job.id)).state is JobState.PROCESSING
    claimed = await store.claim(job.id, 0)
    assert claimed is not None
    claim, job = claimed
    assert (claim.attempt, job.attempt, job.state) == (1, 1, JobState.PROCESSING)
    assert await store.claim(job.id, 1) is None
    assert await store.complete(claim, b"{}", {})


@pytest.mark.parametrize("name", ["complete", "fail", "cancel", "fail_queued", "cancel_queued", "requeue"])
async def test_an_end_whose_answer_is_lost_is_true_when_it_is_tried_again(
    relayed: tuple[JobStore, Relay], pool: Pool, name: str
) -> None:
    store, relay = relayed
    claim = await in_state(store, JobState.QUEUED if name in FROM_QUEUE else JobState.PROCESSING)
    relay.lose_answer_to(EXECUTE)
    with pytest.raises(Unavailable):
        await MOVE_BY[name][1](store, claim)
    assert (await state_of(store, claim.job_id)).state is MOVE_BY[name][0]
    before = await pool.fetchrow("SELECT * FROM jobs")
    assert await MOVE_BY[name][1](store, claim)
    assert await pool.fetchrow("SELECT * FROM jobs") == before
    assert await pool.fetchval("SELECT count(*) FROM callbacks") == (name != "requeue")
    assert not await MOVE_BY[name][1](store, claim), "it is settled now"


async def test_what_another_did_meanwhile_is_not_taken_for_ours(relayed: tuple[JobStore, Relay], pool: Pool) -> None:
    """The write was lost with its connection, and then the job was given to somebody else."""
    store, relay = relayed
    claim = await claimed(store)
    relay.break_at(EXECUTE)
    with pytest.raises(Unavailable):
        await store.complete(claim, b"{}", {})
    relay.refuse = False
    other = JobStore(pool)
    assert (await state_of(other, claim.job_id)).state is JobState.PROCESSING
    assert await other.requeue(claim, charge=True)
    taken = await other.claim(claim.job_id, 1)
    assert taken is not None
    assert await other.complete(taken[0], b'{"by": "other"}', {})
    assert not await store.complete(claim, b"{}", {})
    assert await store.result(claim.job_id) == '{"by": "other"}'
