"""What every diarizer does, the fake one too."""

import importlib
from itertools import pairwise
from pathlib import Path

import pytest

from gpu_daemon.engine.base import Diarizer, PipelineSpec
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.diarizers import Waiting, conversation, quiet, request_of, voice
from tests.made_pipeline import write


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> PipelineSpec:
    return write(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module", params=["tests.fake_diarizer", "gpu_daemon.engine.diarize"])
def diarizer(request: pytest.FixtureRequest) -> Diarizer:
    made: Diarizer = importlib.import_module(request.param).create("cpu", "auto")
    return made


def test_turns_are_in_order_and_exclusive_ones_never_at_the_same_time(
    diarizer: Diarizer, pipeline: PipelineSpec
) -> None:
    spoken = Waiting(diarizer, request_of(pipeline), conversation()).result()
    assert spoken.device == "cpu"
    assert spoken.fallback is None
    assert len(spoken.turns) > 1
    assert [turn.start for turn in spoken.turns] == sorted(turn.start for turn in spoken.turns)
    assert all(
        0 <= turn.start < turn.end <= len(conversation()) / SAMPLE_RATE_HZ
        for turn in (*spoken.turns, *spoken.exclusive)
    )
    assert all(one.end <= two.start for one, two in pairwise(spoken.exclusive))
    assert any(one.end > two.start for one, two in pairwise(spoken.turns))
    appeared = list(dict.fromkeys(turn.speaker for turn in spoken.turns))
    assert appeared == [f"SPEAKER_{number:02d}" for number in range(len(appeared))]
    assert {turn.speaker for turn in spoken.exclusive} <= set(appeared)


def test_the_same_samples_give_the_same_turns(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    first, second = (Waiting(diarizer, request_of(pipeline), voice()).result() for _ in range(2))
    assert first == second


def test_where_nobody_speaks_are_no_turns(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    spoken = Waiting(diarizer, request_of(pipeline), quiet(6)).result()
    assert spoken.turns == spoken.exclusive == ()


@pytest.mark.parametrize("seconds", [0.2, 0.01, 0.0])
def test_a_file_may_be_short(diarizer: Diarizer, pipeline: PipelineSpec, seconds: float) -> None:
    audio = voice()[8000 : 8000 + round(seconds * SAMPLE_RATE_HZ)]
    spoken = Waiting(diarizer, request_of(pipeline), audio).result()
    assert all(0 <= turn.start < turn.end <= seconds for turn in spoken.turns)


def test_one_speaker_may_be_all_that_is_asked_for(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    spoken = Waiting(diarizer, request_of(pipeline, num_speakers=1), voice()).result()
    assert {turn.speaker for turn in spoken.turns} == {"SPEAKER_00"}


def test_more_speakers_than_could_be_heard_are_no_error(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    assert Waiting(diarizer, request_of(pipeline, num_speakers=30), voice()).result().turns


def test_files_are_done_in_the_order_they_came(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    first, second = (Waiting(diarizer, request_of(pipeline), audio) for audio in (voice(), quiet(1)))
    second.wait()
    assert first.diarization.ended
    assert first.times_done == second.times_done == 1
    for each in (first, second):
        assert each.diarization.fraction == 1.0
        assert each.diarization.beats > 0


def test_what_is_dropped_is_not_heard_of_again(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    first, dropped, last = (Waiting(diarizer, request_of(pipeline), voice()) for _ in range(3))
    diarizer.drop(dropped.diarization)
    assert last.result() == first.result()
    assert dropped.times_done == 0
    diarizer.drop(last.diarization)  # nothing: it has ended


def test_files_that_changed_are_refused(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    changed = pipeline.model_copy(update={"files": {**pipeline.files, "config.yaml": "0" * 64}})
    gone = pipeline.model_copy(update={"directory": Path("/nowhere")})
    for spec in (changed, gone):
        with pytest.raises(JobError) as caught:
            Waiting(diarizer, request_of(spec), voice()).result()
        assert caught.value.code == "pipeline_changed"
        assert "/" not in caught.value.message
    assert Waiting(diarizer, request_of(pipeline), voice()).result().turns


def test_it_says_what_is_loaded_and_lets_go_of_it(diarizer: Diarizer, pipeline: PipelineSpec) -> None:
    Waiting(diarizer, request_of(pipeline), quiet(1)).wait()
    [loaded] = diarizer.loaded()
    assert loaded.name == pipeline.name
    assert loaded.size_bytes > 0
    diarizer.unload()
    changed = pipeline.model_copy(update={"files": {"config.yaml": "0" * 64}})
    Waiting(diarizer, request_of(changed), quiet(1)).wait()  # the unloading lies before it
    assert diarizer.loaded() == ()
