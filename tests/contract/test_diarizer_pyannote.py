"""What only the real diarizer does: the turns are pyannote's own, and what may go wrong does not go far."""

import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.cluster.hierarchy import linkage as scipy_linkage

from gpu_daemon.engine import diarize, linkage
from gpu_daemon.engine.base import Pcm, PipelineSpec, Spoken
from gpu_daemon.engine.known_voices import in_order, matched
from gpu_daemon.engine.pipeline_files import PipelineFiles
from gpu_daemon.engine.speaker_models import SpeakerModels, imported
from gpu_daemon.errors import DeviceLost, JobCancelled, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import SpeakerTurn
from tests.diarizers import LIMIT_S, Waiting, conversation, known, quiet, request_of, voice
from tests.made_pipeline import spec_of, write

Turns = list[tuple[float, float, str]]


def files() -> dict[str, Pcm]:
    return {
        "conversation": conversation(),
        "overlap from the start": voice() // 2 + np.resize(voice("fr", 90), len(voice())) // 2,
        "one speaker": np.concatenate([voice(), voice()]),
        "whole chunks": conversation()[: 8 * SAMPLE_RATE_HZ],
        "a part of a chunk": voice(),
        "a fifth of a second": voice()[8000:11200],
        "nobody": quiet(6),
    }


