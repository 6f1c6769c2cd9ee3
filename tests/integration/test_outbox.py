import asyncio
import base64
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from gpu_daemon import __version__, clock
from gpu_daemon.callbacks import outbox as outbox_module
from gpu_daemon.callbacks import post as post_module
from gpu_daemon.callbacks.outbox import AT_ONCE, AT_ONCE_PER_HOST, Outbox
from gpu_daemon.callbacks.signing import secret_bytes
from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.migrate import migrate
from gpu_daemon.database.pool import Pool, open_pool
from gpu_daemon.events import EventHub, Listener
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import JobState
from gpu_daemon.outgoing.target import AddressPolicy
from gpu_daemon.store.callbacks import LOGGED, CallbackState, CallbackStore, Delivery, Due, Try
from gpu_daemon.store.jobs import JobStore
from tests.conftest import MIGRATIONS
from tests.new_jobs import new_job
from tests.receiver import Receiver, Reply

Delay = Callable[[int, random.Random], float | None]


@pytest.fixture
def jobs(pool: Pool) -> JobStore:
    return JobStore(pool)


@pytest.fixture
def callbacks(pool: Pool) -> CallbackStore:
    return CallbackStore(pool)


LOOPBACK = AddressPolicy.parse(["loopback"])
SECRET = "whsec_" + base64.b64encode(b"a secret that tests may know....").decode()


def at_once(attempts: int, rng: random.Random) -> float | None:
    return 0.0 if attempts < 5 else None


@asynccontextmanager
async def running(callbacks: CallbackStore, delay_s: Delay = at_once) -> AsyncIterator[tuple[Outbox, Listener]]:
    hub = EventHub()
    outbox = Outbox(callbacks, hub, policy=LOOPBACK, secrets=[secret_bytes(SECRET)], delay_s=delay_s)
    with hub.listen("callback") as tries:
        await outbox.start()
        try:
            yield outbox, tries
        finally:
            await outbox.stop()


async def recorded(tries: Listener, count: int = 1, timeout_s: float = 20) -> list[dict[str, Any]]:
    async with asyncio.timeout(timeout_s):
        return [(await tries.next()).data for _ in range(count)]


async def ended(
    jobs: JobStore, url: str, state: JobState = JobState.COMPLETED, metadata: dict[str, Any] | None = None
) -> JobId:
    job = await jobs.insert(new_job(callback_url=url, metadata=metadata, requested_language="Russian"))
    claimed = await jobs.claim(job.id, 0)
    assert claimed is not None
    claim, _ = claimed
    if state is JobState.COMPLETED:
        assert await jobs.complete(claim, b'{"text": "hi"}', {})
    elif state is JobState.FAILED:
        assert await jobs.fail(claim, "engine_error", "it broke")
    else:
        assert await jobs.cancel(claim)
    return job.id


async def callback_of(callbacks: CallbackStore, job_id: JobId) -> CallbackState:
    state = await callbacks.of_job(job_id)
    assert state is not None
    return state


KEYS = [
    *("job_id", "status", "model", "language", "queue_time_s", "processing_time_s", "result", "error", "error_code"),
    *("metadata", "callback"),
]


