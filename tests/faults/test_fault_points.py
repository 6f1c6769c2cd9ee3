"""kill -9 of the real daemon at every fault point there is, then a start without it. Faults 1, 2 and 40.

The list of tests is the registry: a point that no scenario here reaches is a test that fails.
"""

import asyncio
import contextlib
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import asyncpg
import httpx2
import pytest

from gpu_daemon.catalogue.official import sha256_in
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.faultpoints import FaultPoint
from tests.invariants import unsettled, violations, watch
from tests.origin import Origin, checkpoint
from tests.receiver import Receiver
from tests.relay import Relay
from tests.running import FAKE_ENGINE, ONE_AT_A_TIME, RunningDaemon, only_demo, unused
from tests.serving import tone
from tests.web import Site, answer

QUIET_S = 25.0
"""Less than the outbox's interval: what is owed at a start is seen at the start."""
DOWNLOAD = """
import asyncio, sys
from pathlib import Path
from gpu_daemon import faultpoints
from gpu_daemon.catalogue.download import Downloader
faultpoints.arm(sys.argv[4])
asyncio.run(Downloader().fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]), lambda done, size: None))
"""


@dataclass
class Scene:
    """A daemon that is to die at a point, and what its clients were told before."""

    directory: Path
    database: ConnectionParameters
    receiver: Receiver
    site: Site
    point: FaultPoint
    daemon: RunningDaemon
    told: list[str] = field(default_factory=list)
    unanswered: list[tuple[str, str]] = field(default_factory=list)
    """Prompts and keys."""
    deleted: list[str] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    """How a job must end; `completed` unless said otherwise."""

    def arm(self, nth: int = 1) -> None:
        """The next start."""
        self.daemon.fault_point = f"{self.point}:kill9:{nth}"

    async def start_armed(self, nth: int = 1) -> None:
        self.arm(nth)
        await self.daemon.start()

    async def submit(self, prompt: str = "", key: str | None = None) -> str:
        """The id, or nothing when the daemon died under it."""
        key = str(uuid.uuid4()) if key is None else key
        fields = {"initial_prompt": prompt, "callback_url": self.receiver.url}
        try:
            response = await self.daemon.client.post(
                "/transcribe",
                files={"file": ("a.wav", tone(0.2))},
                data=fields,
                headers={"Idempotency-Key": key},
            )
        except httpx2.TransportError:
            self.unanswered.append((prompt, key))
            return ""
        assert response.status_code == 202, response.text
        job_id: str = response.json()["job_id"]
        self.told.append(job_id)
        return job_id

    async def ask(self, method: str, path: str) -> None:
        """The answer is lost with the daemon."""
        with contextlib.suppress(httpx2.TransportError):
            await self.daemon.client.request(method, path)

    async def died(self) -> None:
        status = await self.daemon.ended(timeout_s=20)
        assert status == -signal.SIGKILL, f"{self.point} was not reached:\n{self.daemon.tail()}"
        await unused(self.daemon.data_dir)

    async def sql(self, statement: str, *arguments: object) -> object:
        connection = await asyncpg.connect(**self.database.arguments())
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()

    async def quiet(self) -> None:
        """Once every job has ended, every callback has been delivered and the files are gone."""
        async with asyncio.timeout(QUIET_S):
            while await unsettled(self.database) != (0, 0) or list((self.daemon.data_dir / "jobs").iterdir()):
                await asyncio.sleep(0.05)


Scenario: TypeAlias = Callable[[Scene], Awaitable[None]]


async def ordinary_jobs(scene: Scene) -> None:
    await scene.start_armed()
    await asyncio.gather(scene.submit("fake:sleep=0.2"), scene.submit())


async def a_job_that_fails(scene: Scene) -> None:
    await scene.start_armed()
    scene.expected[await scene.submit("fake:error")] = "failed"


async def a_runner_that_dies(scene: Scene) -> None:
    await scene.start_armed()
    await scene.submit(f"fake:once={scene.directory / 'died'},segv")


async def a_stop_that_hands_back(scene: Scene) -> None:
    await scene.start_armed()
    job_id = await scene.submit("fake:sleep=1")
    await scene.daemon.line("job.started", job_id=job_id)
    await scene.daemon.stop()


async def a_waiting_job_is_cancelled(scene: Scene) -> None:
    scene.daemon.set(**ONE_AT_A_TIME)
    await scene.start_armed()
    running = await scene.submit("fake:sleep=1")
    await scene.daemon.line("job.started", job_id=running)
    waiting = await scene.submit()
    await scene.ask("POST", f"/jobs/{waiting}/cancel")
    if scene.point in (FaultPoint.ENDED, FaultPoint.QUEUED_CANCELLED):
        scene.expected[waiting] = "cancelled"


async def a_running_job_is_cancelled(scene: Scene) -> None:
    await scene.start_armed(nth=2 if scene.point is FaultPoint.ENDING else 1)  # first it is cancelled as if it waited
    job_id = await scene.submit("fake:sleep=20")
    await scene.daemon.line("job.started", job_id=job_id)
    await scene.ask("POST", f"/jobs/{job_id}/cancel")
    scene.expected[job_id] = "cancelled"


