"""What monitoring reads, in the text format of Prometheus (version 0.0.4)."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response

from gpu_daemon import clock
from gpu_daemon.api import gauges
from gpu_daemon.api.access import RequireKey
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.live import Live
from gpu_daemon.api.state import health_reason
from gpu_daemon.jobs.state import TERMINAL

router = APIRouter(tags=["health"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
EXAMPLE = '# TYPE gpu_daemon_queue_jobs gauge\ngpu_daemon_queue_jobs{state="queued"} 3.0\n'


@router.get(
    "/metrics",
    dependencies=[RequireKey],
    summary="Jobs, queue, workers, GPUs, models and callbacks, for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": EXAMPLE}}}, **documented(401)},
)
async def metrics(request: Request) -> Response:
    """From the same figures as the page. What the database alone knows is absent while it does not answer."""
    context: Context = context_of(request)
    live: Live = request.app.state.live
    families = [*_from_memory(context, live), *await _from_database(live)]
    text = await asyncio.to_thread(rendered, context.metrics.registry, families)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


def _from_memory(context: Context, live: Live) -> Iterator[Metric]:
    scheduler, telemetry = context.scheduler, context.telemetry
    workers = scheduler.workers()
    running = sum(len(worker.jobs) for worker in workers)
    yield gauges.gauge("ready", "1 when a job sent now would run.", health_reason(context).status == "ready")
    jobs = {"queued": scheduler.queued_count, "running": running}
    yield gauges.by_state("queue_jobs", "Jobs that wait or run.", jobs)
    oldest_at = live.queued().oldest_at
    oldest_s = 0.0 if oldest_at is None else max(0.0, (clock.now() - oldest_at).total_seconds())
    yield gauges.gauge("queue_oldest_seconds", "Since the job that waits longest arrived; 0: none waits.", oldest_s)
    yield gauges.gauge("queue_estimated_wait_seconds", "Of a job that came now.", scheduler.newcomer_waits_s())
    yield gauges.gauge("viewers", "That watch the page by WebSocket.", live.viewers)
    yield from gauges.of_workers(workers)
    yield from gauges.of_models((*context.catalogue.statuses(), context.pipelines.status()))
    devices = {worker.index: worker.device for worker in workers}
    yield from gauges.of_gpus({index: (devices[index], reading) for index, reading in telemetry.latest().items()})
    yield from gauges.of_host(telemetry.host())


async def _from_database(live: Live) -> Iterable[Metric]:
    stored = await live.stored()
    callbacks = stored.callbacks
    return (
        gauges.gauge("database_up", "1 when the database answers.", stored.latency_ms is not None),
        gauges.by_state(
            "jobs_stored",
            "Jobs that have ended and are not forgotten yet.",
            {state.value: count for state, count in stored.jobs.items() if state in TERMINAL},
        ),
        gauges.by_state(
            "callbacks",
            "Callbacks that are owed (pending; retrying: tried already), or were given up (dead).",
            {}
            if callbacks is None
            else {"pending": callbacks.pending, "retrying": callbacks.retrying, "dead": callbacks.dead},
        ),
    )


def rendered(happened: CollectorRegistry, families: Sequence[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(happened, families))
    return generate_latest(registry)


class _Families(Collector):
    """Without the `_created` that the library adds to each series: twice as much of what nobody asks for."""

    def __init__(self, happened: CollectorRegistry, families: Sequence[Metric]) -> None:
        self._happened = happened
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in chain(self._happened.collect(), self._families):
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
