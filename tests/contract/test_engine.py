"""What every engine does, the fake one too."""

import importlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.engine.base import Engine, ModelSpec
from gpu_daemon.errors import JobCancelled, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from tests.runners import DEMO, assert_same, demo, silence, speech, spoken_at, transcribed

TWO_WINDOWS = spoken_at(0, 30.2)
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies


@pytest.fixture(scope="module", params=["tests.fake_engine", "gpu_daemon.engine.transcribe"])
def engine(request: pytest.FixtureRequest) -> Engine:
    engine: Engine = importlib.import_module(request.param).create("cpu", 0)
    if request.param == "gpu_daemon.engine.transcribe":
        importlib.import_module("torch").set_num_threads(1)  # several would wait for each other by spinning
    engine.load(demo(), nothing)
    return engine


def nothing(fraction: float) -> None:
    pass


def options(**given: object) -> JobOptions:
    return JobOptions.model_validate({"model": "demo", **given})


class StopAfter:
    """Lets the engine make so many beats and then cancels."""

    def __init__(self, beats: int) -> None:
        self.left = beats

    def __call__(self, fraction: float) -> None:
        self.left -= 1
        if self.left < 0:
            raise JobCancelled("the job was cancelled")


def test_it_says_what_it_runs_on(engine: Engine) -> None:
    assert engine.device_name
    assert engine.torch_version


def test_a_transcript_is_consistent(engine: Engine) -> None:
    transcript = transcribed(engine, demo(), TWO_WINDOWS, options())
    assert transcript.model == "demo"
    assert transcript.duration == pytest.approx(len(TWO_WINDOWS) / SAMPLE_RATE_HZ)
    assert len(transcript.segments) >= 2
    assert [segment.id for segment in transcript.segments] == list(range(len(transcript.segments)))
    assert transcript.text == "".join(segment.text for segment in transcript.segments).strip()
    assert transcript.token_count == sum(len(segment.tokens) for segment in transcript.segments) > 0
    previous_end = 0.0
    for segment in transcript.segments:
        assert previous_end <= segment.start < segment.end
        assert segment.seek / 100 <= segment.start
        assert segment.confidence == pytest.approx(np.exp(segment.avg_logprob))
        assert segment.text.strip()
        assert segment.words == ()
        previous_end = segment.end


def test_the_same_samples_give_the_same_transcript(engine: Engine) -> None:
    first, second = (transcribed(engine, demo(), speech(), options()) for _ in range(2))
    assert first == second
    other = transcribed(engine, demo(), speech("The red cat hears the old king."), options())
    assert other.text != first.text


