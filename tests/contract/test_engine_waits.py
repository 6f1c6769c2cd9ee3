"""A step asks nothing of the device, and admission a fixed number of times: held here without one, on tensors that have
shapes and a device but no numbers. Whoever asks such a tensor for a number gets an error."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from whisper.model import ModelDimensions

from gpu_daemon.engine import batch, scheduler
from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.model import SpeechModel
from gpu_daemon.engine.sequence import Sequence
from gpu_daemon.engine.transcribe import WhisperEngine
from gpu_daemon.jobs.model import JobOptions
from tests.runners import demo, speech

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
GPU = torch.device("cuda")
DIMENSIONS = ModelDimensions(
    n_mels=80, n_audio_ctx=1500, n_audio_state=12, n_audio_head=2, n_audio_layer=1,
    n_vocab=51865, n_text_ctx=448, n_text_state=12, n_text_head=2, n_text_layer=2,
)  # fmt: skip
ADMISSION = 3
"""Prompts, where the scores are looked at, and what is known of each row."""


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is half typed
    """Between the host and the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.made.append(str(func))
        return result


class NoFlags:
    """Which rows are done is what the host is told, by an event that it need not wait for: not on such tensors."""

    def __init__(self, device: torch.device) -> None:
        pass

    def write(self, done: torch.Tensor) -> None:
        pass


def model() -> WhisperModel:
    """In a FakeTensorMode."""
    with GPU:
        net = SpeechModel(DIMENSIONS).requires_grad_(False)
    return WhisperModel(name="fake", net=net, alignment_heads=())


def sequences(n: int, temperature: float) -> list[Sequence]:
    features = torch.empty(DIMENSIONS.n_audio_ctx, DIMENSIONS.n_audio_state, device=GPU)
    return [
        Sequence(prompt=(50258, 50259, 50359), sot_index=0, features=features, temperature=temperature, seed=1)
        for _ in range(n)
    ]


@pytest.mark.parametrize(("group", "temperature"), [(1, 0.0), (1, 0.6), (5, 0.6)])
def test_a_step_asks_nothing_of_the_device(group: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_Flags", NoFlags)
    with FakeTensorMode(), torch.inference_mode():
        decoding = Batch(model(), group=group, beams=False)
        decoding.make_room(8, at_most=8)
        for n in (2, 6):
            with Copies() as admission:
                decoding.admit(sequences(n, temperature))
            assert len(admission.made) <= ADMISSION
        with Copies() as step:
            decoding.step()
        assert step.made == []


def test_who_will_have_a_place_is_encoded_before_anybody_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(scheduler, "STEP_S", 60.0)  # as if the device took no time
    sizes: list[int] = []
    step = Batch.step

    def seen(decoding: Batch) -> None:
        sizes.append(len(decoding.sequences))
        step(decoding)

    monkeypatch.setattr(Batch, "step", seen)
    engine = WhisperEngine(torch.device("cpu"), vram_reserve_mb=0)
    engine.load(demo(), lambda _: None)
    files = [engine.begin(demo(), speech(), JobOptions(model="demo", language="en")) for _ in range(4)]
    engine.step()
    assert sizes[0] == len(files)
