"""The engine in half precision: whisper's tokens, whoever shares the batch; memory; nothing in a step that waits."""

import gc
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.checkpoint import WhisperModel
from gpu_daemon.engine.graphs import CudaGraphs, Recorder
from gpu_daemon.engine.model import Memory, Norm
from gpu_daemon.engine.sequence import Sequence
from gpu_daemon.engine.transcribe import GPU_LIMITS, WhisperEngine
from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Transcript
from tests.gpu.device import IS_DRY, N_TOGETHER, NAMES, ON, gpu_only, marks
from tests.gpu.recordings import recording
from tests.parity import reference
from tests.parity.compare import Difference, differences
from tests.parity.hear import hear
from tests.parity.margin import margin
from tests.parity.random_weights import random_weights
from tests.parity.reference import Attempt, Heard
from tests.runners import demo
from tests.traced import Traced

pytestmark = marks
DEVICE = ON or "cpu"
SAME = 0.999
"""Of the demo model's tokens. Weights by chance have many words that are nearly as likely: there only margins count."""
MARGIN = 0.1
"""In logits, where scores of 16 have steps of 0.016: what rounding may decide otherwise."""
MIB = 1 << 20
KEPT_MIB = 2


@pytest.fixture(scope="module")
def engine() -> Iterator[WhisperEngine]:
    torch.set_num_threads(1)
    engine = WhisperEngine(torch.device(DEVICE), vram_reserve_mb=0)
    engine.load(demo(), lambda _: None)
    yield engine
    for loaded in engine.loaded():
        engine.unload(loaded.name)


def options(**given: object) -> JobOptions:
    return JobOptions.model_validate({"model": "demo", "temperature": (0.0,), **given})


def tokens_of(transcript: Transcript) -> list[int]:
    return [token for segment in transcript.segments for token in segment.tokens]


# What is heard.


@pytest.mark.parametrize("words", [False, True], ids=["segments", "words"])
def test_the_demo_model_hears_what_whisper_hears_in_half_precision(engine: WhisperEngine, words: bool) -> None:
    n_same, found = compared(engine, demo(), NAMES, options(word_timestamps=words))
    assert not [said for said, close in found if close is None or close > MARGIN]
    assert n_same > 10
    assert len(found) <= (1 - SAME) * n_same, found


@pytest.mark.parametrize("name", ["random-tiny"] if IS_DRY else ["random-tiny", "random-base", "random-turbo"])
def test_weights_by_chance_differ_where_rounding_decides_only(engine: WhisperEngine, name: str) -> None:
    heard = ("one-hop",) if IS_DRY else ("all-kinds", "500ms", "garbage-prose")
    n_same, found = compared(engine, random_weights(name), heard, options(model=name, language="en"))
    engine.unload(name)
    print(f"{name}: {n_same} tokens are the same, then: {found}")
    assert not [said for said, close in found if close is None or close > MARGIN]


def compared(
    engine: WhisperEngine, spec: ModelSpec, names: tuple[str, ...], options: JobOptions
) -> tuple[int, list[tuple[str, float | None]]]:
    """Tokens that are the reference's up to the first in each file that is not; of those, what differs and by which
    margin the reference prefers its own."""
    model = reference.load(spec.path, DEVICE)
    transcripts = hear(engine, [(spec, recording(name), options) for name in names], at_once=N_TOGETHER)
    n_same, found = 0, []
    for name, ours in zip(names, transcripts, strict=True):
        theirs, attempts = reference.listen(model, recording(name), options, fp16=not IS_DRY)
        first = first_difference(theirs, ours)
        until = None if first is None else first.seek
        n_same += sum(len(each.tokens) for each in theirs.segments if until is None or each.seek < until)
        if first is not None:
            n_same += len(first.prefix or ())
            found.append((f"{name}: {first}", how_close(model, attempts, first)))
    return n_same, found


