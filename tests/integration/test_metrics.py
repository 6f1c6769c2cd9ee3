"""What Prometheus reads of a daemon that has done something, and the board and the alerts that are made of it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gpu_daemon.api import gauges
from gpu_daemon.api.live import STORED_S
from gpu_daemon.api.metrics import rendered
from gpu_daemon.clock import monotonic
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.errors import Unavailable
from gpu_daemon.gpu.detect import Device
from gpu_daemon.gpu.reading import GpuReading
from gpu_daemon.jobs.state import JobState
from gpu_daemon.metrics import Metrics
from gpu_daemon.scheduling.status import WorkerState, WorkerStatus
from gpu_daemon.store.jobs import JobStore
from tests.receiver import Receiver, Reply
from tests.serving import ServedDaemon, served_daemon

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
NAME = re.compile(r"\b(?:gpu_daemon|process)_\w+")
FULL = GpuReading(
    util_percent=63.0,
    vram_used_mb=4200.0,
    vram_ours_mb=3900.0,
    vram_others_mb=300.0,
    vram_free_mb=20364.0,
    vram_total_mb=24564.0,
    temperature_c=51.0,
    power_w=187.3,
    power_limit_w=450.0,
    clock_sm_mhz=2520.0,
    clock_mem_mhz=10501.0,
    throttle=("power cap",),
    ecc_errors=0,
    fan_percent=37.0,
    by_process={4711: 3900.0},
    read_at_s=0.0,
)
CARD = Device(kind="cuda", index=3, name='NVIDIA "GeForce" RTX 4090', uuid="GPU-1")
GPU = {"worker": "0", "gpu": "3", "uuid": "GPU-1", "name": 'NVIDIA "GeForce" RTX 4090'}
WORKER = WorkerStatus(
    index=0,
    device=CARD,
    state=WorkerState.IDLE,
    jobs=(),
    loaded={"base": 290_000_000},
    pid=4711,
    answered_s_ago=0.1,
    restarts=0,
    error=None,
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch, reuse_results=True) as served:
        yield served


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(text).values()
        for sample in family.samples
    }


async def scraped(served: ServedDaemon) -> Samples:
    response = await served.client.get("/metrics")
    assert response.status_code == 200
    return samples(response.text)


def value(found: Samples, name: str, /, **labels: str) -> float | None:
    return found.get((f"gpu_daemon_{name}", frozenset(labels.items())))


async def test_what_has_happened_is_counted(served: ServedDaemon, receiver: Receiver) -> None:
    receiver.plan(Reply(status=410))
    job_id = await served.submit(callback_url=receiver.url)
    await served.finished(job_id)
    await served.finished(await served.submit(reuse_result="true"))
    failed = await served.submit(prompt="fake:error=bad_audio")
    await served.finished(failed)
    assert (await served.client.get(f"/jobs/{job_id}x")).status_code == 404
    assert (await served.client.get("/no/such/path")).status_code == 404
    assert (await served.client.request("PROPFIND", "/health")).status_code == 405
    async with asyncio.timeout(20):
        while not value(found := await scraped(served), "callback_attempts_total", outcome="dead"):
            await asyncio.sleep(0.05)
    assert value(found, "jobs_total", outcome="completed") == 2
    assert value(found, "jobs_total", outcome="failed") == 1
    assert value(found, "jobs_total", outcome="cancelled") == 0
    assert value(found, "jobs_reused_total") == 1
    assert value(found, "job_wait_seconds_count") == 2, "one that is answered at once does not wait"
    assert value(found, "audio_seconds_total", model="demo") == pytest.approx(1.0)
    assert value(found, "realtime_factor_count") == 1
    assert value(found, "stage_duration_seconds_count", stage="transcribing") == 1
    assert value(found, "callback_duration_seconds_count") == 1
    assert value(found, "callbacks", state="dead") == 1
    assert value(found, "jobs_stored", state="completed") == 2
    assert value(found, "queue_jobs", state="queued") == 0
    assert value(found, "queue_oldest_seconds") == 0
    assert value(found, "worker_up", worker="0") == 1
    assert value(found, "worker_jobs", worker="0") == 0
    assert value(found, "model_ready", model="demo") == 1
    assert value(found, "database_up") == 1
    assert value(found, "ready") == 1
    assert (value(found, "disk_free_bytes") or 0) > 0
    assert value(found, "http_requests_total", method="POST", route="/transcribe", status="202") == 3
    assert value(found, "http_requests_total", method="GET", route="/jobs/{job_id}", status="404") == 1
    assert value(found, "http_requests_total", method="GET", route="other", status="404") == 1
    methods = {dict(labels)["method"] for name, labels in found if name == "gpu_daemon_http_requests_total"}
    assert methods == {"GET", "POST", "other"}


async def test_the_base_path_of_the_production_scale_service(served: ServedDaemon) -> None:
    response = await served.client.get("/services/scale/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert value(samples(response.text), "ready") is not None
    again = samples((await served.client.get("/services/scale/metrics")).text)
    assert value(again, "http_requests_total", method="GET", route="/services/scale/metrics", status="200") == 1


async def test_scrapes_do_not_hammer_the_database(served: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, asked = JobStore.counts, 0

    async def counted(self: JobStore) -> dict[JobState, int]:
        nonlocal asked
        asked += 1
        return await counts(self)

    monkeypatch.setattr(JobStore, "counts", counted)
    began = monotonic()
    await asyncio.gather(*(scraped(served) for _ in range(30)))
    assert 1 <= asked <= 1 + (monotonic() - began) / STORED_S


async def test_what_the_database_alone_knows_is_absent_while_it_is_away(
    served: ServedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: JobStore) -> dict[JobState, int]:
        raise Unavailable("the database does not answer")

    monkeypatch.setattr(JobStore, "counts", away)
    found = await scraped(served)
    assert value(found, "jobs_stored", state="completed") is None
    assert value(found, "callbacks", state="dead") is None
    assert value(found, "queue_jobs", state="queued") == 0


def test_a_gpu() -> None:
    found = samples(rendered(Metrics().registry, list(gauges.of_gpus({0: (CARD, FULL)}))).decode())
    assert value(found, "gpu_up", **GPU) == 1
    assert value(found, "gpu_utilization_ratio", **GPU) == pytest.approx(0.63)
    assert value(found, "gpu_memory_used_bytes", **GPU) == 4200 * 1024 * 1024
    assert value(found, "gpu_memory_runner_bytes", **GPU) == 3900 * 1024 * 1024
    assert value(found, "gpu_sm_clock_hertz", **GPU) == 2.52e9
    assert value(found, "gpu_throttled", **GPU) == 1
    assert value(found, "gpu_ecc_uncorrected_errors", **GPU) == 0
    assert value(found, "gpu_processes", **GPU) == 1


@pytest.mark.parametrize("reading", [GpuReading(), GpuReading(reason="GPU is lost", read_at_s=5.0)])
def test_what_is_not_known_of_a_gpu_is_absent_not_nought(reading: GpuReading) -> None:
    found = samples(rendered(Metrics().registry, list(gauges.of_gpus({0: (CARD, reading)}))).decode())
    assert {name for name, labels in found if dict(labels).get("uuid") == "GPU-1"} == {"gpu_daemon_gpu_up"}
    assert value(found, "gpu_up", **GPU) == 0


def test_where_a_pipeline_of_ones_own_lies_is_no_label() -> None:
    worker = replace(WORKER, loaded={"diarization: /home/me/mine": 1, "diarization: pyannote/theirs": 1, "base": 1})
    (*_, loaded) = gauges.of_workers([worker])
    assert [sample.labels["model"] for sample in loaded.samples] == [
        "diarization: mine",
        "diarization: pyannote/theirs",
        "base",
    ]


# The board, the alerts and the page of the documentation, over exactly these names.


async def names(served: ServedDaemon) -> set[str]:
    """All that a daemon with a GPU says."""
    await served.finished(await served.submit())
    happened = Metrics()
    happened.quarantined(0)
    happened.called_back("delivered", 0.1)
    async with asyncio.timeout(10):  # the host's readers need two looks for some of their figures
        while (await served.json("/dashboard/state"))["telemetry"]["host"]["cpu_percent"] is None:
            await asyncio.sleep(0.05)
    of_a_gpu = rendered(happened.registry, [*gauges.of_gpus({0: (CARD, FULL)}), *gauges.of_workers([WORKER])])
    return {name for name, _ in (*await scraped(served), *samples(of_a_gpu.decode()))}


def base(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


async def test_the_board_the_alerts_and_the_documentation_name_what_there_is(served: ServedDaemon) -> None:
    known = await names(served)
    board = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    expressions = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    alerts = (DEPLOY / "prometheus/alerts.yml").read_text()
    asked = {name for text in (*expressions, alerts) for name in NAME.findall(text)}
    assert len(asked) > 30
    assert asked - known == set()
    ours = {base(name) for name in known if name.startswith("gpu_daemon_")}
    documented = set(re.findall(r"`(gpu_daemon_\w+)", (DEPLOY.parent / "docs/monitoring.md").read_text()))
    assert documented == ours, "docs/monitoring.md lists all of them, and no other"


def test_the_board_is_one_that_grafana_takes() -> None:
    board = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time", "refresh"} <= board.keys()
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    shown = panels(board)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in shown:
        assert panel["title"], panel["id"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["targets"], panel["title"]
        assert all("$instance" in target["expr"] for target in panel["targets"]), panel["title"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]
