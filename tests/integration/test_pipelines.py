"""A pipeline's way from its name to checked files: a real server that speaks as the hub does, real files."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gpu_daemon.catalogue.hub import HubFile, Listing
from gpu_daemon.catalogue.pipelines import Pipelines
from gpu_daemon.catalogue.status import ModelState
from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.errors import JobError, PipelineChanged, PipelineGated, PipelineUnavailable
from gpu_daemon.events import EventHub
from tests.fake_hub import CONFIG, FakeHub, as_directory, pipeline_files
from tests.origin import Reply

NAME = "somebody/speaker-diarization"
GOOD, STRANGER, WRONG = SecretStr("hf_good"), SecretStr("hf_stranger"), SecretStr("hf_wrong")
FILES = pipeline_files()
MADE_OF = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items() if path != "README.md"}
BYTES = sum(len(FILES[path]) for path in MADE_OF)
LATER_S = 60.0


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    hub = FakeHub()
    hub.members.add(GOOD.get_secret_value())
    hub.strangers.add(STRANGER.get_secret_value())
    await hub.start()
    yield hub
    await hub.stop()


class Shop:
    """One directory and one hub; pipelines are opened on the two."""

    def __init__(self, hub: FakeHub, directory: Path, closing: AsyncExitStack) -> None:
        self.hub, self.directory = hub, directory
        self.events = EventHub()
        self._closing = closing

    def path(self, commit: str, path: str = "", name: str = NAME) -> Path:
        return self.directory / name / commit / path

    async def open(self, name: str = NAME, **given: Any) -> Pipelines:
        said: dict[str, Any] = {"endpoint": self.hub.url, "delay_s": lambda _: LATER_S}
        pipelines = Pipelines(name, self.directory, self.events, **said | given)
        await pipelines.start()
        self._closing.push_async_callback(pipelines.stop)
        return pipelines

    async def until(self, pipelines: Pipelines, *states: ModelState, timeout_s: float = 20) -> None:
        """Once it stands so and nobody is at it."""
        with self.events.listen("model") as events:
            async with asyncio.timeout(timeout_s):
                while pipelines.fetching or pipelines.status().state not in states:
                    await events.next()


@pytest.fixture
async def shop(hub: FakeHub, tmp_path: Path) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as closing:
        yield Shop(hub, tmp_path / "diarization_models", closing)


def are(spec: PipelineSpec, files: dict[str, str]) -> bool:
    """The spec says so, and it is true."""
    found = {path: hashlib.sha256((spec.directory / path).read_bytes()).hexdigest() for path in spec.files}
    return spec.files == files == found


async def refusal(asked: Awaitable[object]) -> JobError:
    with pytest.raises(JobError) as caught:
        await asked
    return caught.value


async def test_without_a_token_nothing_is_asked_until_a_job_brings_one(shop: Shop, hub: FakeHub) -> None:
    commit = hub.publish(NAME, FILES)
    pipelines = await shop.open()
    await shop.until(pipelines, ModelState.WAITING)
    assert "HF_TOKEN" in (pipelines.status().error or "")
    assert hub.requests == []

    refused = await refusal(pipelines.spec())
    assert isinstance(refused, PipelineGated)
    assert f"https://huggingface.co/{NAME}" in refused.message
    assert "set HF_TOKEN or send hf_token" in refused.message
    for token in (WRONG, STRANGER):
        refused = await refusal(pipelines.spec(token))
        assert refused.code == "pipeline_gated"
        assert f"https://huggingface.co/{NAME}" in refused.message
        assert ("does not know this token" in refused.message) is (token is WRONG)
        assert (f"accept the conditions of {NAME}" in refused.message) is (token is STRANGER)
    assert pipelines.status().state is ModelState.WAITING

    spec = await pipelines.spec(GOOD)
    assert spec.directory == shop.path(commit)
    assert are(spec, MADE_OF)
    assert sorted(path.name for path in spec.directory.rglob("*.part")) == []
    status = pipelines.status()
    assert (status.source, status.state, status.done_bytes, status.size_bytes) == ("pipeline", "ready", BYTES, BYTES)
    asked = len(hub.requests)
    assert [await pipelines.spec(), await pipelines.spec(WRONG), pipelines.ready] == [spec] * 3
    assert len(hub.requests) == asked


async def test_the_token_goes_to_the_hub_and_not_where_it_sends_us(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES)
    pipelines = await shop.open(token=GOOD)
    await shop.until(pipelines, ModelState.READY)
    assert {request.headers.get("authorization") for request in hub.site.requests} == {"Bearer hf_good"}
    assert len(hub.cdn.heads) == 2
    assert not [head for head in hub.cdn.heads if "authorization" in head.lower() or "hf_good" in head]


async def test_a_token_that_the_hub_does_not_know_is_said_to_be_wrong_where_none_is_needed(
    shop: Shop, hub: FakeHub
) -> None:
    hub.publish(NAME, FILES, gated=False)
    pipelines = await shop.open()
    refused = await refusal(pipelines.spec(WRONG))
    assert refused.code == "pipeline_gated"
    assert "does not know this token: make another at https://huggingface.co/settings/tokens" in refused.message
    assert are(await pipelines.spec(STRANGER), MADE_OF), "any account will do"


async def test_a_mirror_may_have_a_path_of_its_own(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES, gated=False)
    hub.site.pages = {f"/mirror{path}": pages for path, pages in hub.site.pages.items()}
    pipelines = await shop.open(endpoint=hub.url + "/mirror/")
    assert are(await pipelines.spec(), MADE_OF)


async def test_a_cut_download_is_taken_up(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES)
    hub.cdn.plan(Reply(cut_after=200_000))
    pipelines = await shop.open()
    cut = await refusal(pipelines.spec(GOOD))
    assert isinstance(cut, PipelineUnavailable)
    assert "the connection to 127.0.0.2 was cut" in cut.message
    assert are(await pipelines.spec(GOOD), MADE_OF)
    assert hub.cdn.ranges[:2] == [None, "200000"]


async def test_jobs_at_once_share_one_download_whatever_their_tokens(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES)
    hub.cdn.plan(Reply(hold_after=100_000))
    pipelines = await shop.open()
    first, second = asyncio.create_task(pipelines.spec(WRONG)), asyncio.create_task(pipelines.spec(GOOD))
    third = asyncio.create_task(pipelines.spec(GOOD))
    await hub.cdn.held()
    status = pipelines.status()
    assert (status.state, status.size_bytes) == (ModelState.DOWNLOADING, BYTES)
    hub.cdn.release()
    assert isinstance(await refusal(first), PipelineGated)
    assert await second == await third
    assert len(hub.cdn.ranges) == 2


async def test_a_download_that_nobody_waits_for_any_more_ends_with_its_token(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES)
    hub.cdn.plan(Reply(hold_after=100_000))
    pipelines = await shop.open()
    await shop.until(pipelines, ModelState.WAITING)
    job = asyncio.create_task(pipelines.spec(GOOD))
    await hub.cdn.held()
    job.cancel()
    await shop.until(pipelines, ModelState.WAITING)
    assert pipelines.ready is None
    assert isinstance(await refusal(pipelines.spec()), PipelineGated)


async def test_it_needs_no_hub_once_it_is_here_and_a_branch_that_moves_changes_nothing(
    shop: Shop, hub: FakeHub
) -> None:
    commit = hub.publish(NAME, FILES)
    before = await (await shop.open()).spec(GOOD)
    hub.publish(NAME, pipeline_files(b"newer"))
    hub.site.requests.clear()
    again = await shop.open(token=GOOD)
    await shop.until(again, ModelState.READY)
    assert again.ready == before
    shop.path(commit, "embedding/pytorch_model.bin").write_bytes(b"damaged")
    assert hub.requests == []
    assert await again.spec() == before, "what is damaged comes again, of the same commit"
    assert are(before, MADE_OF)

    await hub.stop()
    offline = await shop.open()
    assert await offline.spec() == before
    shop.path(commit, "config.yaml").unlink()
    assert isinstance(await refusal(offline.spec(GOOD)), PipelineUnavailable)
    assert offline.status().state is not ModelState.READY


async def test_what_is_damaged_is_found_at_the_next_start(shop: Shop, hub: FakeHub) -> None:
    commit = hub.publish(NAME, FILES)
    await (await shop.open()).spec(GOOD)
    damaged = shop.path(commit, "segmentation/pytorch_model.bin")
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    without_token = await shop.open()
    await shop.until(without_token, ModelState.WAITING)
    assert without_token.ready is None
    with_token = await shop.open(token=GOOD)
    await shop.until(with_token, ModelState.READY)
    assert are(await with_token.spec(), MADE_OF)


@pytest.mark.parametrize("listed", [True, False], ids=["the listing says so", "the listing does not"])
async def test_a_commit_that_changes_is_refused(shop: Shop, hub: FakeHub, listed: bool) -> None:
    commit = hub.publish(NAME, FILES)
    await (await shop.open()).spec(GOOD)
    kept = shop.path(commit, "segmentation/pytorch_model.bin").read_bytes()
    shop.path(commit, "embedding/pytorch_model.bin").unlink()
    listing = hub.site.pages[f"/api/models/{NAME}/revision/{commit}"]
    hub.replace(NAME, commit, pipeline_files(b"other"))
    if not listed:
        hub.site.pages[f"/api/models/{NAME}/revision/{commit}"] = listing
    again = await shop.open(token=GOOD)
    await shop.until(again, ModelState.FAILED)
    assert isinstance(await refusal(again.spec()), PipelineChanged)
    assert shop.path(commit, "segmentation/pytorch_model.bin").read_bytes() == kept
    assert not shop.path(commit, "embedding/pytorch_model.bin").exists()


async def test_a_small_file_is_compared_with_what_git_makes_of_it(shop: Shop, hub: FakeHub) -> None:
    commit = hub.publish(NAME, FILES)
    listing = hub.site.pages[f"/api/models/{NAME}/revision/main"]
    hub.replace(NAME, commit, FILES | {"config.yaml": CONFIG.replace(b"0.0", b"0.1")})
    hub.site.pages[f"/api/models/{NAME}/revision/main"] = listing
    assert isinstance(await refusal((await shop.open()).spec(GOOD)), PipelineChanged)


THREE_ONE = "pyannote/speaker-diarization-3.1"
SEGMENTATION, EMBEDDING = "pyannote/segmentation-3.0", "pyannote/wespeaker-voxceleb-resnet34-LM"
THREE_ONE_CONFIG = CONFIG.replace(b"$model/embedding", EMBEDDING.encode()).replace(
    b"$model/segmentation", b"'" + SEGMENTATION.encode() + b"'  # on its own"
)


async def test_what_it_names_elsewhere_on_the_hub_is_brought_into_its_directory(shop: Shop, hub: FakeHub) -> None:
    commit = hub.publish(THREE_ONE, {"config.yaml": THREE_ONE_CONFIG, "handler.py": b"no"})
    segmentation, embedding = b"segmentation" * 999, b"embedding" * 9999
    segmentation_commit = hub.publish(SEGMENTATION, {"pytorch_model.bin": segmentation, "config.yaml": b"task:\n"})
    hub.publish(EMBEDDING, {"pytorch_model.bin": embedding}, gated=False)
    pinned = Listing(
        repository=SEGMENTATION,
        revision=segmentation_commit,
        files=(
            HubFile(
                path="pytorch_model.bin",
                size_bytes=len(segmentation),
                sha256=hashlib.sha256(segmentation).hexdigest(),
            ),
        ),
    )
    pipelines = await shop.open(THREE_ONE, pins={SEGMENTATION: pinned})
    spec = await pipelines.spec(GOOD)
    assert are(
        spec,
        {
            "config.yaml": hashlib.sha256(CONFIG).hexdigest(),
            "segmentation/pytorch_model.bin": hashlib.sha256(segmentation).hexdigest(),
            "embedding/pytorch_model.bin": hashlib.sha256(embedding).hexdigest(),
        },
    )
    assert spec.directory == shop.path(commit, name=THREE_ONE)
    assert f"/api/models/{SEGMENTATION}/revision/main" not in hub.requests, "the commit of what is known is known"

    moved = Listing(repository=SEGMENTATION, revision="0" * 40, files=pinned.files)
    newer = await shop.open(THREE_ONE, pins={SEGMENTATION: moved})
    await shop.until(newer, ModelState.WAITING)
    assert newer.ready is None, "a version that knows another commit does not take what an older one brought"


async def test_a_gate_before_what_it_names_is_said_by_its_own_name(shop: Shop, hub: FakeHub) -> None:
    hub.publish(THREE_ONE, {"config.yaml": THREE_ONE_CONFIG}, gated=False)
    hub.publish(SEGMENTATION, {"pytorch_model.bin": b"segmentation"})
    hub.publish(EMBEDDING, {"pytorch_model.bin": b"embedding"}, gated=False)
    refused = await refusal((await shop.open(THREE_ONE, pins={})).spec(STRANGER))
    assert isinstance(refused, PipelineGated)
    assert f"https://huggingface.co/{SEGMENTATION} " in refused.message


async def test_other_bytes_than_the_pinned_ones_are_refused_from_any_mirror(shop: Shop, hub: FakeHub) -> None:
    commit = hub.publish(NAME, FILES)
    pinned = tuple(
        HubFile(path=path, size_bytes=len(FILES[path]), sha256=sha256[::-1] if "embedding" in path else sha256)
        for path, sha256 in MADE_OF.items()
    )
    pins = {NAME: Listing(repository=NAME, revision=commit, files=pinned)}
    refused = await refusal((await shop.open(pins=pins)).spec(GOOD))
    assert isinstance(refused, PipelineChanged)
    assert "embedding/pytorch_model.bin" in refused.message
    assert [path for path in hub.requests if path.startswith("/api/")] == []


async def test_a_hub_that_is_away_is_tried_again(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES)
    url = hub.url
    await hub.site.away()
    pipelines = await shop.open(endpoint=url, token=GOOD, delay_s=lambda failures: 0.05 if failures > 1 else 0.0)
    await shop.until(pipelines, ModelState.FAILED)
    status = pipelines.status()
    assert "could not reach 127.0.0.1" in (status.error or "")
    assert status.retry_at is not None
    await hub.site.start()
    await shop.until(pipelines, ModelState.READY)
    assert are(await pipelines.spec(), MADE_OF)


async def test_a_job_brings_it_while_the_daemons_own_token_does_not(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES)
    pipelines = await shop.open(token=STRANGER)
    await shop.until(pipelines, ModelState.FAILED)
    error = pipelines.status().error
    await refusal(pipelines.spec(WRONG))
    assert (pipelines.status().state, pipelines.status().error) == (ModelState.FAILED, error)
    assert are(await pipelines.spec(GOOD), MADE_OF)
    assert (pipelines.status().state, pipelines.status().error) == (ModelState.READY, None)


async def test_what_is_no_pipeline_is_said(shop: Shop, hub: FakeHub) -> None:
    hub.publish("a/model", {"README.md": b"hello"}, gated=False)
    hub.publish("a/thief", {"config.yaml": CONFIG.replace(b"$model/embedding", b"/etc/shadow")}, gated=False)
    for name, said in {"a/model": "no config.yaml", "a/nothing": "there is no", "a/thief": "/etc/shadow"}.items():
        refused = await refusal((await shop.open(name)).spec())
        assert isinstance(refused, PipelineUnavailable)
        assert said in refused.message


async def test_a_directory_is_taken_as_it_is(shop: Shop, hub: FakeHub, tmp_path: Path) -> None:
    as_directory(tmp_path / "mine", FILES | {".git/config.yaml": b"no"})
    pipelines = await shop.open(str(tmp_path / "mine"))
    await shop.until(pipelines, ModelState.READY)
    before = await pipelines.spec()
    assert (before.directory, before.files) == (tmp_path / "mine", MADE_OF)
    (tmp_path / "mine" / "config.yaml").write_bytes(CONFIG + b"# mine\n")
    after = await pipelines.spec()
    assert after.files != before.files
    assert are(after, after.files)
    assert hub.requests == []


async def test_a_directory_may_be_relative(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_directory(tmp_path / "my" / "pipeline", FILES)
    spec = await (await shop.open("my/pipeline")).spec()
    assert (spec.directory, spec.files) == (tmp_path / "my" / "pipeline", MADE_OF)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["absent", "empty"])
async def test_a_directory_without_a_pipeline(shop: Shop, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "mine")
    pipelines = await shop.open(str(tmp_path / "mine"))
    await shop.until(pipelines, ModelState.FAILED)
    refused = await refusal(pipelines.spec())
    assert isinstance(refused, PipelineUnavailable)
    assert str(tmp_path) not in refused.message


async def test_stopping_ends_a_download_and_who_waits_for_it(shop: Shop, hub: FakeHub) -> None:
    hub.publish(NAME, FILES)
    hub.cdn.plan(Reply(hold_after=100_000))
    pipelines = await shop.open()
    job = asyncio.create_task(pipelines.spec(GOOD))
    await hub.cdn.held()
    await pipelines.stop()
    assert isinstance(await refusal(job), PipelineUnavailable)
    with suppress(JobError):
        await pipelines.spec(GOOD)
    await pipelines.stop()
