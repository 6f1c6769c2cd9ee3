"""Health, models, workers, the page's state, errors, and the pages themselves."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_daemon.api.schemas import DashboardState, Health, LanguagePage, ModelPage, ModelView, Ready, WorkerPage
from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.migrate import migrate
from gpu_daemon.database.pool import ConnectionParameters, open_pool
from gpu_daemon.errors import SettingsError
from gpu_daemon.jobs.languages import LANGUAGES
from tests.conftest import MIGRATIONS
from tests.serving import ServedDaemon, served_daemon

HOLD = "fake:sleep=30"


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        yield served


@pytest.fixture
async def single(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    """One job at a time: others wait."""
    async with served_daemon(tmp_path, database, monkeypatch, jobs_per_gpu=1) as served:
        yield served


async def test_health_says_what_runs(served: ServedDaemon) -> None:
    job_id = await served.submit(prompt=HOLD)
    await served.until(job_id, lambda job: job["stage"] == "transcribing")
    health = Health.model_validate(await served.json("/health"))
    assert (health.status, health.reason, health.busy, health.gpu_available) == ("ready", None, True, False)
    assert health.models_loaded == {"whisper": True, "pyannote": False}
    spoken = await served.finished(await served.submit(task="diarize"))
    assert spoken["result"]["diarization"]["model"] == "fake_pipeline"
    assert (await served.json("/health"))["models_loaded"] == {"whisper": True, "pyannote": True}
    assert health.current_job is not None
    assert health.current_job.job_id == job_id
    ready = Ready.model_validate(await served.json("/health/ready"))
    assert (ready.status, ready.database) == ("ready", True)
    assert await served.json("/health/live") == {"status": "alive"}
    (worker,) = WorkerPage.model_validate(await served.json("/workers")).workers
    assert worker.state == "busy"
    assert [(job.id, job.model, job.stage) for job in worker.jobs] == [(job_id, "demo", "transcribing")]
    assert worker.loaded["demo"] > 1


async def test_without_its_database_the_daemon_says_so_and_stays_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres")
    database = await server.start()
    try:
        pool = await open_pool(database)
        await migrate(pool, MIGRATIONS)
        await pool.close()
        async with served_daemon(tmp_path, database, monkeypatch) as served:
            await served.finished(await served.submit())
            await server.stop()
            await without_database(served)
    finally:
        await server.stop()


async def without_database(served: ServedDaemon) -> None:
    response = await served.client.get("/health/ready")
    assert response.status_code == 503
    assert Ready.model_validate(response.json()).reason == "the database does not answer"
    assert "retry-after" in response.headers
    assert (await served.client.get("/health")).status_code == 200
    assert (await served.client.get("/health/live")).status_code == 200
    state = DashboardState.model_validate(await served.json("/dashboard/state"))
    assert (state.queue.completed, state.queue.failed) == (None, None)
    for response in (
        await served.client.get("/jobs"),
        await served.client.get("/queue/stats"),
        await served.post(),
        await served.client.patch("/models/demo", json={"enabled": True}),
    ):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "database_unavailable"
        assert int(response.headers["retry-after"]) > 0
    assert served.directories() == []


async def test_models_and_languages(served: ServedDaemon) -> None:
    page = ModelPage.model_validate(await served.json("/models"))
    assert {model.name: model.state for model in page.models if model.enabled} == {"demo": "ready"}
    assert "base" in {model.name for model in page.models}
    languages = LanguagePage.model_validate(await served.json("/languages")).languages
    assert {language.code: language.name for language in languages} == dict(LANGUAGES)


async def test_a_model_is_disabled_and_enabled(served: ServedDaemon) -> None:
    response = await served.client.patch("/models/demo", json={"enabled": False})
    assert response.status_code == 200
    assert ModelView.model_validate(response.json()).state == "disabled"
    refused = await served.post(model="demo")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_found")
    response = await served.client.patch("/models/demo", json={"enabled": True})
    assert ModelView.model_validate(response.json()).enabled
    assert (await served.post(model="demo")).status_code == 202


async def test_a_wrong_change_of_a_model_is_refused(served: ServedDaemon) -> None:
    for name, body, status in (
        ("nope", b'{"enabled": true}', 404),
        ("%00", b'{"enabled": true}', 404),
        ("demo", b"", 400),
        ("demo", b'{"enabled": "yes"}', 400),
        ("demo", b'{"enabled": true, "x": 1}', 400),
        ("demo", b"[" * 50_000, 400),
        ("demo", b" " * 70_000, 413),
    ):
        response = await served.client.patch(f"/models/{name}", content=body)
        assert response.status_code == status, (name, body[:30])
        assert response.json()["error"]["message"]


async def test_the_page_gets_its_state(single: ServedDaemon) -> None:
    done = await single.submit()
    await single.finished(done)
    running, waiting = await single.submit(prompt=HOLD), await single.submit(name="secret-name.wav")
    await single.until(running, lambda job: job["status"] == "processing")
    response = await single.client.get("/dashboard/state")
    state = DashboardState.model_validate(response.json())
    assert state.health.status == "ready"
    assert (state.queue.queued_ids, state.queue.running_ids, state.queue.completed) == ([waiting], [running], 1)
    pipeline = Path(single.settings.diarization_model).name
    assert [model.name for model in state.models if model.enabled] == ["demo", pipeline]
    assert (state.models[-1].source, state.models[-1].state) == ("pipeline", "ready")
    assert len(state.models) > 5
    assert "secret-name" not in response.text


async def test_every_error_is_in_the_envelope_with_an_id(served: ServedDaemon) -> None:
    for method, path, status, code in (
        ("GET", "/nothing/here", 404, "not_found"),
        ("DELETE", "/queue", 405, "method_not_allowed"),
        ("GET", "/transcribe", 405, "method_not_allowed"),
        ("GET", "/static/../../etc/passwd", 404, "not_found"),
        ("GET", "/static/%2e%2e/%2e%2e/pyproject.toml", 404, "not_found"),
        ("GET", "/jobs?limit=x", 400, "invalid_value"),
    ):
        response = await served.client.request(method, path, headers={"x-request-id": "order-7.a:b_c"})
        assert response.status_code == status, path
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert response.headers["x-request-id"] == "order-7.a:b_c"


async def test_405_names_every_method_of_the_address(served: ServedDaemon) -> None:
    response = await served.client.put("/jobs/7f9c24e8-3b1a-4f6d-9d3e-0123456789ab")
    assert (response.status_code, response.headers["allow"]) == (405, "DELETE, GET, HEAD")


async def test_every_get_has_its_head(served: ServedDaemon) -> None:
    job_id = await served.submit(prompt=HOLD)
    await served.until(job_id, lambda job: job["status"] == "processing")  # until then it may just become ready
    paths = ("/health", "/health/ready", "/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/result", "/metrics", "/", "/docs")
    for path in (*paths, "/openapi.json", "/services/rocm/health", "/nothing", "/static/page.js"):
        whole, head = await served.client.get(path), await served.client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        assert head.headers["content-type"] == whole.headers["content-type"], path
        assert head.headers["x-request-id"]
    events = await served.client.head(f"/jobs/{job_id}/events")
    assert (events.status_code, events.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_a_strange_request_id_is_replaced(served: ServedDaemon) -> None:
    for said in ("", "a b", "x" * 200, "<script>"):
        response = await served.client.get("/health", headers={"x-request-id": said})
        assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"]), said


async def test_the_pages_are_the_daemons_own_and_lock_others_out(served: ServedDaemon) -> None:
    for path in ("/", "/docs", "/redoc"):
        response = await served.client.get(path)
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy  # so none but our own files
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assets = re.findall(r'(?:src|href)="(/static/[^"]+)"', response.text)
        assert assets
        for asset in assets:
            assert (await served.client.get(asset)).status_code == 200, asset
    versioned = await served.client.get("/static/vendor/redoc-2.5.4/LICENSE")
    assert "immutable" in versioned.headers["cache-control"]
    assert (await served.client.get("/static/page.js")).headers["cache-control"] == "no-cache"


async def test_the_api_describes_itself(served: ServedDaemon) -> None:
    document = await served.json("/openapi.json")
    text = (await served.client.get("/openapi.json")).text
    assert "422" not in {
        status for path in document["paths"].values() for op in path.values() for status in op["responses"]
    }
    for reference in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert reference in document["components"]["schemas"]
    tags = [tag["name"] for tag in document["tags"]]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert set(operation["tags"]) <= set(tags), (method, path)
            assert "/health" in path or operation["security"], (method, path)
    form = document["paths"]["/transcribe"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["format"] == "binary"


async def test_a_default_language_that_does_not_exist_stops_the_start(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="DEFAULT_LANGUAGE: Whisper has no language 'Rusian'"):
        async with served_daemon(tmp_path, database, monkeypatch, default_language="Rusian"):
            pass
