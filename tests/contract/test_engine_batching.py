"""What happens between files that share a batch: places, turns, memory, mishaps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_daemon.engine import scheduler
from gpu_daemon.engine.base import Audio, ModelSpec
from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.features import Mel
from gpu_daemon.engine.listen import Listener
from gpu_daemon.engine.model import Decoder, Encoder
from gpu_daemon.engine.scheduler import Scheduler
from gpu_daemon.engine.transcribe import WhisperEngine
from gpu_daemon.engine.transcription import WhisperTranscription
from gpu_daemon.errors import DeviceLost, JobError
from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Transcript
from tests.runners import assert_same, demo, silence, speech, spoken_at, transcribed

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies


@pytest.fixture
def engine() -> WhisperEngine:
    torch.set_num_threads(1)  # several would wait for each other by spinning
    engine = WhisperEngine(torch.device("cpu"), vram_reserve_mb=0)
    engine.load(demo(), lambda fraction: None)
    return engine


def options(**given: object) -> JobOptions:
    return JobOptions.model_validate({"model": "demo", **given})


def together(engine: WhisperEngine, files: list[tuple[Audio, JobOptions]]) -> list[Transcript]:
    begun = [engine.begin(demo(), *file) for file in files]
    while not all(one.ended for one in begun):
        engine.step()
    return [one.result() for one in begun]


SENTENCES = ("The black dog sees the young doctor.", "The red cat hears the old king.", "My friend is happy.")


def test_more_files_than_places(engine: WhisperEngine) -> None:
    files = [(speech(SENTENCES[number % 3]), options()) for number in range(6)]
    alone = [transcribed(engine, demo(), *file) for file in files[:3]]
    narrow = WhisperEngine(torch.device("cpu"), vram_reserve_mb=0, max_rows=2)
    narrow.load(demo(), lambda fraction: None)
    for number, transcript in enumerate(together(narrow, files)):
        assert_same(transcript, alone[number % 3])


def test_a_window_is_encoded_once(engine: WhisperEngine) -> None:
    """For language, decoding, fallback and words. Under 30 s the language is heard in another window: whisper detects
    it before the silence behind the file is cut off."""
    never_enough = {"temperature": (0.0, 0.2, 0.4), "logprob_threshold": 0.0, "no_speech_threshold": 1}
    long = transcribed(engine, demo(), spoken_at(0, 15, 31, 40), options(word_timestamps=True, **never_enough))
    windows = {segment.seek for segment in long.segments}
    assert {segment.temperature for segment in long.segments} == {0.4}, "each was decoded three times"
    assert all(segment.words for segment in long.segments)
    assert engine.encoded_windows == len(windows) >= 2
    transcribed(engine, demo(), speech(), options(language="en"))
    assert engine.encoded_windows == len(windows) + 1
    transcribed(engine, demo(), speech(), options())
    assert engine.encoded_windows == len(windows) + 3


def test_samples_do_not_depend_on_who_shares_the_batch(engine: WhisperEngine) -> None:
    hot = options(temperature=(0.8,), logprob_threshold=-100, compression_ratio_threshold=100)
    best = options(temperature=(0.8,), best_of=3, logprob_threshold=-100, compression_ratio_threshold=100)
    beams = options(temperature=(0.0,), beam_size=3)
    files = [(speech(SENTENCES[0]), hot), (speech(SENTENCES[1]), best), (speech(SENTENCES[2]), beams)]
    alone = [transcribed(engine, demo(), *file) for file in files]
    for transcript, expected in zip(together(engine, [*files, (spoken_at(0, 30.2), options())]), alone, strict=False):
        assert_same(transcript, expected)


def test_the_best_of_several_samples_is_the_likeliest(engine: WhisperEngine) -> None:
    given = {"temperature": (1.0,), "logprob_threshold": -100, "compression_ratio_threshold": 100, "language": "en"}
    scores = [
        transcribed(engine, demo(), spoken_at(0, 3, 6), options(best_of=n, **given)).segments[0].avg_logprob
        for n in (1, 8)
    ]
    assert scores[1] >= scores[0], "the first sample is one of the eight"


def test_a_file_of_many_clips_takes_turns_with_others(engine: WhisperEngine) -> None:
    """In fast mode a file asks for all of its windows at once; who comes second does not wait for all of them."""
    many = engine.begin(demo(), spoken_at(*range(0, 300, 12)), options(mode="fast", language="en"))
    while many.fraction == 0:
        engine.step()
    other = engine.begin(demo(), speech(), options(language="en"))
    while not other.ended:
        engine.step()
    assert not many.ended
    engine.drop(many)


class OutOfMemory:
    """A device that has too little for more than so many windows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
        self.sizes: list[int] = []
        step = Batch.step

        def checked(batch: Batch) -> None:
            self.sizes.append(len(batch.sequences))
            if len(batch.sequences) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            step(batch)

        monkeypatch.setattr(Batch, "step", checked)


