"""What monitoring reads, in the text format of Prometheus (version 0.0.4)."""

from collections.abc import Iterable, Iterator, Mapping

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from gpu_daemon.api.access import RequireKey
from gpu_daemon.api.context import context_of
from gpu_daemon.api.errors import documented

router = APIRouter(tags=["health"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, str], float]


@router.get(
    "/metrics",
    dependencies=[RequireKey],
    summary="Counts of jobs and workers, for Prometheus",
    response_class=PlainTextResponse,
    responses={
        200: {
            "content": {"text/plain": {"example": '# TYPE gpu_daemon_jobs gauge\ngpu_daemon_jobs{state="queued"} 3\n'}}
        },
        **documented(401, 503),
    },
)
async def metrics(request: Request) -> Response:
    context = context_of(request)
    jobs, workers = await context.jobs.counts(), context.scheduler.workers()
    ready = context.scheduler.readiness().status == "ready"
    lines = [
        *_gauge("ready", "1 when a job sent now would run.", [({}, ready)]),
        *_gauge("jobs", "Jobs that are stored, by state.", [({"state": state}, n) for state, n in jobs.items()]),
        *_gauge(
            "worker_busy",
            "1 while the worker runs a job.",
            [({"worker": str(worker.index)}, bool(worker.jobs)) for worker in workers],
        ),
        *_gauge(
            "worker_jobs",
            "Jobs that the worker runs at once.",
            [({"worker": str(worker.index)}, len(worker.jobs)) for worker in workers],
        ),
        *_gauge(
            "worker_runner_restarts",
            "How often the worker's runner was started again.",
            [({"worker": str(worker.index)}, worker.restarts) for worker in workers],
        ),
    ]
    return Response("".join(f"{line}\n" for line in lines), headers={"Content-Type": CONTENT_TYPE})


def _gauge(name: str, meaning: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Names and labels are ours, and need no escaping."""
    yield f"# HELP gpu_daemon_{name} {meaning}"
    yield f"# TYPE gpu_daemon_{name} gauge"
    for labels, value in samples:
        said = ",".join(f'{label}="{text}"' for label, text in labels.items())
        yield f"gpu_daemon_{name}{{{said}}} {value:g}" if said else f"gpu_daemon_{name} {value:g}"
