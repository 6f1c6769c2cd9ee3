"""Each part of the engine beside the part of openai-whisper that it stands for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from whisper.audio import N_SAMPLES, log_mel_spectrogram
from whisper.decoding import ApplyTimestampRules, DecodingOptions, DecodingTask, SuppressBlank, SuppressTokens
from whisper.model import ModelDimensions, Whisper

from gpu_daemon.engine.base import Audio, ModelSpec
from gpu_daemon.engine.checkpoint import Checkpoint, WhisperModel
from gpu_daemon.engine.features import Mel
from gpu_daemon.engine.model import Memory, Norm, SpeechModel
from gpu_daemon.engine.rows import Rows, Rules, gumbel, sampled

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=48,
    n_audio_head=3,
    n_audio_layer=2,
    n_vocab=51865,
    n_text_ctx=448,
    n_text_state=48,
    n_text_head=3,
    n_text_layer=2,
)
PROMPT = (50361, 400, 401, 402, 50258, 50259, 50359)
"""Some words that went before, and the start of an English transcript."""


@pytest.fixture(scope="module")
def theirs() -> Whisper:
    torch.manual_seed(3)
    model = Whisper(DIMENSIONS)
    torch.nn.init.normal_(model.decoder.positional_embedding)  # whisper leaves it as the memory was
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def ours(theirs: Whisper, tmp_path_factory: pytest.TempPathFactory) -> WhisperModel:
    path: Path = tmp_path_factory.mktemp("checkpoint") / "random.pt"
    torch.save({"dims": vars(DIMENSIONS), "model_state_dict": theirs.state_dict()}, path)
    spec = ModelSpec(name="random", path=path, sha256="0" * 64, official=None)
    return Checkpoint.open(spec).build(CPU, torch.float32, lambda fraction: None)


@pytest.fixture(scope="module")
def features(theirs: Whisper) -> torch.Tensor:
    """float32[2, 1500, 48]"""
    torch.manual_seed(4)
    encoded: torch.Tensor = theirs.encoder(torch.randn(2, 80, 3000))
    return encoded


# Audio.


@pytest.mark.parametrize("n_samples", [1, 159, 160, 161, 1600, 80_007, N_SAMPLES, 2 * N_SAMPLES + 33])
def test_a_window_of_the_spectrogram_is_that_of_the_whole_file(n_samples: int) -> None:
    rng = np.random.default_rng(n_samples)
    audio: Audio = (rng.normal(0, 0.1, n_samples) * np.linspace(0, 1, n_samples)).astype(np.float32)
    whole = log_mel_spectrogram(audio, padding=N_SAMPLES)
    mel = Mel(audio, 80, CPU)
    for _ in mel.measure():
        pass
    assert mel.n_frames == whole.shape[1] - 3000
    for start, end in (
        (0, mel.n_frames),
        (0, 3000),
        (mel.n_frames // 2, mel.n_frames),
        (mel.n_frames, mel.n_frames + 9),
    ):
        end = min(end, start + 3000)
        frames = mel.frames(start, end) if end > start else None
        if frames is not None:
            assert frames.shape == (80, 3000)
            torch.testing.assert_close(frames[:, : end - start], whole[:, start:end], atol=1e-6, rtol=0)
            assert not frames[:, end - start :].any(), "whisper pads with zeros, which are not silence"


def test_silence_has_a_spectrogram_too() -> None:
    mel = Mel(np.zeros(16_000, np.float32), 80, CPU)
    for _ in mel.measure():
        pass
    expected = log_mel_spectrogram(np.zeros(16_000, np.float32), padding=N_SAMPLES)
    torch.testing.assert_close(mel.frames(0, 100)[:, :100], expected[:, :100])


# The network.


def test_the_encoder(ours: WhisperModel, theirs: Whisper) -> None:
    torch.manual_seed(5)
    mel = torch.randn(2, 80, 3000)
    layers = ours.net.encoder.layers(mel)
    pauses = 0
    while True:
        try:
            next(layers)
            pauses += 1
        except StopIteration as encoded:
            torch.testing.assert_close(encoded.value, theirs.encoder(mel), atol=1e-4, rtol=1e-4)
            break
    assert pauses == DIMENSIONS.n_audio_layer


def test_a_norm_takes_half_precision_as_it_is_where_that_changes_no_parameter() -> None:
    exact, inexact = Norm(48), Norm(48)
    torch.nn.init.constant_(exact.weight, 0.75)
    torch.nn.init.constant_(inexact.weight, 0.7)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).half()
    for norm, dtype in ((exact, torch.float16), (inexact, torch.float32)):
        expected = norm(x)
        norm.take_in(torch.float16)
        assert {parameter.dtype for parameter in norm.parameters()} == {dtype}
        torch.testing.assert_close(norm(x), expected, atol=2e-3, rtol=0)  # on a CPU another kernel


def test_reading_then_stepping_is_reading_all(ours: WhisperModel, theirs: Whisper, features: torch.Tensor) -> None:
    """Two windows with prompts of different lengths, in the second and third place of the memory."""
    decoder, said = ours.net.decoder, (50364, 11, 12, 13)
    prompts = [PROMPT, PROMPT[4:]]
    memory = Memory.empty(DIMENSIONS, 3, 1, torch.float32, CPU)
    padded = torch.tensor([[*prompt, *[0] * (len(PROMPT) - len(prompt))] for prompt in prompts])
    hidden, _ = decoder.read(padded, features, keep=(memory, torch.tensor([1, 2])))
    memory.cross[:, :, 0] = 0  # of a window that nobody asked for
    for row, prompt in enumerate(prompts):
        expected = theirs.logits(torch.tensor([prompt]), features[row : row + 1])[0]
        torch.testing.assert_close(decoder.logits(hidden[row, : len(prompt)]), expected, atol=1e-3, rtol=1e-4)
    for at, token in enumerate(said):
        tokens = torch.tensor([0, token, token])
        positions = torch.tensor([0, len(prompts[0]) + at, len(prompts[1]) + at])
        logits = decoder.logits(decoder.step(tokens, positions, memory, n_windows=3, longest=64))
        for row, prompt in enumerate(prompts):
            whole = torch.tensor([[*prompt, *said[: at + 1]]])
            expected = theirs.logits(whole, features[row : row + 1])[0, -1]
            torch.testing.assert_close(logits[row + 1], expected, atol=1e-3, rtol=1e-4)


def test_hypotheses_of_a_window_share_its_audio(ours: WhisperModel, theirs: Whisper, features: torch.Tensor) -> None:
    decoder = ours.net.decoder
    memory = Memory.empty(DIMENSIONS, 2, 2, torch.float32, CPU)
    decoder.read(torch.tensor([PROMPT, PROMPT]), features, keep=(memory, torch.tensor([0, 1])))
    memory.move(1, 0)  # the first window has ended
    tokens = torch.tensor([20, 30])
    logits = decoder.logits(
        decoder.step(tokens, torch.tensor([len(PROMPT)] * 2), memory, n_windows=1, longest=len(PROMPT) + 1)
    )
    expected = theirs.logits(torch.tensor([[*PROMPT, 20], [*PROMPT, 30]]), features[1:].expand(2, -1, -1))[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


# What may be said.


def about(*, limit: int) -> torch.Tensor:
    """Of one row: the length of its prompt, its limit, temperature and seed."""
    return torch.tensor([[len(PROMPT), limit, 0.0, 0]], dtype=torch.float64)


def _rows(sampled_tokens: Sequence[Sequence[int]], rules: Rules) -> Rows:
    rows = Rows(len(sampled_tokens), DIMENSIONS.n_text_ctx, CPU)
    for row, tokens in enumerate(sampled_tokens):
        rows.start(slice(row, row + 1), torch.tensor([PROMPT]), about(limit=448))
        for token in tokens:
            rows.say(
                slice(row, row + 1),
                torch.tensor([token]),
                torch.zeros(1),
                eot=rules.eot,
                first_stamp=rules.first_stamp,
            )
    return rows


T0 = 50364
SAID: tuple[tuple[int, ...], ...] = (
    (),
    (T0,),
    (T0 + 50,),
    (T0, 11),
    (T0, 11, 12),
    (T0, 11, T0 + 30),
    (T0, 11, T0 + 30, T0 + 30),
    (T0, 11, T0 + 30, T0 + 40, 13),
    (T0, 11, T0 + 30, T0 + 30, 13, T0 + 1499),
    (T0, 11, T0 + 30, T0 + 30, 13, T0 + 1500),
)


@pytest.mark.parametrize("likely", ["words", "timestamps", "the end"])
def test_the_rules_are_whispers_own(ours: WhisperModel, likely: str) -> None:
    tokenizer = ours.tokenizer()
    rules = Rules(tokenizer, DIMENSIONS.n_vocab, CPU)
    torch.manual_seed(6)
    logits = torch.randn(len(SAID), DIMENSIONS.n_vocab) * 3
    if likely == "timestamps":
        logits[:, T0:] += 4
    if likely == "the end":
        logits[:, tokenizer.eot] += 30
    expected = logits.clone()
    begin = len(PROMPT)
    task = DecodingTask.__new__(DecodingTask)
    task.tokenizer, task.options = tokenizer, DecodingOptions()
    never = task._get_suppress_tokens()
    for row, said in enumerate(SAID):
        tokens = torch.tensor([[*PROMPT, *said]])
        one = expected[row : row + 1]
        for rule in (SuppressBlank(tokenizer, begin), SuppressTokens(never), ApplyTimestampRules(tokenizer, begin, 50)):
            rule.apply(one, tokens)
    rules.apply(logits, _rows(SAID, rules), slice(0, len(SAID)))
    assert torch.equal(logits, expected)


def test_what_is_done_stays_as_it_is(ours: WhisperModel) -> None:
    rules = Rules(ours.tokenizer(), DIMENSIONS.n_vocab, CPU)
    rows = _rows([(T0, 11, rules.eot), (T0, 11, 12)], rules)
    assert rows.done.tolist() == [True, False]
    before = {name: tensor.clone() for name, tensor in vars(rows).items()}
    rows.say(slice(0, 2), torch.tensor([7, 7]), torch.tensor([-1.0, -1.0]), eot=rules.eot, first_stamp=T0)
    assert rows.length[0] == before["length"][0]
    assert rows.sum_logprob.tolist() == [0.0, -1.0]
    assert rows.tokens[0, : rows.length[0]].tolist() == [*PROMPT, T0, 11, rules.eot]
    assert rows.logprobs[0, : rows.length[0]].tolist() == [0.0] * (len(PROMPT) + 3)
    assert rows.logprobs[1, : rows.length[1]].tolist() == [*[0.0] * (len(PROMPT) + 3), -1.0]
    assert rows.done.tolist() == [True, False]


def test_a_row_ends_at_its_limit(ours: WhisperModel) -> None:
    rules = Rules(ours.tokenizer(), DIMENSIONS.n_vocab, CPU)
    rows = Rows(1, DIMENSIONS.n_text_ctx, CPU)
    rows.start(slice(0, 1), torch.tensor([PROMPT]), about(limit=len(PROMPT) + 2))
    for expected in (False, True):
        rows.say(slice(0, 1), torch.tensor([T0]), torch.zeros(1), eot=rules.eot, first_stamp=T0)
        assert rows.done.tolist() == [expected]


def test_samples_have_the_distribution_that_their_temperature_gives() -> None:
    n, temperature = 20_000, 0.7
    logits = torch.tensor([1.0, 0.0, -1.0, -torch.inf]).expand(n, -1)
    rows = Rows(n, DIMENSIONS.n_text_ctx, CPU)
    rows.temperature[:] = temperature
    rows.seed[:] = torch.arange(n) * 7919
    drawn = torch.bincount(sampled(logits, rows, slice(0, n)), minlength=4) / n
    expected = (logits[0] / temperature).softmax(-1)
    assert drawn[3] == 0
    torch.testing.assert_close(drawn, expected, atol=4 * (0.25 / n) ** 0.5, rtol=0)  # four standard deviations


def test_a_row_that_is_not_hot_says_what_is_likeliest() -> None:
    rows = Rows(2, DIMENSIONS.n_text_ctx, CPU)
    rows.temperature[:] = torch.tensor([0.0, 1.0])
    rows.seed[:] = 5
    logits = torch.tensor([[0.0, 0.1, 0.0]]).expand(2, -1)
    assert sampled(logits, rows, slice(0, 2))[0] == 1


def test_noise_depends_on_its_seed_alone() -> None:
    many = gumbel(torch.tensor([1, 2**40 - 1, 1]), 51865)
    assert torch.equal(many[0], many[2])
    assert torch.equal(many[1], gumbel(torch.tensor([2**40 - 1]), 51865)[0])
    assert not torch.equal(many[0], many[1])
    assert many.isfinite().all()
    # Of the standard Gumbel distribution: mean 0.5772 (Euler's constant), variance pi² / 6.
    assert many.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert many.var().item() == pytest.approx(1.645, abs=0.03)


@pytest.mark.parametrize(("n_vocab", "has_yue"), [(51864, False), (51865, False), (51866, True)])
def test_the_languages_in_a_vocabulary(n_vocab: int, has_yue: bool) -> None:
    """Ids of special tokens follow from their number."""
    dims = ModelDimensions(**{**vars(DIMENSIONS), "n_vocab": n_vocab})
    ours, theirs = WhisperModel(name="x", net=SpeechModel(dims), alignment_heads=()), Whisper(dims)
    assert ours.is_multilingual == theirs.is_multilingual
    assert ours.n_languages == theirs.num_languages
    assert ("yue" in ours.languages) == has_yue


def test_noise_is_finite_at_the_end_of_its_range() -> None:
    """The token 7680 of this seed draws the highest number there is: rounded up to 1, its noise would be infinite."""
    noise = gumbel(torch.tensor([184]), 51_865)[0]
    assert noise.isfinite().all()
    assert noise.argmax() == 7680