async def test_delivered(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    async with running(callbacks) as (outbox, tries):
        completed = await ended(jobs, f"{receiver.url}/hook?a=b", metadata={"order": 7})
        outbox.wake()
        (request,) = await receiver.wait_for(1)
        assert await recorded(tries) == [{"status": 200, "error": None}]
    assert request.path == "/hook?a=b"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"gpu_daemon/{__version__}"
    assert request.headers["webhook-id"] == f"msg_{completed.replace('-', '')}"
    payload = request.json()
    assert list(payload) == KEYS
    assert payload["callback"] == {
        "delivered": True,
        "delivered_at_ms": payload["callback"]["delivered_at_ms"],
        "error": None,
    }
    assert abs(payload["callback"]["delivered_at_ms"] / 1000 - int(request.headers["webhook-timestamp"])) < 2
    assert (payload["job_id"], payload["status"], payload["model"], payload["language"]) == (
        *(completed, "completed", "demo"),
        "Russian",
    )
    assert (payload["result"], payload["error"], payload["error_code"]) == ({"text": "hi"}, None, None)
    assert payload["metadata"] == {"order": 7}
    state = await callback_of(callbacks, completed)
    assert (state.state, state.attempts, state.last_status, state.last_error) == ("delivered", 1, 200, None)
    assert state.delivered_at is not None


@pytest.mark.parametrize(
    ("state", "error", "code"),
    [(JobState.FAILED, "it broke", "engine_error"), (JobState.CANCELLED, "the job was cancelled", "cancelled")],
    ids=["failed", "cancelled"],
)
async def test_every_end_is_told(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, state: JobState, error: str, code: str
) -> None:
    await ended(jobs, receiver.url, state)
    async with running(callbacks):
        (request,) = await receiver.wait_for(1)
    payload = request.json()
    assert list(payload) == KEYS
    assert (payload["status"], payload["result"], payload["error"], payload["error_code"], payload["metadata"]) == (
        *(state.value, None, error, code),
        None,
    )


async def test_tried_again_until_it_succeeds(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    receiver.plan(Reply(500), Reply(302, {"Location": f"{receiver.url}/elsewhere"}), Reply(disconnect=True), Reply(204))
    job_id = await ended(jobs, receiver.url)
    asked: list[int] = []

    def delay_s(attempts: int, rng: random.Random) -> float | None:
        asked.append(attempts)
        return 0.0

    async with running(callbacks, delay_s) as (_, tries):
        outcomes = await recorded(tries, 4)
    requests = await receiver.wait_for(4)
    assert [outcome["status"] for outcome in outcomes] == [500, 302, None, 204]
    assert outcomes[0]["error"] == "HTTP 500"
    assert "redirect" in outcomes[1]["error"]
    assert "disconnected" in outcomes[2]["error"]
    assert asked == [1, 2, 3]
    assert {request.path for request in requests} == {"/"}
    assert len({request.headers["webhook-id"] for request in requests}) == 1
    without_time = [{**request.json(), "callback": None} for request in requests]
    assert all(payload == without_time[0] for payload in without_time)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts, state.last_status, state.last_error) == ("delivered", 4, 204, None)


async def test_the_schedule_is_kept_in_the_row(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    receiver.plan(Reply(500))
    job_id = await ended(jobs, receiver.url)
    async with running(callbacks, lambda attempts, rng: 1000.0) as (_, tries):
        await recorded(tries)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts, state.last_status, state.last_error) == ("pending", 1, 500, "HTTP 500")
    due = await callbacks.due(10)
    assert due.deliveries == []
    assert due.next_in_s is not None
    assert 900 < due.next_in_s <= 1000


async def test_the_end_of_the_schedule(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    receiver.plan(*[Reply(500)] * 5)
    job_id = await ended(jobs, receiver.url)
    async with running(callbacks) as (_, tries):
        await recorded(tries, 5)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts, state.last_status) == ("dead", 5, 500)
    assert await callbacks.due(10) == Due(deliveries=[], next_in_s=None)


async def test_gone_stops(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    receiver.plan(Reply(410))
    job_id = await ended(jobs, receiver.url)
    async with running(callbacks) as (_, tries):
        await recorded(tries)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts, state.last_status) == ("dead", 1, 410)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_obeyed(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, status: int) -> None:
    receiver.plan(Reply(status, {"Retry-After": "1"}))
    later = await ended(jobs, receiver.url)
    async with running(callbacks, lambda attempts, rng: None) as (_, tries):
        await recorded(tries, 2)
    first, second = await receiver.wait_for(2)
    assert 1 <= second.at_s - first.at_s < 5
    assert (await callback_of(callbacks, later)).state == "delivered"


async def test_retry_after_of_other_answers_is_not(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver
) -> None:
    receiver.plan(Reply(500, {"Retry-After": "3600"}))
    await ended(jobs, receiver.url)
    async with running(callbacks):
        await receiver.wait_for(2, timeout_s=20)


async def test_nobody_is_asked_to_come_again_for_ever(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, pool: Pool
) -> None:
    receiver.plan(Reply(503, {"Retry-After": "1"}))
    job_id = await ended(jobs, receiver.url)
    await pool.execute("UPDATE callbacks SET schedule_began_at = now() - interval '73 hours'")
    async with running(callbacks, lambda attempts, rng: None) as (_, tries):
        await recorded(tries)
    assert (await callback_of(callbacks, job_id)).state == "dead"


@pytest.mark.parametrize("url", ["ftp://localhost/", "file:///etc/passwd", "http://[::1", "gopher:x", "http:///"])
async def test_other_schemes_are_refused(jobs: JobStore, callbacks: CallbackStore, url: str) -> None:
    job_id = await ended(jobs, url)
    async with running(callbacks) as (_, tries):
        await recorded(tries)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.last_status) == ("dead", None)
    assert state.last_error is not None
    assert "callback_url" in state.last_error


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://nonesuch.invalid/", "http://a..b/", "http://x:99999/"])
async def test_nobody_there(jobs: JobStore, callbacks: CallbackStore, url: str) -> None:
    job_id = await ended(jobs, url)
    async with running(callbacks, lambda attempts, rng: 1000.0) as (_, tries):
        await recorded(tries, timeout_s=20)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts, state.last_status) == ("pending", 1, None)
    assert state.last_error


