"""What only the engine that computes can be asked: checkpoints of every kind, abilities, sameness with whisper."""

import os
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper

from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.engine.checkpoint import Checkpoint, WhisperModel
from gpu_daemon.engine.faults import guarded
from gpu_daemon.engine.transcribe import WhisperEngine, create
from gpu_daemon.errors import DeviceLost, JobError, NotANumber
from gpu_daemon.jobs.model import JobOptions
from tests.runners import DEMO, SENTENCE, demo, silence, speech, spoken_at, transcribed

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
# The smallest thing that passes for a Whisper model.
DIMENSIONS: dict[str, int] = {
    "n_mels": 80,
    "n_audio_ctx": 1500,
    "n_audio_state": 12,
    "n_audio_head": 6,
    "n_audio_layer": 4,
    "n_vocab": 51865,
    "n_text_ctx": 448,
    "n_text_state": 12,
    "n_text_head": 6,
    "n_text_layer": 4,
}


def nothing(fraction: float) -> None:
    pass


@pytest.fixture(scope="module")
def engine() -> WhisperEngine:
    engine = create("cpu", 0)
    torch.set_num_threads(1)  # several would wait for each other by spinning
    engine.load(demo(), nothing)
    return engine


def built(spec: ModelSpec) -> WhisperModel:
    return Checkpoint.open(spec).build(CPU, torch.float32, nothing)


Save = Callable[..., ModelSpec]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A checkpoint of random numbers, of the tiny model's shape but for `dims`."""

    def save(name: str = "random", *, official: str | None = None, **dims: int) -> ModelSpec:
        torch.manual_seed(1)
        dimensions = {**DIMENSIONS, **dims}
        random = whisper.model.Whisper(whisper.model.ModelDimensions(**dimensions))
        torch.nn.init.normal_(random.decoder.positional_embedding)  # whisper leaves it as the memory was
        path = tmp_path / f"{name}.pt"
        torch.save({"dims": dimensions, "model_state_dict": random.half().state_dict()}, path)
        return ModelSpec(name=name, path=path, sha256="0" * 64, official=official)

    return save


def options(**given: object) -> JobOptions:
    return JobOptions.model_validate({"model": "demo", **given})


# What is heard.


@pytest.mark.parametrize(
    ("language", "voice", "sentence"),
    [
        ("en", "en-us", SENTENCE),
        ("fr", "fr-fr", "Le chat noir regarde mon jardin."),
        ("ru", "ru", "Старый доктор видит лес."),
    ],
)
def test_a_sentence_is_understood_and_its_language_known(
    engine: WhisperEngine, language: str, voice: str, sentence: str
) -> None:
    transcript = transcribed(engine, demo(), speech(sentence, voice), options())
    assert transcript.text == sentence
    assert transcript.language == language


@pytest.mark.parametrize("words", [False, True], ids=["segments", "words"])
def test_it_hears_what_whisper_itself_hears(engine: WhisperEngine, words: bool) -> None:
    audio = spoken_at(0, 3, 30.2)
    transcript = transcribed(engine, demo(), audio, options(word_timestamps=words, temperature=(0.0,)))
    itself = whisper.load_model(str(DEMO), device="cpu").transcribe(
        audio, word_timestamps=words, temperature=(0.0,), fp16=False
    )
    theirs = [segment for segment in itself["segments"] if segment["tokens"]]
    assert transcript.language == itself["language"]
    assert transcript.text == itself["text"].strip()
    assert len(transcript.segments) == len(theirs) >= 3
    for ours, their in zip(transcript.segments, theirs, strict=True):
        assert list(ours.tokens) == their["tokens"]
        assert (ours.start, ours.end, ours.seek) == (their["start"], their["end"], their["seek"])
        assert ours.avg_logprob == pytest.approx(their["avg_logprob"], abs=1e-5)
        assert ours.no_speech_prob == pytest.approx(their["no_speech_prob"], abs=1e-5)
        assert [(word.word, word.start, word.end) for word in ours.words] == [
            (word["word"], word["start"], word["end"]) for word in their.get("words", [])
        ]


