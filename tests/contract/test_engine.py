"""What every engine does, the fake one too."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.engine.base import Engine, ModelSpec
from gpu_daemon.errors import JobCancelled, JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from tests.runners import DEMO, demo, silence, speech, spoken_at

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
    transcript = engine.transcribe(demo(), TWO_WINDOWS, options(), nothing)
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
    first, second = (engine.transcribe(demo(), speech(), options(), nothing) for _ in range(2))
    assert first == second
    other = engine.transcribe(demo(), speech("The red cat hears the old king."), options(), nothing)
    assert other.text != first.text


def test_words_lie_in_their_segment_in_order(engine: Engine) -> None:
    transcript = engine.transcribe(demo(), speech(), options(word_timestamps=True), nothing)
    for segment in transcript.segments:
        assert "".join(word.word for word in segment.words) == segment.text
        edges = [edge for word in segment.words for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert segment.start <= edges[0]
        assert edges[-1] <= segment.end
        assert all(0 < word.confidence <= 1 for word in segment.words)


def test_a_language_that_was_not_named_comes_with_its_probability(engine: Engine) -> None:
    transcript = engine.transcribe(demo(), speech(), options(), nothing)
    assert transcript.language == "en"
    assert transcript.language_probability is not None
    assert 0 < transcript.language_probability <= 1


def test_a_language_that_was_named_comes_without(engine: Engine) -> None:
    transcript = engine.transcribe(demo(), speech(), options(language="fr"), nothing)
    assert transcript.language == "fr"
    assert transcript.language_probability is None


def test_silence_has_no_segments(engine: Engine) -> None:
    transcript = engine.transcribe(demo(), silence(20), options(), nothing)
    assert (transcript.text, transcript.segments, transcript.token_count) == ("", (), 0)


@pytest.mark.parametrize("n_samples", [1, 159, 161, 1600])
def test_a_moment_of_audio_is_no_error(engine: Engine, n_samples: int) -> None:
    transcript = engine.transcribe(demo(), speech()[8000 : 8000 + n_samples], options(), nothing)
    assert transcript.duration == n_samples / SAMPLE_RATE_HZ


def test_progress_never_goes_back_and_ends_at_one(engine: Engine) -> None:
    fractions: list[float] = []
    engine.transcribe(demo(), TWO_WINDOWS, options(), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any(0 < fraction < 1 for fraction in fractions)


@pytest.mark.parametrize("beats", [0, 2])
def test_a_job_can_be_stopped_and_the_next_one_is_unharmed(engine: Engine, beats: int) -> None:
    expected = engine.transcribe(demo(), speech(), options(), nothing)
    with pytest.raises(JobCancelled):
        engine.transcribe(demo(), TWO_WINDOWS, options(), StopAfter(beats))
    assert engine.transcribe(demo(), speech(), options(), nothing) == expected


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