def first_difference(theirs: Heard, ours: Transcript) -> Difference | None:
    """Of tokens: those of probabilities are compared in float32, on a CPU."""
    matters = (one for one in differences(theirs, ours) if one.prefix is not None or "seek" in one.what)
    return next(matters, None)


def how_close(model: object, attempts: list[Attempt], found: Difference) -> float | None:
    if found.prefix is None or not isinstance(found.ours, int):
        return None
    attempt = next(each for each in attempts if each.seek == found.seek)
    if tuple(attempt.result.tokens[: len(found.prefix)]) != found.prefix:
        return None  # a segment that was emptied is among them
    return margin(model, attempt, len(found.prefix), found.ours)


def test_who_shares_the_batch_changes_no_token(engine: WhisperEngine) -> None:
    names = [NAMES[number % len(NAMES)] for number in range(N_TOGETHER)]
    together = hear(engine, [(demo(), recording(name), options()) for name in names], at_once=N_TOGETHER)
    for name, among_others in zip(NAMES, together, strict=False):
        (alone,) = hear(engine, [(demo(), recording(name), options())], at_once=1)
        assert tokens_of(alone) == tokens_of(among_others), name


# Recorded steps.


def recorder(after: int) -> Recorder:
    made = Traced() if IS_DRY else CudaGraphs()
    made.after = after
    return made


def batch_of(model: WhisperModel, temperatures: list[float], recorder: Recorder | None) -> Batch:
    """Windows on their way, which hear noise."""
    generator = torch.Generator().manual_seed(7)
    shape = (len(temperatures), model.dims.n_audio_ctx, model.dims.n_audio_state)
    features = torch.randn(shape, generator=generator).to(DEVICE, model.net.dtype)
    prompt = tuple(model.tokenizer().sot_sequence)
    with torch.inference_mode():
        batch = Batch(model, group=1, beams=False, recorder=recorder)
        batch.make_room(len(temperatures), at_most=len(temperatures))
        batch.admit(
            [
                Sequence(prompt=prompt, sot_index=0, features=heard, temperature=temperature, seed=number)
                for number, (heard, temperature) in enumerate(zip(features, temperatures, strict=True))
            ]
        )
    return batch


def model_of(engine: WhisperEngine) -> WhisperModel:
    return next(each.model for each in engine._models.held() if each.model.name == "demo")


@pytest.mark.parametrize("n", [1, 3] if IS_DRY else [1, 3, 8, 20, 64])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_replay_says_what_a_launch_says(engine: WhisperEngine, n: int, temperature: float) -> None:
    """Bit for bit, over the end of a piece of the past."""
    with torch.inference_mode():
        both = [batch_of(model_of(engine), [temperature] * n, recorder(after)) for after in (sys.maxsize, 1)]
        for batch in both:
            for _ in range(70):
                batch.step()
    launched, replayed = ([kept.cpu() for kept in vars(batch._rows).values()] for batch in both)
    for one, other in zip(launched, replayed, strict=True):
        assert torch.equal(one, other)


def test_files_say_the_same_with_and_without_recorded_steps() -> None:
    names = [NAMES[number % len(NAMES)] for number in range(N_TOGETHER)]
    said = []
    for after in (sys.maxsize, 1):
        engine = WhisperEngine(torch.device(DEVICE), vram_reserve_mb=0)
        engine.recorder = recorder(after)
        requests = [(demo(), recording(name), options(word_timestamps=True)) for name in names]
        said.append([tokens_of(one) for one in hear(engine, requests, at_once=N_TOGETHER)])
        engine.unload("demo")
    assert said[0] == said[1]


@gpu_only
def test_another_thread_computes_while_a_step_is_recorded(engine: WhisperEngine) -> None:
    """As the diarizer does: it takes memory, gives it back, and waits for the device."""
    ended = threading.Event()
    rounds = 0

    def compute() -> None:
        nonlocal rounds
        while not ended.is_set():
            size = 64 + rounds % 512
            torch.randn(size, size, device=DEVICE).mm(torch.randn(size, size, device=DEVICE)).sum().item()
            rounds += 1

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        with torch.inference_mode():
            batches = [batch_of(model_of(engine), [0.0] * n, recorder(0)) for n in (1, 2, 4, 8, 16, 32)]
            for batch in batches:
                batch.step()
                batch.step()
    finally:
        ended.set()
        thread.join()
    assert rounds > 0
    assert all(None not in batch._graphs._replays.values() for batch in batches), "each was recorded"


