"""The catalogue on a real database, a real server of checkpoints and real files."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon import clock
from gpu_daemon.catalogue.catalogue import Catalogue, ModelState, ModelStatus
from gpu_daemon.catalogue.hashing import sha256_of
from gpu_daemon.catalogue.official import OFFICIAL_URLS
from gpu_daemon.catalogue.supply import BUNDLED_DIRECTORY
from gpu_daemon.database.pool import Pool
from gpu_daemon.errors import InvalidRequest, JobError, Unavailable
from gpu_daemon.events import EventHub
from gpu_daemon.store.models import ModelStore
from tests.origin import Origin, Reply, checkpoint

CONTENT = checkpoint()
SIZE = len(CONTENT)
AT_ONCE = 0.0
LATER_S = 40.0


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    origin = Origin()
    await origin.start()
    yield origin
    await origin.stop()


class Shop:
    """A database's models, a directory, and a server that publishes them; catalogues are opened on the three."""

    def __init__(self, pool: Pool, origin: Origin, directory: Path, closing: AsyncExitStack) -> None:
        self.pool, self.origin, self.directory = pool, origin, directory
        self.hub = EventHub()
        self.sources = dict.fromkeys(OFFICIAL_URLS, origin.url + "/models/00/absent.pt")
        self._closing = closing

    def publish(self, name: str, content: bytes = CONTENT) -> None:
        self.sources[name] = self.origin.publish(name, content)

    async def row(self, name: str, source: str = "whisper", path: str | None = None, sha256: str | None = None) -> None:
        """An enabled row."""
        async with self.pool.acquire() as db, db.transaction():
            key = await db.fetchval(
                "INSERT INTO whisper_models (name, source, path, sha256) VALUES ($1, $2, $3, $4) RETURNING id_model",
                name,
                source,
                path,
                sha256,
            )
            await db.execute("INSERT INTO model_settings VALUES ($1, true)", key)

    async def enable(self, *names: str) -> None:
        """These and no others."""
        await self.pool.execute(
            """UPDATE model_settings SET enabled =
               id_model IN (SELECT id_model FROM whisper_models WHERE name = ANY($1))""",
            names,
        )

    async def open(self, *, delay_s: float = LATER_S) -> Catalogue:
        catalogue = Catalogue(
            ModelStore(self.pool),
            self.directory,
            self.hub,
            sources=self.sources,
            delay_s=lambda failures: delay_s,
        )
        self._closing.push_async_callback(catalogue.stop)
        await catalogue.start()
        return catalogue

    async def until(
        self, catalogue: Catalogue, name: str, reached: Callable[[ModelStatus | None], bool], timeout_s: float = 10
    ) -> ModelStatus | None:
        with self.hub.listen("model") as events:
            try:
                async with asyncio.timeout(timeout_s):
                    while not reached(catalogue.status(name)):
                        await events.next()
            except TimeoutError:
                raise AssertionError(f"{name} is {catalogue.status(name)}") from None
        return catalogue.status(name)

    async def state(self, catalogue: Catalogue, name: str, state: ModelState) -> ModelStatus:
        status = await self.until(catalogue, name, lambda now: now is not None and now.state is state)
        assert status is not None
        return status


@pytest.fixture
async def shop(pool: Pool, origin: Origin, tmp_path: Path) -> AsyncIterator[Shop]:
    """`base`, which the server has, and nothing else is enabled."""
    async with AsyncExitStack() as closing:
        shop = Shop(pool, origin, tmp_path / "models", closing)
        shop.publish("base")
        await shop.enable("base")
        yield shop


def kept(catalogue: Catalogue, name: str) -> Path:
    spec = catalogue.spec(name)
    assert spec is not None
    return spec.path


# Downloads.


async def test_an_enabled_model_is_downloaded(shop: Shop) -> None:
    with shop.hub.listen("model") as events:
        catalogue = await shop.open()
        status = await shop.state(catalogue, "base", ModelState.READY)
        seen: list[Any] = []
        while not seen or seen[-1] != "ready":
            event = await events.next()
            if (event.kind, event.subject) == ("model", "base"):
                seen.append(event.data["state"])
    assert [state for at, state in enumerate(seen) if state not in seen[:at]] == ["waiting", "downloading", "ready"]
    assert (status.size_bytes, status.done_bytes) == (SIZE, SIZE)
    assert (status.source, status.enabled, status.error, status.retry_at) == ("whisper", True, None, None)
    spec = catalogue.spec("base")
    assert spec is not None
    assert (spec.name, spec.official) == ("base", "base")
    assert spec.path.is_absolute()
    assert spec.path.read_bytes() == CONTENT
    assert catalogue.settled
    catalogue.check("base")


