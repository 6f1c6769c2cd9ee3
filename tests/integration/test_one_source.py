"""What routes and log lines say of the daemon agrees with what its page shows."""

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.gpu.reading import GpuReading
from gpu_daemon.gpu.telemetry import Telemetry
from gpu_daemon.logs import configure
from tests.serving import ServedDaemon, served_daemon


@pytest.fixture
def logs_as_json() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    configure("INFO", "json")
    written = io.StringIO()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    yield written
    root.handlers, level = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


async def test_the_counts_of_the_services_are_those_of_the_page(served: ServedDaemon) -> None:
    await served.finished(await served.submit())
    await served.finished(await served.submit(prompt="fake:error=bad_audio"))
    page = (await served.json("/dashboard/state"))["queue"]
    scale = (await served.json("/stats"))["jobs"]
    rq = await served.json("/queue/stats")
    assert (page["completed"], page["failed"]) == (1, 1)
    assert scale == {
        "queued": page["queued"],
        "processing": page["running"],
        **{state: page[state] for state in ("completed", "failed", "cancelled")},
    }
    assert (rq["queued"], rq["started"], rq["finished"], rq["failed"]) == (0, 0, 1, 1)
    state = await served.json("/dashboard/state")
    (worker,), (of_page,) = (await served.json("/workers"))["workers"], state["workers"]
    assert {name: worker[name] for name in ("index", "device", "state", "pid", "restarts")} == {
        name: of_page[name] for name in ("index", "device", "state", "pid", "restarts")
    }


async def test_the_memory_of_a_gpu_in_the_health(served: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/health", "/services/rocm/health"):
        health = await served.json(path)
        assert (health["memory_total_gb"], health["memory_available_gb"]) == (None, None), "a CPU"
    reading = GpuReading(vram_total_mb=24576.0, vram_free_mb=20480.0)
    monkeypatch.setattr(Telemetry, "latest", lambda self: {0: reading})
    for path in ("/health", "/services/rocm/health"):
        health = await served.json(path)
        assert (health["memory_total_gb"], health["memory_available_gb"]) == (24.0, 20.0)
    monkeypatch.setattr(Telemetry, "latest", lambda self: {0: GpuReading(reason="the driver has not answered")})
    assert (await served.json("/health"))["memory_total_gb"] is None


async def test_lines_of_a_job_say_which_where_and_at_what(logs_as_json: io.StringIO, served: ServedDaemon) -> None:
    done = await served.submit()
    await served.finished(done)
    failed = await served.submit(prompt="fake:error=bad_audio")
    await served.finished(failed)
    said: list[dict[str, Any]] = [json.loads(line) for line in logs_as_json.getvalue().splitlines()]
    of_job = {(line["event"], line["job_id"]): line for line in said if "job_id" in line}
    assert {name: of_job["job.ended", done].get(name) for name in ("worker", "stage", "request_id", "gpu")} == {
        "worker": 0,
        "stage": of_job["job.failed", failed]["stage"],
        "request_id": None,
        "gpu": None,
    }
    assert of_job["job.ended", done]["stage"] in ("transcribing", "merging")
    assert of_job["job.failed", failed]["worker"] == 0
    assert "stage" not in of_job["job.queued", done]
    assert of_job["job.queued", done]["request_id"]
