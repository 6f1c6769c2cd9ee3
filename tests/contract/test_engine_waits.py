"""Neither a step nor admission asks anything of the device: held here without one, on tensors that have shapes and a
device but no numbers. Whoever asks such a tensor for a number gets an error."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from whisper.model import ModelDimensions

from gpu_daemon.engine import align, batch, features, scheduler
from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.model import SpeechModel
from gpu_daemon.engine.sequence import Sequence
from gpu_daemon.engine.transcribe import WhisperEngine
from gpu_daemon.jobs.model import JobOptions
from tests.runners import demo, speech
from tests.traced import Traced

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
GPU = torch.device("cuda")
DIMENSIONS = ModelDimensions(
    n_mels=80, n_audio_ctx=1500, n_audio_state=12, n_audio_head=2, n_audio_layer=1,
    n_vocab=51865, n_text_ctx=448, n_text_state=12, n_text_head=2, n_text_layer=2,
)  # fmt: skip
ADMISSION = 3
"""Prompts, where the scores are looked at, and what is known of each row: to the device, from pinned memory."""
ENDING = 2
"""Which rows, and which windows."""


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


class Unsent:
    """A Copy: what the host is told it need not wait for, but not by such tensors."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.of = tensor

    def read(self) -> Any:
        raise AssertionError("too early")


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`sent`, from memory that is not pinned: none can be here."""
    return tensor.to(device)


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


@pytest.mark.parametrize("recorder", [None, Traced()], ids=["launched", "replayed"])
@pytest.mark.parametrize(("group", "temperature"), [(1, 0.0), (1, 0.6), (5, 0.6)])
def test_a_step_asks_nothing_of_the_device(
    group: int, temperature: float, recorder: Traced | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "Copy", Unsent)
    monkeypatch.setattr(batch, "sent", pinned)
    with FakeTensorMode(), torch.inference_mode():
        decoding = Batch(model(), group=group, beams=False, recorder=recorder)
        decoding.make_room(8, at_most=8)
        for n in (2, 6):
            with Copies() as admission:
                decoding.admit(sequences(n, temperature))
            assert len(admission.made) <= ADMISSION
        for _ in range(3):
            with Copies() as step:
                decoding.step()
            assert step.made == []


def test_what_was_said_is_asked_of_the_device_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many have ended, and nobody waits for it: the next step is launched before it is read."""
    monkeypatch.setattr(batch, "Copy", Unsent)
    monkeypatch.setattr(batch, "sent", pinned)
    with FakeTensorMode(), torch.inference_mode():
        decoding = Batch(model(), group=2, beams=False)
        decoding.make_room(8, at_most=8)
        decoding.admit(sequences(8, 0.6))
        ended = decoding.sequences[2:6]
        monkeypatch.setattr(Batch, "_known_done", lambda _: ended)
        with Copies() as asked:
            assert decoding.take_done() == []
        assert len(asked.made) <= ENDING
        assert len(decoding.sequences) == 4
        (ending,) = decoding._endings
        assert isinstance(ending.said, Unsent)
        assert ending.said.of.shape == (8, 2 * (DIMENSIONS.n_text_ctx + 2) + 2)
        decoding.step()


class Asked(Exception):
    pass


class Unanswered(Unsent):
    def read(self) -> Any:
        raise Asked


def test_words_ask_the_device_once_for_all_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "Copy", Unanswered)
    monkeypatch.setattr(align, "sent", pinned)
    monkeypatch.setattr("whisper.timing.median_filter", lambda looks, width: looks)  # has no kernel for such tensors
    with FakeTensorMode(), torch.inference_mode():
        made = replace(model(), alignment_heads=((0, 0), (1, 1)))
        features = torch.empty(DIMENSIONS.n_audio_ctx, DIMENSIONS.n_audio_state, device=GPU)
        texts = [align.Text(made.tokenizer(), (440,) * n, features, 3000) for n in (3, 1, 5)]
        with Copies() as asked, pytest.raises(Asked):
            align.attend(made, texts)
        assert len(asked.made) == 1, "the texts"


def test_samples_go_to_the_device_as_they_were_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = []

    def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        dtypes.append(tensor.dtype)
        return pinned(tensor, device)

    monkeypatch.setattr(features, "sent", to_device)
    mel = features.Mel(np.zeros(32_000, np.int16), 80, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.inference_mode():
        mel._device = GPU
        for name in ("_filters", "_hann"):
            setattr(mel, name, fake.from_tensor(getattr(mel, name)).to(GPU))
        for _ in mel.measure():
            pass
        with Copies() as asked:
            assert mel.frames(0, 200).shape == (80, 3000)
    assert len(asked.made) == 1
    assert dtypes == [torch.int16] * 2


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