async def test_start_does_not_wait_for_downloads(shop: Shop, origin: Origin) -> None:
    origin.plan(Reply(hold_after=100_000))
    catalogue = await shop.open()
    await origin.held()
    status = await shop.until(catalogue, "base", lambda now: now is not None and now.size_bytes is not None)
    assert status is not None
    assert (status.state, status.size_bytes) == (ModelState.DOWNLOADING, SIZE)
    assert not catalogue.settled
    assert catalogue.spec("base") is None
    catalogue.check("base")
    waiting = asyncio.create_task(catalogue.wait("base"))
    origin.release()
    assert (await asyncio.wait_for(waiting, 10)).path.read_bytes() == CONTENT


async def test_progress_and_rate_are_shown(shop: Shop, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_daemon.catalogue.supply.PROGRESS_EVERY_S", 0.0)
    shop.publish("base", checkpoint(3 << 20))
    origin.plan(Reply(hold_after=(2 << 20) + 50_000))
    with shop.hub.listen("model") as events:
        catalogue = await shop.open()
        seen: list[int] = []
        while not seen or seen[-1] < 2 << 20:
            event = await asyncio.wait_for(events.next(), 10)
            seen.append(event.data["done_bytes"])
    assert seen == sorted(seen)
    assert len(set(seen)) >= 3
    status = catalogue.status("base")
    assert status is not None
    assert status.rate_bytes_per_s is not None
    assert status.rate_bytes_per_s > 0
    assert status.size_bytes == 3 << 20
    origin.release()


async def test_two_downloads_at_once_and_no_more(shop: Shop, origin: Origin) -> None:
    names = ["tiny", "base", "small"]
    for seed, name in enumerate(names):
        shop.publish(name, checkpoint(seed=seed))
    await shop.enable(*names)
    origin.plan(Reply(hold_after=1), Reply(hold_after=1))
    catalogue = await shop.open()
    await origin.requested(2)
    states = sorted(status.state for status in catalogue.statuses() if status.enabled)
    assert states == [ModelState.DOWNLOADING, ModelState.DOWNLOADING, ModelState.WAITING]
    origin.release()
    for name in names:
        await shop.state(catalogue, name, ModelState.READY)


async def test_an_alias_is_the_same_checkpoint(shop: Shop, origin: Origin) -> None:
    shop.publish("large-v3")
    shop.sources["large"] = shop.sources["large-v3"]
    await shop.row("large")
    await shop.enable("large", "large-v3")
    catalogue = await shop.open(delay_s=AT_ONCE)
    large, plain = await catalogue.wait("large"), await catalogue.wait("large-v3")
    assert (large.name, large.official, large.path) == ("large", "large-v3", plain.path)
    assert len(origin.ranges) == 1, "it comes once"


# Failures.


async def test_a_cut_download_goes_on_by_itself(shop: Shop, origin: Origin) -> None:
    origin.plan(Reply(cut_after=100_000), Reply(cut_after=50_000))
    catalogue = await shop.open(delay_s=AT_ONCE)
    await shop.state(catalogue, "base", ModelState.READY)
    assert origin.ranges == [None, "100000", "150000"]


async def test_offline_the_reason_is_plain_and_the_next_try_announced(shop: Shop, origin: Origin) -> None:
    await origin.stop()
    before = clock.now()
    catalogue = await shop.open()
    status = await shop.state(catalogue, "base", ModelState.FAILED)
    assert status.error is not None
    assert status.error.startswith("could not reach 127.0.0.1 (")
    assert status.error.endswith("; next try in 40 s")
    assert status.retry_at is not None
    assert timedelta(seconds=39) < status.retry_at - before < timedelta(seconds=60)
    with pytest.raises(Unavailable, match=r"the model base cannot be used: could not reach") as raised:
        catalogue.check("base")
    assert (raised.value.code, raised.value.param) == ("model_unavailable", "model")
    assert 1 <= raised.value.retry_after_s <= 40
    with pytest.raises(JobError, match="could not reach") as ended:
        await catalogue.wait("base")
    assert ended.value.code == "model_unavailable"
    assert catalogue.settled


async def test_it_is_tried_again_when_asked(shop: Shop, origin: Origin) -> None:
    origin.plan(Reply(status=404))
    catalogue = await shop.open()
    status = await shop.state(catalogue, "base", ModelState.FAILED)
    assert status.error == "127.0.0.1 answered 404 Planned; next try in 40 s"
    catalogue.retry("base")
    catalogue.retry("no-such-model")
    await shop.state(catalogue, "base", ModelState.READY)


async def test_it_is_tried_again_later_and_later(shop: Shop, origin: Origin) -> None:
    origin.plan(Reply(status=503), Reply(corrupt=True), Reply(status=503), Reply(cut_after=100_000), Reply(status=503))
    failures: list[int] = []

    def delay_s(count: int) -> float:
        failures.append(count)
        return AT_ONCE

    catalogue = Catalogue(ModelStore(shop.pool), shop.directory, shop.hub, sources=shop.sources, delay_s=delay_s)
    await catalogue.start()
    await shop.state(catalogue, "base", ModelState.READY)
    await catalogue.stop()
    assert failures == [1, 2, 3, 1, 2], "what was thrown away is no progress; what can be taken up is"


async def test_the_daemon_works_while_one_model_fails(shop: Shop) -> None:
    await shop.enable("base", "small", "demo")
    catalogue = await shop.open()
    await shop.state(catalogue, "small", ModelState.FAILED)
    await shop.state(catalogue, "base", ModelState.READY)
    await shop.state(catalogue, "demo", ModelState.READY)
    catalogue.check("base")
    assert catalogue.default(None) == "base"


async def test_a_name_that_openai_does_not_have(shop: Shop, origin: Origin) -> None:
    await shop.row("gigantic")
    catalogue = await shop.open(delay_s=AT_ONCE)
    status = await shop.state(catalogue, "gigantic", ModelState.FAILED)
    assert status.error is not None
    assert status.error.startswith("openai has no model of this name; it has tiny.en, tiny, base.en, base,")
    assert status.error.endswith("large-v3-turbo, turbo")
    assert status.retry_at is None
    with pytest.raises(Unavailable) as raised:
        catalogue.check("gigantic")
    assert raised.value.retry_after_s == 600


# Files that are already there.


async def test_a_restart_does_not_hash_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await shop.open()
    await shop.state(first, "base", ModelState.READY)
    await first.stop()
    hashed: list[Path] = []

    async def counted(path: Path) -> str:
        hashed.append(path)
        return await sha256_of(path)

    monkeypatch.setattr("gpu_daemon.catalogue.verified.sha256_of", counted)
    second = await shop.open()
    status = second.status("base")
    assert status is not None
    assert status.state is ModelState.READY, "known when start returns"
    assert hashed == []
    await second.stop()

    path = kept(second, "base")
    os.utime(path, ns=(1, 1))
    third = await shop.open()
    assert hashed == [path], "another time of change: it is read again"
    assert kept(third, "base") == path


async def test_a_memo_that_makes_no_sense_is_no_memo(shop: Shop, origin: Origin) -> None:
    first = await shop.open()
    await shop.state(first, "base", ModelState.READY)
    await first.stop()
    for nonsense in ("{", "[1]", '{"base.pt": 7}', json.dumps({str(kept(first, "base")): {"size_bytes": 1}})):
        (shop.directory / "verified.json").write_text(nonsense)
        catalogue = await shop.open()
        assert catalogue.spec("base") is not None
        await catalogue.stop()
    assert len(origin.ranges) == 1


async def test_a_damaged_file_is_downloaded_again(shop: Shop, origin: Origin) -> None:
    first = await shop.open()
    await shop.state(first, "base", ModelState.READY)
    await first.stop()
    kept(first, "base").write_bytes(CONTENT[:-1] + b"?")
    second = await shop.open()
    await shop.state(second, "base", ModelState.READY)
    assert kept(second, "base").read_bytes() == CONTENT
    assert len(origin.ranges) == 2


async def test_a_file_that_goes_away_is_noticed(shop: Shop) -> None:
    catalogue = await shop.open()
    await shop.state(catalogue, "base", ModelState.READY)
    kept(catalogue, "base").unlink()
    await catalogue.refresh()  # as the poll does
    assert catalogue.spec("base") is None
    await shop.state(catalogue, "base", ModelState.READY)
    assert kept(catalogue, "base").read_bytes() == CONTENT


async def test_start_has_a_limit_to_its_patience(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = asyncio.Event()

    async def slow(path: Path) -> str:
        await hashed.wait()
        return await sha256_of(path)

    monkeypatch.setattr("gpu_daemon.catalogue.verified.sha256_of", slow)
    monkeypatch.setattr("gpu_daemon.catalogue.catalogue.START_PATIENCE_S", 0.01)
    await shop.enable("demo")
    catalogue = await shop.open()
    await shop.state(catalogue, "demo", ModelState.VERIFYING)
    catalogue.check("demo")
    hashed.set()
    await shop.state(catalogue, "demo", ModelState.READY)


# Local checkpoints.


async def test_the_bundled_demo(shop: Shop) -> None:
    await shop.enable("demo")
    catalogue = await shop.open()
    status = catalogue.status("demo")
    assert status is not None
    assert status.error is None
    assert (status.state, status.source) == (ModelState.READY, "file")
    spec = catalogue.spec("demo")
    assert spec is not None
    assert (spec.path, spec.official) == (BUNDLED_DIRECTORY / "espeak-whisper.pt", None)


async def test_a_local_checkpoint(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "ours.pt"
    file.write_bytes(CONTENT)
    await shop.row("ours", "file", str(file), hashlib.sha256(CONTENT).hexdigest().upper())
    catalogue = await shop.open()
    assert kept(catalogue, "ours") == file


async def test_openais_checkpoint_is_known_under_any_name(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr("gpu_daemon.catalogue.supply.NAME_BY_SHA256", {sha256: "large-v2"})
    file = shop.directory.parent / "ours.pt"
    file.write_bytes(CONTENT)
    await shop.row("ours", "file", str(file), sha256)
    spec = (await shop.open()).spec("ours")
    assert spec is not None
    assert spec.official == "large-v2", "its alignment heads follow from that"


async def test_a_local_checkpoint_that_is_another(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "ours.pt"
    file.write_bytes(CONTENT)
    await shop.row("ours", "file", str(file), "ab" * 32)
    catalogue = await shop.open()
    status = await shop.state(catalogue, "ours", ModelState.FAILED)
    found = hashlib.sha256(CONTENT).hexdigest()[:12]
    assert status.error == (
        f"its file is not the one that its row means (SHA-256 {found}…, not abababababab…); next try in 40 s"
    )
    assert file.exists(), "it is not ours to remove"
    file.write_bytes(checkpoint(seed=2))
    await shop.pool.execute(
        "UPDATE whisper_models SET sha256 = $1 WHERE name = 'ours'", hashlib.sha256(file.read_bytes()).hexdigest()
    )
    await shop.state(catalogue, "ours", ModelState.READY)


async def test_a_local_checkpoint_that_is_not_there_yet(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "ours.pt"
    await shop.row("ours", "file", str(file), hashlib.sha256(CONTENT).hexdigest())
    catalogue = await shop.open()
    status = await shop.state(catalogue, "ours", ModelState.FAILED)
    assert status.error == "its file does not exist; next try in 40 s"
    file.write_bytes(CONTENT)
    catalogue.retry("ours")
    await shop.state(catalogue, "ours", ModelState.READY)


@pytest.mark.parametrize("path", ["relative.pt", "bundled:", "bundled:../settings.py", "bundled:/etc/passwd"])
async def test_a_path_that_cannot_be_meant(shop: Shop, path: str) -> None:
    await shop.row("ours", "file", path, "ab" * 32)
    catalogue = await shop.open()
    status = await shop.state(catalogue, "ours", ModelState.FAILED)
    assert status.error == "the path in its row must be absolute, or bundled:NAME"
    assert status.retry_at is None


async def test_a_file_that_cannot_be_read(shop: Shop, tmp_path: Path) -> None:
    await shop.row("ours", "file", str(tmp_path), "ab" * 32)
    catalogue = await shop.open()
    status = await shop.state(catalogue, "ours", ModelState.FAILED)
    assert status.error == "its file cannot be read: Is a directory; next try in 40 s"


# Changes of the tables.


async def test_a_model_enabled_while_running(shop: Shop) -> None:
    shop.publish("tiny", checkpoint(seed=3))
    catalogue = await shop.open()
    await shop.state(catalogue, "base", ModelState.READY)
    ready = catalogue.spec("base")
    await shop.enable("base", "tiny")
    await shop.state(catalogue, "tiny", ModelState.READY)
    assert catalogue.spec("base") is ready, "the others are left alone"


async def test_enabling_through_the_catalogue_takes_effect_at_once(shop: Shop, origin: Origin) -> None:
    catalogue = await shop.open()
    await shop.state(catalogue, "base", ModelState.READY)
    assert await catalogue.enable("base", False)
    status = catalogue.status("base")
    assert status is not None
    assert status.state is ModelState.DISABLED
    assert not await catalogue.enable("no such model", True)

    shop.publish("tiny", checkpoint(seed=3))
    origin.plan(Reply(status=503))
    assert await catalogue.enable("tiny", True)
    await shop.state(catalogue, "tiny", ModelState.FAILED)
    assert await catalogue.enable("tiny", True), "as a person does who has mended what was wrong"
    await shop.state(catalogue, "tiny", ModelState.READY)


async def test_a_model_disabled_while_it_downloads(shop: Shop, origin: Origin) -> None:
    origin.plan(Reply(hold_after=100_000))
    catalogue = await shop.open()
    await origin.held()
    waiting = asyncio.create_task(catalogue.wait("base"))
    await shop.enable()
    status = await shop.state(catalogue, "base", ModelState.DISABLED)
    assert not status.enabled
    with pytest.raises(JobError, match="base is not enabled any more"):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(InvalidRequest, match="there is no model 'base' here; enabled: none"):
        catalogue.check("base")
    assert catalogue.settled
    assert [path.name for path in shop.directory.iterdir()] == ["base.pt.part"]
    origin.release()
    await shop.enable("base")
    await shop.state(catalogue, "base", ModelState.READY)


async def test_a_model_removed_while_it_downloads(shop: Shop, origin: Origin) -> None:
    origin.plan(Reply(hold_after=100_000))
    catalogue = await shop.open()
    await origin.held()
    await shop.pool.execute("DELETE FROM whisper_models WHERE name = 'base'")
    await shop.until(catalogue, "base", lambda status: status is None)
    assert catalogue.spec("base") is None
    with pytest.raises(JobError):
        await catalogue.wait("base")
    assert not (shop.directory / "base.pt").exists()


async def test_changes_are_noticed_after_the_database_cut_the_connection(shop: Shop) -> None:
    await shop.enable("demo")
    catalogue = await shop.open()
    await shop.enable("base", "demo")
    await shop.state(catalogue, "base", ModelState.READY)  # so it listens
    cut = await shop.pool.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert cut
    await shop.enable("base")
    await shop.state(catalogue, "demo", ModelState.DISABLED)


# Choosing.


async def test_which_model_is_the_default(shop: Shop) -> None:
    catalogue = await shop.open()
    expected: dict[tuple[str, ...], str | None] = {
        ("base", "demo", "tiny"): "base",
        ("tiny",): "tiny",
        ("tiny", "demo"): "tiny",
        ("demo",): "demo",
        ("tiny", "small"): None,
        (): None,
    }
    for enabled, default in expected.items():
        await shop.enable(*enabled)
        await catalogue.refresh()
        if default is not None:
            assert catalogue.default(None) == default
        else:
            with pytest.raises(InvalidRequest) as raised:
                catalogue.default(None)
            assert raised.value.param == "model"
        assert catalogue.default("large-v3") == "large-v3", "what the operator says stands; check() judges it"


async def test_unknown_and_disabled_models_are_refused(shop: Shop) -> None:
    await shop.enable("base", "demo")
    catalogue = await shop.open()
    for name in ("tiny", "no such model", "../base", ""):
        with pytest.raises(InvalidRequest) as raised:
            catalogue.check(name)
        assert raised.value.message == f"there is no model {name!r} here; enabled: base, demo"
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(InvalidRequest) as raised:
        catalogue.check("x" * 100_000)
    assert len(raised.value.message) < 300


# Starting and stopping.


async def test_stop_before_start_and_twice(shop: Shop, origin: Origin) -> None:
    catalogue = Catalogue(ModelStore(shop.pool), shop.directory, shop.hub, sources=shop.sources)
    await catalogue.stop()
    origin.plan(Reply(hold_after=100_000))
    await catalogue.start()
    await origin.held()
    await catalogue.stop()
    await catalogue.stop()
    leftover = [task for task in asyncio.all_tasks() if task.get_name() in ("models", "supply of base")]
    assert leftover == []


async def test_a_start_that_fails_leaves_nothing_running(shop: Shop) -> None:
    await shop.pool.execute("DROP TABLE model_settings, whisper_models")
    with pytest.raises(Exception, match="whisper_models"):
        await shop.open()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "models"]


async def test_two_catalogues_on_one_directory(shop: Shop, origin: Origin) -> None:
    origin.plan(Reply(hold_after=100_000))
    first = await shop.open()
    await origin.held()
    second = await shop.open(delay_s=0.01)
    status = await shop.until(second, "base", lambda now: now is not None and now.error is not None)
    assert status is not None
    assert status.state is ModelState.WAITING
    assert status.error is not None
    assert status.error.startswith("it is already being downloaded by another process")
    second.check("base")
    origin.release()
    await shop.state(second, "base", ModelState.READY)
    await shop.state(first, "base", ModelState.READY)
    assert kept(first, "base").read_bytes() == CONTENT
    assert len(origin.ranges) == 1
