"""Something unforeseen is raised in the middle of a transition: it costs what was being done, and nothing after it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.faultpoints import FaultPoint, arm
from tests.serving import served_daemon


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm(None)


@pytest.mark.parametrize("point", [FaultPoint.CLAIMING, FaultPoint.CLAIMED])
async def test_a_claim_that_breaks_loses_no_job(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch, point: FaultPoint
) -> None:
    """Before its commit, and after."""
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        with capture_logs() as logs:
            arm(f"{point}:raise")
            job = await served.finished(await served.submit())
        assert (job["status"], job["attempt"]) == ("completed", 1)
        broke = [line["job_id"] for line in logs if line["event"] == "job.broke_the_worker"]
        assert broke == [job["job_id"]]


@pytest.mark.parametrize("point", [FaultPoint.RESULT_RECEIVED, FaultPoint.ENDING])
async def test_a_worker_that_breaks_goes_on(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch, point: FaultPoint
) -> None:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        arm(f"{point}:raise")
        job = await served.finished(await served.submit())
        assert (job["status"], job["attempt"]) == ("failed", 1)
        job = await served.finished(await served.submit())
        assert (job["status"], job["attempt"]) == ("completed", 1)


async def test_a_job_without_a_model_is_ended_at_the_second_try(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_daemon(tmp_path, database, monkeypatch, jobs_per_gpu=1) as served:
        running = await served.submit(initial_prompt="fake:sleep=30")
        await served.until(running, lambda job: job["status"] == "processing")
        waiting = await served.submit()
        with capture_logs() as logs:
            arm(f"{FaultPoint.ENDING}:raise")
            response = await served.client.patch("/models/demo", json={"enabled": False})
            assert response.status_code == 200, response.text
            job = await served.finished(waiting)
        assert (job["status"], job["error"]["code"]) == ("failed", "model_unavailable")
        assert [line["loop"] for line in logs if line["event"] == "scheduler.loop_broke"] == ["follow models"]