def test_too_little_memory_halves_the_batch_and_goes_on(engine: WhisperEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(speech(SENTENCES[number % 3]), options(language="en")) for number in range(6)]
    expected = [transcribed(engine, demo(), *file) for file in files[:3]]
    device = OutOfMemory(monkeypatch, fits=2)
    for number, transcript in enumerate(together(engine, files)):
        assert_same(transcript, expected[number % 3])
    assert max(device.sizes) > 2
    device.sizes.clear()
    together(engine, files)
    assert max(device.sizes) == 2, "what fits is remembered"
    engine.unload("demo")
    engine.load(demo(), lambda fraction: None)
    device.sizes.clear()
    together(engine, files)
    assert max(device.sizes) == 2, "by model, also when it comes again"


def test_a_file_that_does_not_fit_by_itself_fails_by_itself(
    engine: WhisperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    OutOfMemory(monkeypatch, fits=0)
    begun = engine.begin(demo(), speech(), options(language="en"))
    while not begun.ended:
        engine.step()
    with pytest.raises(JobError) as caught:
        begun.result()
    assert (caught.value.code, caught.value.retryable) == ("gpu_oom", True)
    monkeypatch.undo()
    assert transcribed(engine, demo(), speech(), options()).text == SENTENCES[0]


@pytest.mark.parametrize(
    ("owner", "name"), [(Mel, "frames"), (Encoder, "layers"), (Decoder, "read"), (scheduler, "attend")]
)
def test_too_little_memory_anywhere_loses_nothing(
    engine: WhisperEngine, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    expected = transcribed(engine, demo(), speech(), options(word_timestamps=True))
    work, failed = getattr(owner, name), list[bool]()

    def fails_once(*given: object, **named: object) -> object:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*given, **named)

    monkeypatch.setattr(owner, name, fails_once)
    assert_same(transcribed(engine, demo(), speech(), options(word_timestamps=True)), expected)
    assert failed


def test_an_error_in_one_file_is_its_own(engine: WhisperEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = transcribed(engine, demo(), speech(), options())
    cut = Listener._cut

    def broken(listener: Listener, *given: object) -> object:
        if listener._n_frames > 3000:
            raise ValueError("a bug")
        return cut(listener, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Listener, "_cut", broken)
    bad = engine.begin(demo(), spoken_at(0, 30.2), options())
    good = engine.begin(demo(), speech(), options())
    while not (bad.ended and good.ended):
        engine.step()
    with pytest.raises(ValueError, match="a bug"):
        bad.result()
    assert_same(good.result(), expected)


def test_an_error_after_one_of_two_windows_that_ended_together(
    engine: WhisperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = transcribed(engine, demo(), speech(), options())
    cut = Listener._cut

    def broken(listener: Listener, *given: object) -> object:
        if listener._n_frames > 3000:
            raise ValueError("a bug")
        return cut(listener, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Listener, "_cut", broken)
    bad = engine.begin(demo(), spoken_at(0, 40), options(mode="fast", language="en"))
    good = engine.begin(demo(), speech(), options())
    while not (bad.ended and good.ended):
        engine.step()
    with pytest.raises(ValueError, match="a bug"):
        bad.result()
    assert_same(good.result(), expected)


def test_an_error_that_sticks_is_nobodys_own(engine: WhisperEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("gpu_daemon.engine.features.Mel._powers", lost)
    engine.begin(demo(), speech(), options())
    with pytest.raises(DeviceLost):
        engine.step()


def test_nothing_is_left_of_files_that_have_ended_or_were_dropped(engine: WhisperEngine) -> None:
    (held,) = engine._models.held()
    begun = [engine.begin(demo(), spoken_at(0, 30.2), options(word_timestamps=True, beam_size=2)) for _ in range(3)]
    for _ in range(4):
        engine.step()
    engine.drop(begun[0])
    while not all(one.ended for one in begun[1:]):
        engine.step()
    assert _remains(held) == []
    assert all(not one.features for one in begun[1:])


def _remains(held: Scheduler) -> list[str]:
    return [
        name
        for name in ("_paused", "_waiting", "_decoding", "_aligning", "_timing", "_batches", "transcriptions")
        if getattr(held, name)
    ]


def test_a_model_in_use_is_not_replaced_by_another_file_of_its_name(engine: WhisperEngine, tmp_path: Path) -> None:
    begun = engine.begin(demo(), speech(), options())
    copy = tmp_path / "copy.pt"
    copy.write_bytes(demo().path.read_bytes())
    other = ModelSpec(name="demo", path=copy, sha256="1" * 64, official=None)
    with pytest.raises(JobError, match="in use"):
        engine.load(other, lambda fraction: None)
    while not begun.ended:
        engine.step()
    assert begun.result().text == SENTENCES[0]
    engine.load(other, lambda fraction: None)


def test_sixteen_bit_samples_are_heard_as_they_are(engine: WhisperEngine) -> None:
    audio = speech()
    pcm = np.round(audio * 32768).clip(-32768, 32767).astype(np.int16)
    as_floats: Audio = pcm.astype(np.float32) / np.float32(32768)
    assert transcribed(engine, demo(), pcm, options()) == transcribed(engine, demo(), as_floats, options())


def test_silence_is_skipped_without_words(engine: WhisperEngine) -> None:
    begun = engine.begin(demo(), silence(31), options(word_timestamps=True))
    assert isinstance(begun, WhisperTranscription)
    while not begun.ended:
        engine.step()
    assert begun.fraction == 1.0
    assert begun.result().segments == ()