@pytest.fixture(scope="module")
def community(tmp_path_factory: pytest.TempPathFactory) -> PipelineSpec:
    return write(tmp_path_factory.mktemp("community"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> PipelineSpec:
    """As 3.1 is, but with the PLDA that pyannote 4 wants to see even where nothing uses it."""
    return write(tmp_path_factory.mktemp("older"), clustering="AgglomerativeClustering")


def unmodified(spec: PipelineSpec) -> Callable[..., tuple[Turns, Turns]]:
    """pyannote's own pipeline, as its documentation loads it; but names are given and files end our way."""
    from pyannote.audio import Pipeline

    pipeline = Pipeline.from_pretrained(spec.directory)
    assert pipeline is not None

    def run(pcm: Pcm, **bounds: int) -> tuple[Turns, Turns]:
        waveform = torch.from_numpy(pcm.astype(np.float32) / 32768)[None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = pipeline({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ}, **bounds)
        said = (
            diarize.turns_of(each, len(pcm) / SAMPLE_RATE_HZ)
            for each in (output.speaker_diarization, output.exclusive_speaker_diarization)
        )
        turns, exclusive = said
        called = in_order(turns, {})
        return _named(turns, called), _named(exclusive, called)

    return run


def _named(turns: tuple[SpeakerTurn, ...], called: dict[str, str]) -> Turns:
    return [(turn.start, turn.end, called[turn.speaker]) for turn in turns]


def ours(spec: PipelineSpec, pcm: Pcm, **bounds: int) -> tuple[Turns, Turns]:
    spoken = Waiting(diarize.create("cpu", "auto"), request_of(spec, **bounds), pcm).result()
    return plain(spoken)


def plain(spoken: Spoken) -> tuple[Turns, Turns]:
    turns, exclusive = (
        [(turn.start, turn.end, turn.speaker) for turn in each] for each in (spoken.turns, spoken.exclusive)
    )
    return turns, exclusive


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["community", "older"])
def test_the_turns_are_those_of_pyannote_unmodified(request: pytest.FixtureRequest, kind: str) -> None:
    spec: PipelineSpec = request.getfixturevalue(kind)
    theirs = unmodified(spec)
    diarizer = diarize.create("cpu", "auto")
    n_turns = 0
    asked: list[tuple[str, dict[str, int]]] = [(name, {}) for name in files()]
    asked += [("one speaker", {"num_speakers": 2}), ("conversation", {"min_speakers": 3, "max_speakers": 4})]
    for name, bounds in asked:
        expected = theirs(files()[name], **bounds)
        assert plain(Waiting(diarizer, request_of(spec, **bounds), files()[name]).result()) == expected, (name, bounds)
        n_turns += len(expected[0])
        if name == "conversation":
            assert {speaker for *_, speaker in expected[0]} >= {"SPEAKER_00", "SPEAKER_01"}
    assert n_turns > 60


def test_gaps_are_closed_as_pyannote_closes_them(community: PipelineSpec, tmp_path: Path) -> None:
    spec = _changed(community, tmp_path, lambda config: config["params"]["segmentation"].update(min_duration_off=0.4))
    expected = unmodified(spec)(conversation())
    assert ours(spec, conversation()) == expected
    assert expected != unmodified(community)(conversation())


def test_a_pipeline_of_before_4_needs_no_plda(older: PipelineSpec, tmp_path: Path) -> None:
    spec = _changed(older, tmp_path, lambda config: config["pipeline"]["params"].pop("plda"))
    shutil.rmtree(tmp_path / "plda")
    assert ours(spec_of(tmp_path), voice()) == ours(older, voice())
    with pytest.raises(JobError) as caught:
        ours(
            _changed(spec, tmp_path, lambda config: config["pipeline"]["params"].update(clustering="VBxClustering")),
            voice(),
        )
    assert caught.value.code == "diarization_failed"


def _changed(spec: PipelineSpec, directory: Path, change: Callable[[Any], object]) -> PipelineSpec:
    """Another pipeline there, of which only the configuration differs."""
    if spec.directory != directory:
        shutil.copytree(spec.directory, directory, dirs_exist_ok=True)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    change(config)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return spec_of(directory)


class Failing:
    """In place of `Speakers._embed`: fails as told, and otherwise does what it should."""

    def __init__(self, fails: Callable[[int], Exception | None]) -> None:
        self.fails = fails
        self.sizes: list[int] = []
        self._embed: Callable[..., torch.Tensor] | None = None

    def take_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        imported()
        from gpu_daemon.engine.speakers import Speakers

        self._embed = Speakers._embed
        monkeypatch.setattr(Speakers, "_embed", self)

    def __get__(self, speakers: object, owner: object) -> Callable[[Pcm, torch.Tensor], torch.Tensor]:
        def embed(chunks: Pcm, masks: torch.Tensor) -> torch.Tensor:
            if len(masks[0]) > 1:  # not when the embedding of nobody is found out
                self.sizes.append(len(chunks))
                if (error := self.fails(len(chunks))) is not None:
                    raise error
            assert self._embed is not None
            return self._embed(speakers, chunks, masks)

        return embed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_with_too_little_memory_fewer_chunks_go_at_once(
    community: PipelineSpec, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = ours(community, conversation())
    failing = Failing(lambda n: error if n > 1 else None)
    failing.take_place(monkeypatch)
    assert ours(community, conversation()) == expected
    assert failing.sizes[:3] == [4, 2, 1]
    assert set(failing.sizes[3:]) == {1}, "what fits is remembered"


def test_with_too_little_memory_for_one_it_says_so(community: PipelineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(lambda n: torch.OutOfMemoryError("CUDA out of memory")).take_place(monkeypatch)
    with pytest.raises(JobError) as caught:
        ours(community, conversation())
    assert caught.value.code == "gpu_oom"


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(diarize.TORCH_DEVICES, "rocm", "cpu")


def test_what_is_dropped_under_way_is_not_gone_through(
    community: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def held(n: int) -> None:
        begun.set()
        assert go.wait(LIMIT_S)

    failing = Failing(held)
    failing.take_place(monkeypatch)
    diarizer = diarize.create("cpu", "auto")
    dropped = Waiting(diarizer, request_of(community), np.tile(conversation(), 3))
    assert begun.wait(LIMIT_S)
    diarizer.drop(dropped.diarization)
    following = Waiting(diarizer, request_of(community), quiet(1))
    go.set()
    assert following.result().turns == ()
    assert len(failing.sizes) <= 3, "of eleven batches"
    assert dropped.times_done == 0
    assert dropped.diarization.fraction < 1


MIOPEN = RuntimeError("miopenStatusUnknownError")


@pytest.mark.usefixtures("pretended_gpu")
def test_when_miopen_fails_the_cpu_takes_over_and_that_is_said(
    community: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ours(community, conversation())
    diarizer = diarize.create("rocm", "auto")
    before = Waiting(diarizer, request_of(community), conversation()).result()
    assert (before.device, before.fallback) == ("rocm", None)
    errors = [None, MIOPEN]
    Failing(lambda n: errors.pop(0) if errors else None).take_place(monkeypatch)
    waiting = Waiting(diarizer, request_of(community), conversation())
    assert plain(waiting.result()) == expected
    assert waiting.diarization.fraction == 1.0
    for spoken in (waiting.result(), Waiting(diarizer, request_of(community), voice()).result()):
        assert spoken.device == "cpu"
        assert spoken.fallback == diarize.FELL_BACK
    assert errors == []


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize(
    ("wanted", "error", "kind", "code"),
    [
        ("auto", RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLost, "gpu_error"),
        ("auto", RuntimeError("HIP error: unspecified launch failure"), DeviceLost, "gpu_error"),
        ("cuda", MIOPEN, JobError, "diarization_failed"),
        ("auto", RuntimeError("shape '[3]' is invalid for /secret/path"), JobError, "diarization_failed"),
        ("auto", KeyError("/secret/path"), JobError, "diarization_failed"),
    ],
)
def test_other_errors_are_said_without_what_they_say(
    community: PipelineSpec, monkeypatch: pytest.MonkeyPatch, wanted: Any, error: Exception, kind: type, code: str
) -> None:
    diarizer = diarize.create("rocm", wanted)
    with monkeypatch.context() as patched:
        Failing(lambda n: error).take_place(patched)
        with pytest.raises(JobError) as caught:
            Waiting(diarizer, request_of(community), voice()).result()
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert "secret" not in caught.value.message
    assert Waiting(diarizer, request_of(community), voice()).result().device == "rocm", "and the next one goes on"


def test_a_gpu_that_is_asked_for_must_be_there(community: PipelineSpec) -> None:
    with pytest.raises(JobError, match="PYANNOTE_DEVICE"):
        Waiting(diarize.create("cpu", "cuda"), request_of(community), voice()).result()
    assert Waiting(diarize.create("rocm", "cpu"), request_of(community), voice()).result().device == "cpu"


class Opens:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("part", ["segmentation", "embedding"])
def test_nothing_that_is_pickled_in_a_checkpoint_runs(community: PipelineSpec, tmp_path: Path, part: str) -> None:
    shutil.copytree(community.directory, tmp_path / "pipeline")
    path = tmp_path / "pipeline" / part / "pytorch_model.bin"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "callbacks": Opens(tmp_path / "opened")}, path)
    with pytest.raises(JobError) as caught:
        ours(spec_of(tmp_path / "pipeline"), voice())
    assert caught.value.code == "diarization_failed"
    assert not (tmp_path / "opened").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "opened").exists(), "the way pyannote loads it, it runs"


def test_what_a_checkpoint_keeps_of_its_training_does_no_harm(community: PipelineSpec, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EarlyStopping
    from torch.torch_version import TorchVersion

    shutil.copytree(community.directory, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "segmentation" / "pytorch_model.bin"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["callbacks"] = {EarlyStopping: {"patience": 3}, "stopping": EarlyStopping("loss")}
    checkpoint["pyannote.audio"]["versions"]["torch"] = TorchVersion("1.7.1")
    torch.save(checkpoint, path)
    assert ours(spec_of(tmp_path), voice()) == ours(community, voice())


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["pipeline"].update(name="subprocess.Popen"),
        lambda config: config["pipeline"]["params"].update(segmentation="pyannote/segmentation-3.0"),
        lambda config: config["pipeline"].pop("params"),
        lambda config: config.update(preprocessors={"audio": {"name": "os.system"}}),
    ],
)
def test_a_configuration_that_names_what_is_not_there_is_refused(
    community: PipelineSpec, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    with pytest.raises(JobError, match="cannot be used") as caught:
        ours(_changed(community, tmp_path, change), voice())
    assert caught.value.code == "diarization_failed"


def test_pyannote_reports_nothing_and_leaves_torch_as_it_is(
    community: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyannote.audio.telemetry.metrics import is_metrics_enabled

    monkeypatch.setenv("PYANNOTE_METRICS_ENABLED", "1")
    flags = (
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        warnings.filters[:],
    )
    ours(community, voice())
    assert not is_metrics_enabled()
    assert flags == (
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        warnings.filters,
    )
    assert SpeakerModels(PipelineFiles(community)).segmentation.lstm.dropout == 0.0


def test_a_known_voice_gives_its_name_to_its_speaker(community: PipelineSpec, tmp_path: Path) -> None:
    unnamed = Waiting(diarize.create("cpu", "auto"), request_of(community), conversation()).result()
    request = request_of(community).model_copy(update={"known_voices": (known(tmp_path, "Anna", voice()),)})
    spoken = Waiting(diarize.create("cpu", "auto"), request, conversation()).result()
    names = dict(zip((turn.speaker for turn in unnamed.turns), (turn.speaker for turn in spoken.turns), strict=True))
    assert sorted(names.values()) == ["Anna", "SPEAKER_00"]
    assert [turn.speaker for turn in spoken.exclusive] == [names[turn.speaker] for turn in unnamed.exclusive]


def test_names_go_to_those_who_are_most_alike() -> None:
    rows = np.array([[9, 0, 0], [0, 1, 0.2], [0, 0.2, 1], [np.nan] * 3], np.float32)
    a, b, c, nobody = rows
    heard = {"SPEAKER_00": a, "SPEAKER_01": b, "SPEAKER_02": c, "SPEAKER_03": nobody}
    assert matched(heard, {}) == matched({}, {"Anna": a}) == {}
    assert matched(heard, {"Anna": b + c / 2, "Ben": b}) == {"SPEAKER_01": "Ben", "SPEAKER_02": "Anna"}
    assert matched(heard, {"Anna": -a}) == {}
    turns = [
        SpeakerTurn(start=start, end=start + 1, speaker=f"SPEAKER_{n:02d}") for start, n in enumerate((2, 0, 1, 2))
    ]
    assert in_order(turns, {"SPEAKER_00": "Anna"}) == {
        "SPEAKER_02": "SPEAKER_00",
        "SPEAKER_00": "Anna",
        "SPEAKER_01": "SPEAKER_01",
    }


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(5).standard_normal((linkage.FEW + 100, 16)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_process_for_clustering_computes_what_scipy_computes(embeddings: Any, dtype: Any) -> None:
    beats: list[None] = []
    rows = embeddings.astype(dtype)
    there = linkage.linkage_elsewhere(rows, "ward", "euclidean", lambda: beats.append(None))
    assert beats
    assert np.array_equal(there, scipy_linkage(rows, method="ward", metric="euclidean"))


def test_the_process_for_clustering_is_killed_with_its_job(embeddings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*given, **more))
        return started[-1]

    def drop() -> None:
        raise JobCancelled("dropped")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(JobCancelled):
        linkage.linkage_elsewhere(embeddings, "ward", "euclidean", drop)
    assert started[0].returncode == -9


def test_without_a_process_clustering_goes_on_in_the_runner(
    embeddings: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = scipy_linkage(embeddings, method="average", metric="cosine")
    for python in ("/nowhere/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", python)
        assert np.array_equal(linkage.linkage_elsewhere(embeddings, "average", "cosine", lambda: None), expected)
        assert "goes on in the runner" in capfd.readouterr().err
