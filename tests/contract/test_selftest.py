"""Devices that compute wrongly, and one that does not."""

import importlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpu_daemon.engine import selftest
from gpu_daemon.engine.base import Engine
from gpu_daemon.errors import JobError, StartupError
from gpu_daemon.transcript.model import Transcript
from tests.fake_engine import FakeEngine
from tests.lying_engine import attention, scrambled

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
Attention = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine: Engine = importlib.import_module("gpu_daemon.engine.transcribe").create("cpu", 0)
    torch.set_num_threads(1)  # several would wait for each other by spinning
    return engine


@pytest.fixture(autouse=True)
def _attention_as_before() -> Iterator[None]:
    assert not plain()
    yield
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)


def plain() -> bool:
    return not torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]  # torch is half typed


def test_a_device_that_computes_is_taken_as_it_is(engine: Engine) -> None:
    selftest.check(engine)
    assert engine.loaded() == ()
    assert not plain()


def test_a_faulty_kernel_is_not_used_any_more(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*given: torch.Tensor, **options: object) -> torch.Tensor:
        return (attention if plain() else scrambled)(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", faulty)
    selftest.check(engine)
    assert plain()


def no_kernel(*given: torch.Tensor, **options: object) -> torch.Tensor:
    raise RuntimeError("no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA")


def not_a_number(*given: torch.Tensor, **options: object) -> torch.Tensor:
    return attention(*given, **options) * float("nan")  # type: ignore[arg-type]


@pytest.mark.parametrize("lie", [scrambled, not_a_number, no_kernel])
def test_a_device_that_lies_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch, lie: Attention) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", lie)
    with pytest.raises(StartupError, match="CPU computes wrongly and is not used: ") as refusal:
        selftest.check(engine)
    assert "\n" not in refusal.value.message
    assert engine.loaded() == ()


@pytest.fixture(scope="module")
def right(engine: Engine) -> Transcript:
    heard: list[Transcript] = []

    def remember(transcript: Transcript) -> None:
        heard.append(transcript)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selftest, "difference", remember)
        selftest.check(engine)
    return heard[0]


def test_each_difference_is_named(right: Transcript) -> None:
    (segment,) = right.segments

    def changed(**changes: object) -> str | None:
        return selftest.difference(right.model_copy(update={"segments": (segment.model_copy(update=changes),)}))

    assert changed() is None
    assert "a known sentence was heard as" in str(changed(tokens=(50364, 440, 2183, 50478)))
    assert "ends at 2.48 s, not at 2.28" in str(changed(end=2.48))
    assert "-0.500, not -0.391" in str(changed(avg_logprob=-0.5))
    assert "nan" in str(changed(avg_logprob=float("nan")))
    assert "taken for cy" in str(selftest.difference(right.model_copy(update={"language": "cy"})))
    assert selftest.difference(right.model_copy(update={"segments": ()})) is not None


def test_a_device_without_room_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()

    def full(*given: object) -> None:
        raise JobError("the GPU has 3 MiB free and the model needs 40 MiB", code="gpu_oom", retryable=True)

    monkeypatch.setattr(engine, "load", full)
    with pytest.raises(StartupError, match="has 3 MiB free"):
        selftest.check(engine)


def test_what_it_expects_is_what_whisper_hears(right: Transcript) -> None:
    """The reference itself, on the same audio."""
    whisper = importlib.import_module("whisper")
    content = torch.load(selftest.MODEL.path, map_location="cpu", weights_only=True)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**content["dims"]))
    model.load_state_dict(content["model_state_dict"])
    audio = np.fromfile(selftest.SENTENCE, "<i2").astype(np.float32) / np.float32(32768)
    heard = whisper.transcribe(model, audio, temperature=0.0, fp16=False)
    (segment,) = heard["segments"]
    assert tuple(token for token in segment["tokens"] if token < selftest.FIRST_TIME_TOKEN) == selftest.TOKENS
    assert segment["avg_logprob"] == pytest.approx(selftest.AVG_LOGPROB, abs=0.001)
    assert segment["end"] == pytest.approx(selftest.END_S)
    assert right.segments[0].tokens == tuple(segment["tokens"])