async def a_job_is_deleted(scene: Scene) -> None:
    scene.daemon.set(AUDIO_TTL_S="3600")
    await scene.start_armed()
    job_id = await scene.submit()
    await scene.daemon.finished(job_id)
    await scene.receiver.wait_for(1)
    await scene.ask("DELETE", f"/jobs/{job_id}")
    scene.deleted.append(job_id)


async def a_result_expires(scene: Scene) -> None:
    scene.daemon.set(AUDIO_TTL_S="3600", RESULT_TTL_S="1")
    await scene.daemon.start()
    job_id = await scene.submit()
    await scene.daemon.line("callback.delivered", job_id=job_id)
    await scene.daemon.stop()
    await scene.sql("UPDATE jobs SET finished_at = finished_at - interval '1 minute'")
    scene.deleted.append(job_id)
    scene.arm()
    await scene.daemon.spawn()


async def a_start_after_a_kill(scene: Scene) -> None:
    await scene.daemon.start()
    job_id = await scene.submit("fake:sleep=1")
    await scene.daemon.line("job.started", job_id=job_id)
    await asyncio.gather(scene.submit(), scene.submit())
    await scene.daemon.kill()
    await unused(scene.daemon.data_dir)
    (scene.daemon.data_dir / "jobs" / "7f9c24e8-3b1a-4f6d-9d3e-0123456789ab").mkdir()
    scene.arm()
    await scene.daemon.spawn()


async def a_file_is_fetched(scene: Scene) -> None:
    scene.daemon.set(FETCH_ALLOWED_NETWORKS="loopback")
    await scene.start_armed()
    asked = {"url": scene.site.put("/a.wav", answer(body=tone(0.2))), "callback_url": scene.receiver.url}
    with contextlib.suppress(httpx2.TransportError):  # it may be fetched, and so the daemon dead, before the answer
        response = await scene.daemon.client.post("/transcribe", json=asked)
        assert response.status_code == 202, response.text
        scene.told.append(response.json()["job_id"])


async def a_callback_is_asked_for_again(scene: Scene) -> None:
    await scene.start_armed()
    job_id = await scene.submit()
    await scene.daemon.line("callback.delivered", job_id=job_id)
    await scene.ask("POST", f"/jobs/{job_id}/callbacks/redeliver")


async def a_result_is_used_again(scene: Scene) -> None:
    scene.daemon.set(REUSE_RESULTS="true")
    await scene.start_armed(nth=2)
    await scene.daemon.finished(await scene.submit())
    await scene.submit()


@asynccontextmanager
async def a_result_that_waits(scene: Scene) -> AsyncIterator[None]:
    """The database is out of reach when the job's result comes, and back in the end."""
    relay = Relay(scene.database)
    through = await relay.start()
    scene.daemon.set(DB_HOST=through.host, DB_PORT=str(through.port))
    await scene.daemon.start()
    job_id = await scene.submit("fake:sleep=1")
    await scene.daemon.line("job.started", job_id=job_id)
    relay.go_away()
    yield
    await relay.stop()
    scene.daemon.set(DB_HOST=scene.database.host, DB_PORT=str(scene.database.port))


async def a_result_is_kept(scene: Scene) -> None:
    scene.arm()
    async with a_result_that_waits(scene):
        await scene.daemon.ended()


async def a_start_with_a_kept_result(scene: Scene) -> None:
    async with a_result_that_waits(scene):
        await scene.daemon.line("result.kept_on_disk")
        await scene.daemon.kill()
    scene.arm()
    await scene.daemon.spawn()


async def a_first_start(scene: Scene) -> None:
    await scene.sql("DROP SCHEMA public CASCADE")
    await scene.sql("CREATE SCHEMA public")
    scene.arm()
    await scene.daemon.spawn()


async def a_download(scene: Scene) -> None:
    """Of a whole daemon only the part that downloads: where a daemon gets checkpoints from cannot be set."""
    origin, target, content = Origin(), scene.directory / "tiny.pt", checkpoint(300_000)
    await origin.start()
    url = origin.publish("tiny", content)
    for fault_point, status in ((f"{scene.point}:kill9", -signal.SIGKILL), ("", 0)):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", DOWNLOAD, url, sha256_in(url), str(target), fault_point),
            env={"NO_PROXY": "127.0.0.1"},
        )
        assert await child.wait() == status
        if target.exists():
            assert target.read_bytes() == content
        else:
            assert content.startswith((scene.directory / "tiny.pt.part").read_bytes())
    assert target.read_bytes() == content
    assert [path.name for path in scene.directory.glob("tiny.pt*")] == ["tiny.pt"]
    await origin.stop()


