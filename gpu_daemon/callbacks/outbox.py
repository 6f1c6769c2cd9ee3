"""Delivers callbacks from their rows: at least once, in the background, however often the daemon restarts."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from gpu_daemon import clock
from gpu_daemon.callbacks.post import Answer, new_client, post, refusal
from gpu_daemon.callbacks.signing import signature_header
from gpu_daemon.errors import Unavailable
from gpu_daemon.events import EventHub
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.callback import webhook_id, with_delivery
from gpu_daemon.jobs.retry import callback_delay_s
from gpu_daemon.logs import log
from gpu_daemon.metrics import Metrics
from gpu_daemon.outgoing.target import AddressPolicy
from gpu_daemon.store.callbacks import CallbackStore, Delivery, Try

AT_ONCE = 32
AT_ONCE_PER_HOST = 4
POLL_S = 30.0
PAUSE_S = 1.0
GIVE_UP_S = 72 * 3600


class Outbox:
    def __init__(
        self,
        store: CallbackStore,
        hub: EventHub,
        *,
        policy: AddressPolicy,
        secrets: Sequence[bytes] = (),
        metrics: Metrics | None = None,
        delay_s: Callable[[int, random.Random], float | None] = callback_delay_s,
    ) -> None:
        self._store = store
        self._hub = hub
        self._policy = policy
        self._secrets = tuple(secrets)
        self._metrics = metrics or Metrics()
        self._delay_s = delay_s
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()
        self._rng = random.Random()  # noqa: S311 - jitter

    async def start(self) -> None:
        self._client = new_client(self._policy)
        self._loop = asyncio.create_task(self._run(), name="outbox")

    async def stop(self) -> None:
        """Deliveries under way are given up: their rows are still pending."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        tasks = [loop, *self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._under_way.clear()
        self._hosts.clear()
        await self._client.aclose()

    def wake(self) -> None:
        """There may be something new to deliver."""
        self._wake.set()

    async def _run(self) -> None:
        away = False
        while True:
            self._wake.clear()
            try:
                wait_s = await self._begin_due()
                away = False
            except (Unavailable, OSError) as error:
                if not away:  # a line each second would bury the others
                    log.warning("outbox.waits", error=str(error))
                away, wait_s = True, PAUSE_S
            except Exception:
                log.exception("outbox.broken")  # what it was is in the log; the callbacks must go on
                wait_s = PAUSE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _begin_due(self) -> float:
        """Start what is due and has room; seconds until it is worth looking again."""
        room = AT_ONCE - len(self._under_way)
        if room == 0:
            return POLL_S  # the end of one wakes us, as where all places of a receiver are taken
        due = await self._store.due(
            room, per_host=AT_ONCE_PER_HOST, but=self._under_way.keys(), busy=list(self._hosts.elements())
        )
        for delivery in due.deliveries:
            self._hosts[delivery.host] += 1
            task = asyncio.create_task(self._deliver(delivery), name=f"callback of {delivery.job_id}")
            self._under_way[delivery.id] = task
            task.add_done_callback(partial(self._ended, delivery.id, delivery.host))
        return POLL_S if due.next_in_s is None else min(POLL_S, due.next_in_s + 0.01)

    def _ended(self, delivery_id: int, host: str, _: asyncio.Task[None]) -> None:
        self._hosts[host] -= 1
        if self._hosts[host] <= 0:
            del self._hosts[host]
        self._under_way.pop(delivery_id, None)
        self._wake.set()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            reach(FaultPoint.CALLING_BACK)
            now, began_s = clock.now(), clock.monotonic()
            answer = await self._post(delivery, now)
            tried = Try(at=now, duration_s=clock.monotonic() - began_s, status=answer.status, error=answer.error)
            reach(FaultPoint.CALLBACK_ANSWERED)
            await self._record_however_long(delivery, answer, tried)
            reach(FaultPoint.CALLBACK_RECORDED)
        except Exception:
            # The row is still pending and due: without a pause the receiver would be hammered.
            log.exception("callback.broken", job_id=delivery.job_id)
            await asyncio.sleep(POLL_S)

    async def _post(self, delivery: Delivery, now: datetime) -> Answer:
        body = with_delivery(delivery.payload, round(now.timestamp() * 1000)).encode()
        id_, timestamp_s = webhook_id(delivery.job_id), int(now.timestamp())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": id_,
            "webhook-timestamp": str(timestamp_s),
        }
        if self._secrets:
            headers["webhook-signature"] = signature_header(
                self._secrets, webhook_id=id_, timestamp_s=timestamp_s, body=body
            )
        if (reason := refusal(delivery.url)) is not None:
            return Answer(status=None, error=reason, final=True)
        return await post(self._client, delivery.url, headers, body, now)

    async def _record_however_long(self, delivery: Delivery, answer: Answer, tried: Try) -> None:
        """While the database is away the answer is kept, rather than the callback sent again."""
        while True:
            try:
                await self._record(delivery, answer, tried)
            except (Unavailable, OSError) as error:
                log.warning("callback.not_recorded", job_id=delivery.job_id, error=str(error))
                await asyncio.sleep(PAUSE_S)
            else:
                self._hub.publish("callback", delivery.job_id, status=answer.status, error=answer.error)
                return

    async def _record(self, delivery: Delivery, answer: Answer, tried: Try) -> None:
        about = {"job_id": delivery.job_id, "attempt": delivery.attempts + 1, "status": answer.status}
        if answer.error is None:
            await self._store.delivered(delivery, tried)
            self._metrics.called_back("delivered", tried.duration_s)
            log.info("callback.delivered", **about)
            return
        delay_s = None if answer.final else self._next_try_s(delivery, answer)
        if delay_s is None:
            await self._store.dead(delivery, tried)
            self._metrics.called_back("dead", tried.duration_s)
            self._hub.publish("incident", delivery.job_id, what="callback_dead")
            log.error("callback.dead", error=answer.error, **about)
        else:
            await self._store.retry(delivery, tried, delay_s)
            self._metrics.called_back("retried", tried.duration_s)
            log.warning("callback.retried", error=answer.error, retry_in_s=round(delay_s, 1), **about)

    def _next_try_s(self, delivery: Delivery, answer: Answer) -> float | None:
        """A receiver that says when to come again is obeyed; it does not use up the tries of the schedule."""
        if answer.retry_after_s is not None and delivery.age_s < GIVE_UP_S:
            return answer.retry_after_s
        return self._delay_s(delivery.schedule_attempts + 1, self._rng)
