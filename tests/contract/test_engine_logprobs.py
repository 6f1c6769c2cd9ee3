"""What is said of single tokens: openai-whisper's own network says the same of them."""

from typing import Any

import pytest
import torch
import whisper
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import Whisper

from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.sequence import Sequence
from gpu_daemon.engine.transcribe import WhisperEngine
from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Transcript
from tests.runners import DEMO, assert_same, demo, speech, spoken_at

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
HOT = {"temperature": (0.8,), "logprob_threshold": -100, "compression_ratio_threshold": 100}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "words": {"word_timestamps": True},
    "beams": {"beam_size": 3},
    "sample": HOT,
    "best of samples": HOT | {"best_of": 3},
}


@pytest.fixture(scope="module")
def engine() -> WhisperEngine:
    engine = WhisperEngine(torch.device("cpu"), vram_reserve_mb=0)
    torch.set_num_threads(1)  # several would wait for each other by spinning
    engine.load(demo(), lambda _: None)
    return engine


@pytest.fixture(scope="module")
def itself() -> Whisper:
    return whisper.load_model(str(DEMO), device="cpu").requires_grad_(False)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[Sequence]:
    """All that have been decoded."""
    decoded: list[Sequence] = []
    take_done = Batch.take_done

    def seen(batch: Batch) -> list[Sequence]:
        done = take_done(batch)
        decoded.extend(done)
        return done

    monkeypatch.setattr(Batch, "take_done", seen)
    return decoded


def heard(engine: WhisperEngine, **given: Any) -> list[Transcript]:
    """Of files that share a batch and leave it one after the other."""
    options = JobOptions.model_validate({"model": "demo", "language": "en", **given})
    files = (speech("The red cat hears the old king."), spoken_at(0, 3, 6, 30.2), speech())
    begun = [engine.begin(demo(), audio, options) for audio in files]
    while not all(file.ended for file in begun):
        engine.step()
    return [file.result() for file in begun]


def of_whisper(itself: Whisper, window: Sequence, tokens: tuple[int, ...]) -> list[float]:
    """The log probability of each token, after the prompt and those before it."""
    before = list(window.prompt[1 : window.sot_index])
    task = DecodingTask(itself, DecodingOptions(language="en", prompt=before or None, fp16=False))
    assert task.initial_tokens == window.prompt
    said = torch.tensor([[*window.prompt, *tokens]])
    logits = itself.decoder(said, window.features[None])[0]  # float32[n, n_vocab]
    found = []
    for number, token in enumerate(tokens):
        place = len(window.prompt) + number
        row = logits[place - 1 : place].clone()
        for rule in task.logit_filters:
            rule.apply(row, said[:, :place])
        found.append(row.log_softmax(-1)[0, token].item())
    return found


@pytest.mark.parametrize("way", WAYS)
def test_they_are_whispers_own(engine: WhisperEngine, itself: Whisper, windows: list[Sequence], way: str) -> None:
    transcripts = heard(engine, logprobs=True, **WAYS[way])
    eot = whisper.tokenizer.get_tokenizer(True).eot
    assert len(windows) >= 4
    for window in windows:
        assert window.decoded is not None
        tokens = (*window.decoded.tokens, eot)
        assert window.decoded.logprobs == pytest.approx(of_whisper(itself, window, tokens), abs=1e-3)
        assert sum(window.decoded.logprobs) == pytest.approx(window.decoded.sum_logprob, abs=1e-3)
    means = {sum(window.decoded.logprobs) / len(window.decoded.logprobs) for window in windows if window.decoded}
    known = {round(said, 5) for window in windows if window.decoded for said in window.decoded.logprobs}
    for transcript in transcripts:
        assert Transcript.model_validate_json(transcript.model_dump_json()) == transcript
        for segment in transcript.segments:
            assert any(abs(segment.avg_logprob - mean) < 1e-4 for mean in means)
            assert segment.logprobs is not None
            assert b"".join(bytes(said.bytes) for said in segment.logprobs).decode() == segment.text
            assert len(segment.logprobs) == sum(token < eot for token in segment.tokens)
            assert known.issuperset(round(said.logprob, 5) for said in segment.logprobs)


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_nothing_else_depends_on_them(engine: WhisperEngine, windows: list[Sequence], way: str) -> None:
    asked = heard(engine, logprobs=True, **WAYS[way])
    windows.clear()
    for plain, transcript in zip(heard(engine, **WAYS[way]), asked, strict=True):
        assert "logprobs" not in plain.model_dump_json()
        segments = tuple(segment.model_copy(update={"logprobs": None}) for segment in transcript.segments)
        assert_same(transcript.model_copy(update={"segments": segments}), plain)
    assert all(window.decoded and not window.decoded.logprobs for window in windows)