async def test_a_receiver_that_hangs_delays_no_other(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver
) -> None:
    """Another port is another receiver; there is far more for the one that hangs than is under way at once."""
    hanging = Receiver()
    await hanging.start()
    hanging.plan(*[Reply(hang=True)] * 200)
    stuck = await asyncio.gather(*(ended(jobs, hanging.url) for _ in range(AT_ONCE * AT_ONCE_PER_HOST + 10)))
    async with running(callbacks) as (outbox, tries):
        await hanging.wait_for(AT_ONCE_PER_HOST)
        for _ in range(10):
            await ended(jobs, receiver.url)
        outbox.wake()
        await receiver.wait_for(10, timeout_s=20)
        assert [outcome["status"] for outcome in await recorded(tries, 10)] == [200] * 10
        assert len(hanging.requests) == AT_ONCE_PER_HOST
    assert (await callback_of(callbacks, stuck[0])).attempts == 0
    await hanging.stop()


async def test_many_receivers_that_hang_do_not_take_each_place_that_becomes_free(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver
) -> None:
    """They have all places, and more that is overdue for longer than what another one is owed."""
    hanging = [Receiver() for _ in range(AT_ONCE // AT_ONCE_PER_HOST)]
    for one in hanging:
        await one.start()
        one.plan(*[Reply(held=True)] * AT_ONCE_PER_HOST, *[Reply(hang=True)] * 100)
        await asyncio.gather(*(ended(jobs, one.url) for _ in range(3 * AT_ONCE_PER_HOST)))
    async with running(callbacks) as (outbox, _):
        for one in hanging:
            await one.wait_for(AT_ONCE_PER_HOST)
        await ended(jobs, receiver.url)
        outbox.wake()
        hanging[0].release()
        await receiver.wait_for(1, timeout_s=5)
    for one in hanging:
        await one.stop()


async def test_a_receiver_that_hangs_is_given_up(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_module, "TIMEOUT_S", 2.0)  # long enough for an answer that comes
    receiver.plan(Reply(hang=True))
    await ended(jobs, receiver.url)
    async with running(callbacks) as (_, tries):
        first, second = await recorded(tries, 2)
    assert (first["status"], second["status"]) == (None, 200)
    assert first["error"].startswith("no answer within")


async def test_an_answer_without_end_is_cut(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    receiver.plan(Reply(endless=True), Reply(503, endless=True))
    for _ in range(2):
        await ended(jobs, receiver.url)
    async with running(callbacks, lambda attempts, rng: None) as (_, tries):
        outcomes = await recorded(tries, 2)
    assert sorted(outcome["status"] for outcome in outcomes) == [200, 503]


async def test_a_2xx_counts_whatever_becomes_of_its_body(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_module, "TIMEOUT_S", 2.0)  # long enough for an answer that comes
    receiver.plan(Reply(200, hang_in_body=True))
    job_id = await ended(jobs, receiver.url)
    async with running(callbacks) as (_, tries):
        await recorded(tries)
    assert (await callback_of(callbacks, job_id)).state == "delivered"
    assert len(receiver.requests) == 1


async def test_what_a_stopped_outbox_owes_the_next_one_delivers(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver
) -> None:
    receiver.plan(Reply(hang=True), Reply(500))
    job_id = await ended(jobs, receiver.url)
    async with running(callbacks):
        await receiver.wait_for(1)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts) == ("pending", 0)
    async with running(callbacks) as (outbox, tries):
        await recorded(tries, 2)
        await outbox.stop()
        await outbox.stop()
        await outbox.start()
    requests = await receiver.wait_for(3)
    assert len({request.headers["webhook-id"] for request in requests}) == 1
    assert (await callback_of(callbacks, job_id)).state == "delivered"


async def test_every_try_is_signed(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    receiver.plan(Reply(500))
    await ended(jobs, receiver.url)
    async with running(callbacks):
        requests = await receiver.wait_for(2)
    for request in requests:
        assert Webhook(SECRET).verify(request.body.decode(), request.headers) == request.json()


async def test_a_receiver_that_the_policy_shuts_out_sees_no_connection(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver
) -> None:
    """Faults 15 and 16: an address, and names that resolve to it."""
    port = receiver.url.rsplit(":", 1)[1]
    hub = EventHub()
    outbox = Outbox(callbacks, hub, policy=AddressPolicy.parse(["public", "private"]), delay_s=lambda *_: None)
    shut_out = [
        await ended(jobs, f"http://{host}:{port}/") for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1")
    ]
    with hub.listen("callback") as tries:
        await outbox.start()
        try:
            await recorded(tries, len(shut_out))
        finally:
            await outbox.stop()
    for job_id in shut_out:
        assert "CALLBACK_ALLOWED_NETWORKS" in str((await callback_of(callbacks, job_id)).last_error)
    assert receiver.requests == []
    assert receiver.connections == 0


async def test_stop_before_start(callbacks: CallbackStore) -> None:
    await Outbox(callbacks, EventHub(), policy=LOOPBACK).stop()


@pytest.mark.parametrize("turns", range(6))
async def test_stopped_while_it_is_woken(callbacks: CallbackStore, turns: int) -> None:
    """However many turns of the loop lie between: `asyncio.wait_for` would lose the cancellation."""
    async with running(callbacks) as (outbox, _):
        await asyncio.sleep(0.1)  # it has looked, and waits
        outbox.wake()
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await outbox.stop()


async def test_many_are_delivered_once_each(jobs: JobStore, callbacks: CallbackStore, receiver: Receiver) -> None:
    receiver.plan(*[Reply(delay_s=0.01)] * 100)
    expected = {f"msg_{(await ended(jobs, receiver.url)).replace('-', '')}" for _ in range(100)}
    async with running(callbacks) as (_, tries):
        await recorded(tries, 100, timeout_s=30)
    assert sorted(request.headers["webhook-id"] for request in receiver.requests) == sorted(expected)


async def test_a_database_outage_is_waited_out(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loop looks for work, and while an answer is to be recorded: the callback is sent once all the same."""
    monkeypatch.setattr(outbox_module, "PAUSE_S", 0.1)
    server = EmbeddedPostgres(tmp_path / "postgres")
    pool = await open_pool(await server.start())
    await migrate(pool, MIGRATIONS)
    jobs, callbacks = JobStore(pool), CallbackStore(pool)
    try:
        async with running(callbacks) as (outbox, tries):
            with capture_logs() as logs:
                receiver.plan(Reply(delay_s=1))
                first = await ended(jobs, receiver.url)
                outbox.wake()
                await receiver.wait_for(1)
                await server.stop()
                outbox.wake()
                async with asyncio.timeout(20):
                    while not {"outbox.waits", "callback.not_recorded"} <= {line["event"] for line in logs}:
                        await asyncio.sleep(0.05)
            await server.start()
            await recorded(tries, timeout_s=20)
            assert (await callback_of(callbacks, first)).state == "delivered"
            await ended(jobs, receiver.url)
            outbox.wake()
            await recorded(tries, timeout_s=20)
            assert len(receiver.requests) == 2
            events = [line["event"] for line in logs]
            assert (events.count("outbox.waits"), events.count("outbox.broken")) == (1, 0)
    finally:
        await pool.close()
        await server.stop()


async def test_something_unforeseen_is_logged_and_the_rest_goes_on(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "PAUSE_S", 0.05)
    await ended(jobs, receiver.url)
    await pool.execute("ALTER TABLE callbacks RENAME TO hidden")
    with capture_logs() as logs:
        async with running(callbacks) as (_, tries):
            async with asyncio.timeout(20):
                while not logs:
                    await asyncio.sleep(0.01)
            await pool.execute("ALTER TABLE hidden RENAME TO callbacks")
            await recorded(tries)
    assert logs[0]["event"] == "outbox.broken"


async def test_due_is_fair_and_in_order(jobs: JobStore, callbacks: CallbackStore, pool: Pool) -> None:
    many = [await ended(jobs, "http://many.example/x") for _ in range(5)]
    one = await ended(jobs, "https://user:word@One.example:8443/y?z#a")

    async def due(limit: int, **but: Any) -> list[JobId]:
        return [delivery.job_id for delivery in (await callbacks.due(limit, **but)).deliveries]

    assert await due(10) == [*many, one]
    assert await due(10, per_host=2) == [*many[:2], one]
    assert await due(3) == [*many[:2], one], "in turn"
    assert await due(1, busy=["many.example"]) == [one], "who has no place yet comes first"
    (first,) = (await callbacks.due(1)).deliveries
    assert (first.url, first.host, first.attempts) == ("http://many.example/x", "many.example", 0)
    assert 0 <= first.age_s < 60
    assert await due(10, per_host=2, but={first.id}, busy=["many.example"]) == [many[1], one]
    assert await due(10, per_host=2, busy=["many.example"] * 3) == [one]
    await pool.execute("UPDATE callbacks SET next_attempt_at = now() + interval '1 hour'")
    await pool.execute("UPDATE callbacks SET next_attempt_at = now() + interval '1 minute' WHERE host LIKE 'one%'")
    later = await callbacks.due(10)
    assert later.deliveries == []
    assert later.next_in_s is not None
    assert 50 < later.next_in_s <= 60


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://one.example/a?b", "one.example"),
        ("https://ONE.example:8443/", "one.example:8443"),
        ("http://one.example?a/b@c", "one.example"),
        ("http://name:word@one.example:80/x@y", "one.example:80"),
        ("http://[::1]:9/", "[::1]:9"),
        ("http://[::1", "[::1"),
        ("gopher:x", ""),
        ("http://" + "ж" * 2000, "ж" * 255),
    ],
)
async def test_who_shares_a_receiver(jobs: JobStore, callbacks: CallbackStore, url: str, host: str) -> None:
    await ended(jobs, url)
    assert [delivery.host for delivery in (await callbacks.due(1)).deliveries] == [host]


def tried(status: int | None, error: str | None) -> Try:
    return Try(at=clock.now(), duration_s=0.25, status=status, error=error)


GOOD, BAD = tried(200, None), tried(500, "HTTP 500")


async def only_due(callbacks: CallbackStore) -> Delivery:
    (delivery,) = (await callbacks.due(10)).deliveries
    return delivery


async def test_what_was_decided_once_stays(jobs: JobStore, callbacks: CallbackStore) -> None:
    job_id = await ended(jobs, "http://one.example/")
    delivery = await only_due(callbacks)
    assert await callbacks.dead(delivery, tried(None, "no \0 good"))
    assert not await callbacks.delivered(delivery, GOOD)
    assert not await callbacks.retry(delivery, BAD, 0)
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts, state.last_error) == ("dead", 1, "no � good")
    (logged,) = await callbacks.tries(job_id)
    assert (logged.number, logged.duration_s, logged.status, logged.error) == (1, 0.25, None, "no � good")
    assert await callbacks.of_job(JobId("nonesuch")) is None
    assert await callbacks.tries(JobId("nonesuch")) == []
    assert not await callbacks.redeliver(JobId("nonesuch"))
    waiting = await jobs.insert(new_job(callback_url="http://one.example/"))
    assert await callbacks.of_job(waiting.id) is None
    assert not await callbacks.redeliver(waiting.id)


async def test_what_an_operator_gave_up_while_it_was_tried_stays_so(
    jobs: JobStore, callbacks: CallbackStore, pool: Pool
) -> None:
    job_id = await ended(jobs, "http://one.example/")
    delivery = await only_due(callbacks)
    await pool.execute("UPDATE callbacks SET state = 'dead'")
    assert not await callbacks.retry(delivery, BAD, 0)
    assert not await callbacks.delivered(delivery, GOOD)
    assert ((await callback_of(callbacks, job_id)).state, await callbacks.tries(job_id)) == ("dead", [])


async def test_a_try_is_recorded_once(jobs: JobStore, callbacks: CallbackStore) -> None:
    """As after an answer of the database that was lost: it is recorded again."""
    job_id = await ended(jobs, "http://one.example/")
    delivery = await only_due(callbacks)
    assert await callbacks.retry(delivery, BAD, 0)
    assert not await callbacks.retry(delivery, BAD, 0)
    again = await only_due(callbacks)
    assert (again.attempts, again.schedule_attempts) == (1, 1)
    assert await callbacks.delivered(again, GOOD)
    assert await callbacks.redeliver(job_id)
    assert not await callbacks.delivered(again, GOOD)
    assert [(tried.number, tried.status) for tried in await callbacks.tries(job_id)] == [(1, 500), (2, 200)]
    assert (await callback_of(callbacks, job_id)).state == "pending"


async def test_the_log_keeps_the_newest_tries(jobs: JobStore, callbacks: CallbackStore, pool: Pool) -> None:
    job_id = await ended(jobs, "http://one.example/")
    for _ in range(LOGGED + 3):
        assert await callbacks.retry(await only_due(callbacks), BAD, 0)
    assert [tried.number for tried in await callbacks.tries(job_id)] == list(range(4, LOGGED + 4))
    assert await jobs.delete(job_id)
    assert await pool.fetchval("SELECT count(*) FROM callback_attempts") == 0


@pytest.mark.parametrize("first", [Reply(200), Reply(410), Reply(500)], ids=["delivered", "dead", "waiting"])
async def test_sent_again_with_a_fresh_schedule(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, first: Reply
) -> None:
    receiver.plan(first, Reply(500))
    job_id = await ended(jobs, receiver.url)
    async with running(callbacks, lambda attempts, rng: 1000.0) as (_, tries):
        await recorded(tries)
    asked: list[int] = []

    def delay_s(attempts: int, rng: random.Random) -> float | None:
        asked.append(attempts)
        return 0.0

    async with running(callbacks, delay_s) as (outbox, tries):
        assert await callbacks.redeliver(job_id)
        assert (await callback_of(callbacks, job_id)).delivered_at is None
        outbox.wake()
        await recorded(tries, 2)
    assert asked == [1]
    requests = await receiver.wait_for(3)
    assert len({request.headers["webhook-id"] for request in requests}) == 1
    assert [(tried.number, tried.status) for tried in await callbacks.tries(job_id)] == [
        *((1, first.status), (2, 500), (3, 200))
    ]
    assert (await callback_of(callbacks, job_id)).state == "delivered"


@pytest.mark.parametrize("answer", [Reply(200), Reply(410), Reply(500)], ids=["delivered", "gone", "failed"])
async def test_sent_again_while_it_is_being_sent(
    jobs: JobStore, callbacks: CallbackStore, receiver: Receiver, answer: Reply
) -> None:
    """Neither lost nor doubled: only a try that fails is made again, at once and with all of the schedule before it."""
    receiver.plan(replace(answer, held=True), Reply(), Reply(500))
    job_id = await ended(jobs, receiver.url)
    asked: list[int] = []

    def delay_s(attempts: int, rng: random.Random) -> float | None:
        asked.append(attempts)
        return 1000.0 if len(asked) == 1 and answer.status == 500 else 0.0

    async with running(callbacks, delay_s) as (outbox, tries):
        await receiver.wait_for(1)
        assert await callbacks.redeliver(job_id)
        other = await ended(jobs, receiver.url)
        outbox.wake()
        assert await recorded(tries) == [{"status": 200, "error": None}]
        assert [request.json()["job_id"] for request in receiver.requests] == [job_id, other]
        receiver.release()
        if answer.status == 200:
            await recorded(tries)
            assert await callbacks.due(10) == Due(deliveries=[], next_in_s=None)
        else:
            await recorded(tries, 3)
            assert asked[-1] == 1
    state = await callback_of(callbacks, job_id)
    assert (state.state, state.attempts) == ("delivered", 1 if answer.status == 200 else 3)
    assert len(receiver.requests) == state.attempts + 1