def test_words_lie_in_their_segment_in_order(engine: Engine) -> None:
    transcript = transcribed(engine, demo(), speech(), options(word_timestamps=True))
    for segment in transcript.segments:
        assert "".join(word.word for word in segment.words) == segment.text
        edges = [edge for word in segment.words for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert segment.start <= edges[0]
        assert edges[-1] <= segment.end
        assert all(0 < word.confidence <= 1 for word in segment.words)


def test_a_language_that_was_not_named_comes_with_its_probability(engine: Engine) -> None:
    transcript = transcribed(engine, demo(), speech(), options())
    assert transcript.language == "en"
    assert transcript.language_probability is not None
    assert 0 < transcript.language_probability <= 1


def test_a_language_that_was_named_comes_without(engine: Engine) -> None:
    transcript = transcribed(engine, demo(), speech(), options(language="fr"))
    assert transcript.language == "fr"
    assert transcript.language_probability is None


def test_silence_has_no_segments(engine: Engine) -> None:
    transcript = transcribed(engine, demo(), silence(20), options())
    assert (transcript.text, transcript.segments, transcript.token_count) == ("", (), 0)


@pytest.mark.parametrize("n_samples", [1, 159, 161, 1600])
def test_a_moment_of_audio_is_no_error(engine: Engine, n_samples: int) -> None:
    transcript = transcribed(engine, demo(), speech()[8000 : 8000 + n_samples], options())
    assert transcript.duration == n_samples / SAMPLE_RATE_HZ


def test_progress_never_goes_back_and_ends_at_one(engine: Engine) -> None:
    fractions: list[float] = []
    transcribed(engine, demo(), TWO_WINDOWS, options(), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any(0 < fraction < 1 for fraction in fractions)


def test_a_file_that_has_not_ended_has_no_more_than_it_has(engine: Engine) -> None:
    begun = engine.begin(demo(), TWO_WINDOWS, options())
    assert not begun.ended
    assert begun.fraction == 0.0
    assert begun.heard() == ()
    engine.drop(begun)


def test_what_is_heard_grows_and_the_result_begins_with_it(engine: Engine) -> None:
    begun = engine.begin(demo(), TWO_WINDOWS, options())
    heard = [begun.heard()]
    while not begun.ended:
        engine.step()
        heard.append(begun.heard())
    for earlier, later in pairwise([*heard, begun.result().segments]):
        assert later[: len(earlier)] == earlier
    assert heard[-1] == begun.result().segments


def test_results_do_not_depend_on_who_else_is_in_flight(engine: Engine) -> None:
    engine.load(demo("second"), nothing)
    files = [
        (demo(), TWO_WINDOWS, options()),
        (demo("second"), speech(), options(language="en")),
        (demo(), speech("The red cat hears the old king."), options(word_timestamps=True)),
        (demo(), silence(20), options()),
    ]
    alone = [transcribed(engine, *file) for file in files]
    begun = [engine.begin(*file) for file in files]
    while not all(one.ended for one in begun):
        engine.step()
    for one, expected in zip(begun, alone, strict=True):
        assert_same(one.result(), expected)
    engine.unload("second")


@pytest.mark.parametrize("steps", [0, 1])
def test_one_is_dropped_and_its_neighbours_are_unharmed(engine: Engine, steps: int) -> None:
    expected = transcribed(engine, demo(), speech(), options())
    dropped = engine.begin(demo(), TWO_WINDOWS, options())
    neighbour = engine.begin(demo(), speech(), options())
    for _ in range(steps):
        engine.step()
    engine.drop(dropped)
    engine.drop(dropped)
    while not neighbour.ended:
        engine.step()
    assert_same(neighbour.result(), expected)
    engine.drop(neighbour)
    assert_same(neighbour.result(), expected)
    assert_same(transcribed(engine, demo(), speech(), options()), expected)


def test_a_step_with_nothing_in_flight_does_nothing(engine: Engine) -> None:
    engine.step()


def test_a_model_that_is_not_loaded_is_refused(engine: Engine) -> None:
    with pytest.raises(JobError, match="unknown"):
        engine.begin(demo("unknown"), speech(), options())


def test_models_come_and_go(engine: Engine) -> None:
    fractions: list[float] = []
    engine.load(demo("second"), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert [model.name for model in engine.loaded()] == ["demo", "second"]
    assert all(model.size_bytes > 0 for model in engine.loaded())
    engine.load(demo("second"), nothing)
    assert len(engine.loaded()) == 2
    engine.unload("second")
    engine.unload("second")
    assert [model.name for model in engine.loaded()] == ["demo"]


def test_loading_can_be_stopped(engine: Engine) -> None:
    with pytest.raises(JobCancelled):
        engine.load(demo("second"), StopAfter(0))
    assert [model.name for model in engine.loaded()] == ["demo"]


def test_what_is_no_checkpoint_is_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("not a checkpoint")
    with pytest.raises(JobError, match="other") as caught:
        engine.load(ModelSpec(name="other", path=path, sha256="0" * 64, official=None), nothing)
    assert caught.value.code == "bad_checkpoint"
    assert str(tmp_path) not in caught.value.message
    assert [model.name for model in engine.loaded()] == ["demo"]


def test_the_demo_checkpoint_is_where_it_should_be() -> None:
    assert DEMO.stat().st_size > 1 << 20