@pytest.mark.parametrize(
    "given",
    [
        {"beam_size": 2},
        {"temperature": (0.2,)},
        {"condition_on_previous_text": False},
        {"initial_prompt": "My friend is happy."},
    ],
)
def test_options_are_taken(engine: WhisperEngine, given: dict[str, Any]) -> None:
    transcript = transcribed(engine, demo(), speech(), options(**given))
    assert "dog" in transcript.text
    if "temperature" in given:
        assert transcript.segments[0].temperature == 0.2


def test_a_special_token_in_a_prompt_is_text(engine: WhisperEngine) -> None:
    transcribed(engine, demo(), speech(), options(initial_prompt="<|endoftext|>"))


@pytest.mark.parametrize("hotwords", ["dog", "dog cat king " * 200, " "])
def test_hotwords_of_any_length(engine: WhisperEngine, hotwords: str) -> None:
    transcribed(engine, demo(), speech(), options(hotwords=hotwords, initial_prompt="My friend is happy."))


def test_progress_counts_windows_that_are_skipped_as_silent(engine: WhisperEngine) -> None:
    fractions: list[float] = []
    transcribed(engine, demo(), np.concatenate([speech(), silence(120)]), options(), fractions.append)
    steps = sorted(set(fractions))
    assert len(steps) >= 5
    assert max(later - earlier for earlier, later in pairwise(steps)) < 0.3


# What a model can and cannot do.


@pytest.mark.parametrize(
    ("dims", "given", "code", "message"),
    [
        ({"n_vocab": 51864}, {"task": "translate"}, "task_not_supported", "cannot translate"),
        ({"n_vocab": 51864}, {"language": "fr"}, "language_not_supported", "English only"),
        ({}, {"language": "yue"}, "language_not_supported", "does not know the language yue"),
        (
            {"n_audio_layer": 32, "n_vocab": 51866},
            {"task": "translate", "language": "fr"},
            "task_not_supported",
            "cannot translate",
        ),
    ],
    ids=["english", "english language", "cantonese", "turbo"],
)
def test_what_a_model_cannot_do_is_said(
    engine: WhisperEngine, save: Save, dims: dict[str, int], given: dict[str, Any], code: str, message: str
) -> None:
    spec = save(**dims)
    engine.load(spec, nothing)
    with pytest.raises(JobError, match=message) as caught:
        transcribed(engine, spec, speech(), options(**given))
    assert caught.value.code == code
    engine.unload(spec.name)


def test_english_to_a_model_of_english_is_fine(engine: WhisperEngine, save: Save) -> None:
    spec = save(n_vocab=51864)
    engine.load(spec, nothing)
    transcript = transcribed(engine, spec, speech(), options(language="en", temperature=(0.0,)))
    assert transcript.language == "en"
    unnamed = transcribed(engine, spec, speech(), options(temperature=(0.0,)))
    assert (unnamed.language, unnamed.language_probability) == ("en", None)
    engine.unload(spec.name)


def test_a_model_that_can_translate_does(engine: WhisperEngine) -> None:
    given = options(task="translate", language="fr", temperature=(0.0,))
    transcribed(engine, demo(), speech("Le chat noir regarde mon jardin.", "fr-fr"), given)


# Checkpoints.


def test_official_checkpoints_get_their_alignment_heads(save: Save) -> None:
    """Upstream's load_model loses them when it is given a path."""
    expected = whisper.model.Whisper(whisper.model.ModelDimensions(**DIMENSIONS))
    expected.set_alignment_heads(whisper._ALIGNMENT_HEADS["tiny"])
    heads = [tuple(head) for head in expected.alignment_heads.indices().T.tolist()]
    assert list(built(save("tiny", official="tiny")).alignment_heads) == heads
    half = [tuple(head) for head in whisper.model.Whisper(expected.dims).alignment_heads.indices().T.tolist()]
    assert list(built(save("local")).alignment_heads) == half != heads