@gpu_only
@pytest.mark.parametrize("width", [384, 512, 768, 1024, 1280])
def test_a_norm_of_half_precision_is_that_of_three_kernels(width: int) -> None:
    generator = torch.Generator(DEVICE).manual_seed(width)
    norm = Norm(width, device=DEVICE)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
        parameter.data = parameter.half().float()
    x = torch.randn(2000, width, generator=generator, device=DEVICE).half() * 20
    expected = norm(x)
    norm.take_in(torch.float16)
    assert norm.weight.dtype == torch.float16
    assert torch.equal(norm(x), expected)


# Memory.


@gpu_only
def test_too_little_memory_halves_the_batch_and_loses_nothing(engine: WhisperEngine) -> None:
    spec, audio = demo("crowded"), recording("60s")
    (expected,) = hear(engine, [(demo(), audio, options())], at_once=1)
    crowded = WhisperEngine(torch.device(DEVICE), vram_reserve_mb=0)
    hear(crowded, [(spec, recording("en-sentence"), options())], at_once=1)  # the libraries have their memory now
    model = crowded._models.held()[0].model
    memory = Memory.empty(model.dims, 1, 1, torch.float16, torch.device("meta"))
    window_bytes = sum(kept.numel() * kept.element_size() for kept in (memory.cross, memory.past))
    gc.collect()
    torch.cuda.empty_cache()
    left_bytes = 12 * window_bytes + 64 * MIB
    taken = torch.empty(torch.cuda.mem_get_info()[0] - left_bytes, dtype=torch.uint8, device=DEVICE)
    try:
        transcripts = hear(crowded, [(spec, audio, options())] * 64, at_once=64)
    finally:
        del taken
        crowded.unload(spec.name)
    assert crowded._limits[spec.sha256].windows < GPU_LIMITS[0]
    assert all(tokens_of(transcript) == tokens_of(expected) for transcript in transcripts)


@gpu_only
def test_unloading_gives_all_memory_back() -> None:
    def used_bytes() -> tuple[int, int]:
        engine = WhisperEngine(torch.device(DEVICE), vram_reserve_mb=0)
        requests = [(demo(), recording(name), options(word_timestamps=True)) for name in NAMES[:8]]
        hear(engine, requests, at_once=8)
        engine.unload("demo")
        free, total = torch.cuda.mem_get_info()
        return torch.cuda.memory_allocated(), total - free

    first = used_bytes()  # with what the libraries take once
    for before, after in zip(first, used_bytes(), strict=True):
        assert after - before <= KEPT_MIB * MIB


# Waiting.


@pytest.fixture(params=[None, 1], ids=["launched", "replayed"])
def batch(engine: WhisperEngine, request: pytest.FixtureRequest) -> Batch:
    """Four windows on their way."""
    batch = batch_of(model_of(engine), [0.0] * 4, request.param and recorder(request.param))
    with torch.inference_mode():
        for _ in range(3):
            batch.step()
    return batch


@gpu_only
def test_torch_knows_of_no_wait_in_a_step(batch: Batch) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            for _ in range(20):
                batch.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_profiler_sees_no_wait_in_a_step(batch: Batch) -> None:
    activities = [ProfilerActivity.CPU] if IS_DRY else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.inference_mode(), profile(activities=activities, acc_events=True) as profiled:
        for _ in range(20):
            batch.step()
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::_local_scalar_dense", "aten::nonzero")
    # The profiler itself waits for the device, once, when it ends.
    counted = {event.key: event.count for event in profiled.key_averages() if event.key in waits}
    assert sum(counted.values()) <= 1, counted
