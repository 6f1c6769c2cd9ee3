"""Our hub's words against the hub's own client, and a pipeline in parts against what loads it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from gpu_daemon.catalogue.pipelines import Pipelines
from gpu_daemon.engine.pipeline_files import PipelineFiles
from gpu_daemon.engine.speaker_models import SpeakerModels
from gpu_daemon.events import EventHub
from tests import made_pipeline
from tests.fake_hub import FakeHub, pipeline_files

NAME = "somebody/speaker-diarization"
SEGMENTATION, EMBEDDING = "somebody/segmentation", "somebody/embedding"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    hub = FakeHub()
    hub.strangers.add("hf_stranger")
    await hub.start()
    yield hub
    await hub.stop()


async def test_the_hubs_own_client_understands_it(hub: FakeHub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.utils._http import hf_raise_for_status

    files = pipeline_files()
    commit = hub.publish(NAME, files)
    api = HfApi(endpoint=hub.url, token=False)
    info = await asyncio.to_thread(api.model_info, NAME, revision="main", files_metadata=True)
    assert info.sha == commit
    assert {sibling.rfilename: sibling.size for sibling in info.siblings or ()} == {
        path: len(content) for path, content in files.items()
    }
    large = {sibling.rfilename for sibling in info.siblings or () if sibling.lfs is not None}
    assert large == {path for path in files if path.endswith(".bin")}
    async with httpx2.AsyncClient(base_url=hub.url, trust_env=False) as client:
        for headers in ({}, {"Authorization": "Bearer hf_stranger"}):
            response = await client.get(f"/{NAME}/resolve/{commit}/config.yaml", headers=headers)
            with pytest.raises(GatedRepoError):
                hf_raise_for_status(response)


async def test_a_pipeline_in_parts_is_loaded(hub: FakeHub, tmp_path: Path) -> None:
    """As 3.1 is: two models in repositories of their own, and no PLDA."""
    made = made_pipeline.write(tmp_path / "made", clustering="AgglomerativeClustering", with_plda=False)
    content = {path: (made.directory / path).read_bytes() for path in made.files}
    config = content["config.yaml"].decode()
    for part, repository in (("segmentation", SEGMENTATION), ("embedding", EMBEDDING)):
        assert f"$model/{part}" in config
        config = config.replace(f"$model/{part}", repository)
        hub.publish(repository, {"pytorch_model.bin": content[f"{part}/pytorch_model.bin"]}, gated=False)
    hub.publish(NAME, {"config.yaml": config.encode()}, gated=False)
    pipelines = Pipelines(NAME, tmp_path / "diarization_models", EventHub(), endpoint=hub.url)
    try:
        spec = await pipelines.spec()
    finally:
        await pipelines.stop()
    await hub.stop()
    assert spec.files == made.files
    models = SpeakerModels(PipelineFiles(spec))
    assert (models.segmentation_path, models.embedding_path) == ("segmentation", "embedding")