def test_a_checkpoint_of_the_old_format_is_read_as_well(save: Save, tmp_path: Path) -> None:
    new = save()
    old = ModelSpec(name="old", path=tmp_path / "old.pt", sha256="0" * 64, official=None)
    torch.save(torch.load(new.path, weights_only=True), old.path, _use_new_zipfile_serialization=False)
    expected = built(new).net.state_dict()
    for name, tensor in built(old).net.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_another_file_under_the_same_name_replaces_the_model(engine: WhisperEngine, save: Save) -> None:
    engine.load(save("same"), nothing)
    before = {model.name: model.size_bytes for model in engine.loaded()}
    other = save("other", n_audio_layer=5).path
    engine.load(ModelSpec(name="same", path=other, sha256="0" * 64, official=None), nothing)
    after = {model.name: model.size_bytes for model in engine.loaded()}
    assert after["same"] > before["same"]
    engine.unload("same")


def _not_whisper(path: Path, _: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def _list(path: Path, _: Path) -> None:
    torch.save([1, 2, 3], path)


def _empty(path: Path, _: Path) -> None:
    path.touch()


def _truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def _tensor_missing(path: Path, good: Path) -> None:
    content = torch.load(good, weights_only=True)
    del content["model_state_dict"]["decoder.ln.weight"]
    torch.save(content, path)


def _wrong_shape(path: Path, good: Path) -> None:
    content = torch.load(good, weights_only=True)
    torch.save({**content, "dims": {**content["dims"], "n_text_state": 24}}, path)


def _strange_dimension(path: Path, good: Path) -> None:
    content = torch.load(good, weights_only=True)
    torch.save({**content, "dims": {**content["dims"], "n_moods": 7}}, path)


class _Code:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/gpu_daemon_was_attacked",)


def _code(path: Path, _: Path) -> None:
    path.write_bytes(pickle.dumps({"dims": _Code(), "model_state_dict": {}}, protocol=2))


@pytest.mark.parametrize(
    "spoil", [_not_whisper, _list, _empty, _truncated, _tensor_missing, _wrong_shape, _strange_dimension, _code]
)
def test_a_file_that_is_no_whisper_checkpoint_is_refused(
    save: Save, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    spec = ModelSpec(name="bad", path=tmp_path / "bad.pt", sha256="0" * 64, official=None)
    spoil(spec.path, save().path)
    with pytest.raises(JobError, match="the file of the model bad is not a Whisper checkpoint") as caught:
        built(spec)
    assert caught.value.code == "bad_checkpoint"
    assert not Path("/tmp/gpu_daemon_was_attacked").exists()


def test_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is gone") as caught:
        Checkpoint.open(ModelSpec(name="lost", path=tmp_path / "lost.pt", sha256="0" * 64, official=None))
    assert caught.value.code == "model_unavailable"


def test_a_checkpoint_that_gives_no_numbers_fails_the_job_and_no_other(engine: WhisperEngine, save: Save) -> None:
    spec = save("broken")
    content = torch.load(spec.path, weights_only=True)
    content["model_state_dict"]["decoder.ln.weight"][:] = torch.nan
    torch.save(content, spec.path)
    engine.load(spec, nothing)
    broken, sound = engine.begin(spec, speech(), options(language="en")), engine.begin(demo(), speech(), options())
    while not (broken.ended and sound.ended):
        engine.step()
    with pytest.raises(NotANumber):
        broken.result()
    assert sound.result().text == SENTENCE
    engine.unload("broken")


# Errors of the device.


def test_too_little_memory_is_released_and_may_be_tried_again() -> None:
    released = []

    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(JobError) as caught:
        guarded(work, lambda: released.append(True))
    assert (caught.value.code, caught.value.retryable) == ("gpu_oom", True)
    assert released == [True]
    assert caught.value.__context__ is None, "the traceback would keep the tensors"


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "HIP error: the operation cannot be performed in the present state",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_an_error_that_sticks_costs_the_process(message: str) -> None:
    def work() -> None:
        raise RuntimeError(message)

    with pytest.raises(DeviceLost) as caught:
        guarded(work, lambda: None)
    assert caught.value.retryable


def test_any_other_error_stays_what_it_is() -> None:
    def work() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        guarded(work, lambda: None)