ENDS = (
    ordinary_jobs,
    a_job_that_fails,
    a_running_job_is_cancelled,
    a_waiting_job_is_cancelled,
    a_result_is_used_again,
)
SCENARIOS: dict[FaultPoint, tuple[Scenario, ...]] = {
    FaultPoint.FILE_WRITTEN: (ordinary_jobs,),
    FaultPoint.FILE_SYNCED: (ordinary_jobs,),
    FaultPoint.INSERTING: (ordinary_jobs,),
    FaultPoint.INSERTED: (ordinary_jobs,),
    FaultPoint.ANSWERING: (ordinary_jobs,),
    FaultPoint.FETCHED: (a_file_is_fetched,),
    FaultPoint.FETCH_NOTED: (a_file_is_fetched,),
    FaultPoint.DECODED: (ordinary_jobs,),
    FaultPoint.CLAIMING: (ordinary_jobs,),
    FaultPoint.CLAIMED: (ordinary_jobs,),
    FaultPoint.RUNNER_TOLD: (ordinary_jobs,),
    FaultPoint.RESULT_RECEIVED: (ordinary_jobs,),
    FaultPoint.RESULT_KEPT: (a_result_is_kept,),
    FaultPoint.ENDING: ENDS,
    FaultPoint.ENDED: ENDS,
    FaultPoint.REMOVING_FILES: (ordinary_jobs,),
    FaultPoint.FILES_REMOVED: (ordinary_jobs,),
    FaultPoint.REQUEUING: (a_runner_that_dies, a_stop_that_hands_back),
    FaultPoint.REQUEUED: (a_runner_that_dies, a_stop_that_hands_back),
    FaultPoint.CANCELLING_QUEUED: (a_waiting_job_is_cancelled,),
    FaultPoint.QUEUED_CANCELLED: (a_waiting_job_is_cancelled,),
    FaultPoint.CANCEL_NOTED: (a_running_job_is_cancelled,),
    FaultPoint.CANCELLED_STOPPED: (a_running_job_is_cancelled,),
    FaultPoint.DELETED: (a_job_is_deleted,),
    FaultPoint.EXPIRED: (a_result_expires,),
    FaultPoint.CALLING_BACK: (ordinary_jobs,),
    FaultPoint.CALLBACK_ANSWERED: (ordinary_jobs,),
    FaultPoint.CALLBACK_RECORDED: (ordinary_jobs,),
    FaultPoint.REDELIVERED: (a_callback_is_asked_for_again,),
    FaultPoint.MIGRATION_WRITTEN: (a_first_start,),
    FaultPoint.MIGRATED: (a_first_start,),
    FaultPoint.KEPT_RESULT_WRITTEN: (a_start_with_a_kept_result,),
    FaultPoint.ORPHAN_ADOPTED: (a_start_after_a_kill,),
    FaultPoint.RECOVERED: (a_start_after_a_kill,),
    FaultPoint.PART_WRITTEN: (a_download,),
    FaultPoint.PART_SYNCED: (a_download,),
    FaultPoint.PUBLISHED: (a_download,),
}
CASES = [
    pytest.param(point, scenario, id=f"{point}-{'nothing' if scenario is None else scenario.__name__}")
    for point in FaultPoint
    for scenario in SCENARIOS.get(point, (None,))
]


@pytest.fixture
async def daemon(tmp_path: Path, database: ConnectionParameters) -> AsyncIterator[RunningDaemon]:
    await only_demo(database)
    await watch(database)
    daemon = RunningDaemon(tmp_path / "data", database, FAKE_ENGINE | {"DRAIN_TIMEOUT_S": "0"})
    yield daemon
    daemon.fault_point = None
    await daemon.close()


@pytest.mark.parametrize(("point", "scenario"), CASES)
async def test_killed_at(
    point: FaultPoint,
    scenario: Scenario | None,
    tmp_path: Path,
    database: ConnectionParameters,
    receiver: Receiver,
    site: Site,
    daemon: RunningDaemon,
) -> None:
    assert scenario is not None, f"nothing here reaches the fault point {point}: write a scenario for it"
    scene = Scene(tmp_path, database, receiver, site, point, daemon)
    await scenario(scene)
    if scenario is not a_download:
        await scene.died()
        await _rises_again(scene)


async def _rises_again(scene: Scene) -> None:
    daemon = scene.daemon
    daemon.fault_point = None
    daemon.set(AUDIO_TTL_S="0")
    await daemon.start()
    await watch(scene.database)
    await scene.quiet()
    for prompt, key in scene.unanswered or [("", "another")]:
        job_id = await scene.submit(prompt, key)
        assert await scene.submit(prompt, key) == job_id, "one key is one job"
        if prompt == "fake:error":
            scene.expected[job_id] = "failed"
    await scene.quiet()
    if not scene.site.requests:
        assert await scene.sql("SELECT count(*) FROM jobs") == len(set(scene.told) - set(scene.deleted))
    assert (
        await violations(
            *(scene.database, daemon.data_dir / "jobs", scene.receiver.requests),
            told=scene.told,
            deleted=scene.deleted,
        )
        == []
    )
    for job_id in set(scene.told) - set(scene.deleted):
        job = await daemon.job(job_id)
        assert job["status"] == scene.expected.get(job_id, "completed")
        assert job["attempt"] <= 2, "one kill costs one attempt at most"
    assert await daemon.stop() == 0
    await unused(daemon.data_dir)
