"""Steps that are recorded and replayed say what steps say: with graphs as a CPU can have them (tests/traced.py)."""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from gpu_daemon.engine import batch as batches
from gpu_daemon.engine import graphs, selftest
from gpu_daemon.engine.base import Audio
from gpu_daemon.engine.batch import Batch
from gpu_daemon.engine.checkpoint import Checkpoint, WhisperModel
from gpu_daemon.engine.features import Mel
from gpu_daemon.engine.graphs import CudaGraphs, Graphs, Recorder, Work
from gpu_daemon.engine.sequence import Decoded, Sequence
from gpu_daemon.engine.transcribe import WhisperEngine
from gpu_daemon.jobs.model import JobOptions
from gpu_daemon.transcript.model import Transcript
from tests.runners import assert_same, demo, speech, spoken_at
from tests.traced import Traced, place

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies
CPU = torch.device("cpu")
CAPACITY = 8


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # several would wait for each other by spinning


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return Checkpoint.open(demo()).build(CPU, torch.float32, lambda _: None)


# A batch.


@cache
def features(model: WhisperModel, number: int) -> torch.Tensor:
    """[1500, d]: of a sentence that is said so many times."""
    mel = Mel(spoken_at(*range(0, 3 * number, 3)), model.dims.n_mels, CPU)
    for _ in mel.measure():
        pass
    layers = model.net.encoder.layers(mel.frames(0, mel.n_frames)[None])
    with torch.inference_mode():
        while True:
            try:
                next(layers)
            except StopIteration as encoded:
                heard: torch.Tensor = encoded.value[0]
                return heard


def sequence(model: WhisperModel, number: int, temperature: float = 0.0) -> Sequence:
    """With a prompt of its own."""
    context = (model.tokenizer().sot_prev, *model.tokenizer().encode(" The black dog sees." * (3 * number - 3)))
    prompt = (*(context if number > 1 else ()), *model.tokenizer().sot_sequence)
    return Sequence(
        prompt=prompt,
        sot_index=len(prompt) - len(model.tokenizer().sot_sequence),
        features=features(model, number),
        temperature=temperature,
        seed=number,
        logprobs=True,
    )


Arrival = tuple[int, float]


def decoded(
    model: WhisperModel, arrivals: dict[int, list[Arrival]], recorder: Recorder | None, *, group: int = 1
) -> dict[int, Decoded]:
    """Windows come in the steps that `arrivals` names, with their temperature; the last to come goes at once."""
    batch, numbers = Batch(model, group=group, beams=False, recorder=recorder), dict[Sequence, int]()
    found: dict[int, Decoded] = {}
    step = 0
    with torch.inference_mode():
        while batch.sequences or step <= max(arrivals):
            if step in arrivals:
                new = [sequence(model, *arrival) for arrival in arrivals[step]]
                numbers |= dict(zip(new, (number for number, _ in arrivals[step]), strict=True))
                batch.make_room(len(new) + 1, at_most=CAPACITY)
                batch.admit([*new, victim := sequence(model, 1)])
                batch.step()
                batch.drop(victim)
            if batch.sequences:
                batch.step()
            for one in batch.take_done():
                assert one.decoded is not None
                found[numbers[one]] = one.decoded
            step += 1
    return found


COME_AND_GO: dict[int, list[Arrival]] = {
    0: [(1, 0.0), (2, 0.0), (3, 0.0)],
    4: [(4, 0.7)],
    9: [(5, 0.0), (6, 0.0)],
}


@pytest.mark.parametrize(("group", "is_late"), [(1, False), (1, True), (2, True)])
def test_windows_that_come_and_go_say_the_same(
    model: WhisperModel, group: int, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the host hears of the device one step late, and of what was said another."""
    expected = decoded(model, COME_AND_GO, None, group=group)
    monkeypatch.setattr(batches, "is_late", lambda device: is_late)
    recorder = Traced()
    found = decoded(model, COME_AND_GO, recorder, group=group)
    assert len({len(one.tokens) for one in expected.values()}) == 6, "they do not end at once"
    assert recorder.n_replays > 50
    assert found.keys() == expected.keys() == {1, 2, 3, 4, 5, 6}
    for number, one in found.items():
        assert one.tokens == expected[number].tokens
        assert one.sum_logprob == pytest.approx(expected[number].sum_logprob, abs=1e-3)
        assert one.no_speech_prob == pytest.approx(expected[number].no_speech_prob, abs=1e-6)
        assert one.logprobs == pytest.approx(expected[number].logprobs, abs=1e-4)
        assert sum(one.logprobs) <= 0


def test_a_record_is_of_memory_that_stays(model: WhisperModel) -> None:
    recorder = Traced(after=0)
    batch = Batch(model, group=1, beams=False, recorder=recorder)
    with torch.inference_mode():
        batch.make_room(3, at_most=CAPACITY)
        batch.admit([sequence(model, number, 0.5) for number in (1, 2, 3)])
        batch.step()
    stays = [
        *model.net.parameters(),
        *model.net.buffers(),
        *(batch._memory.cross, batch._memory.past, batch._rules._never, batch._rules._stamps),
        *vars(batch._rows).values(),
    ]
    assert {place(tensor) for tensor in recorder.outside} <= {place(tensor) for tensor in stays}


def test_what_lies_in_a_free_place_harms_nobody(model: WhisperModel) -> None:
    """Neither those who are computed with it, nor who comes there next."""
    expected = decoded(model, {0: [(2, 0.0), (5, 0.0)]}, None)
    batch = Batch(model, group=1, beams=False, recorder=Traced())
    first, second = sequence(model, 2), sequence(model, 5)
    others = [sequence(model, number) for number in (3, 4)]
    with torch.inference_mode():
        batch.make_room(CAPACITY, at_most=CAPACITY)
        batch._memory.cross.fill_(torch.nan)
        batch._memory.past.fill_(torch.nan)
        batch._rows.tokens.fill_(11)
        batch._rows.length.fill_(model.dims.n_text_ctx + 1)
        batch.admit([first, *others])  # a fourth is computed with them
        for _ in range(4):
            batch.step()
        assert batch._memory.past[:, :, 3].isnan().any()
        assert batch._rows.done[3:].all()
        batch.admit([second])
        for one in others:
            batch.drop(one)
        assert batch._rows.done[2:].all(), "a place that was left is nobody's"
        while batch.sequences:
            batch.step()
            batch.take_done()
    assert first.decoded is not None
    assert second.decoded is not None
    assert (first.decoded.tokens, second.decoded.tokens) == (expected[2].tokens, expected[5].tokens)


def test_what_was_recorded_is_forgotten_with_its_memory(model: WhisperModel) -> None:
    batch = Batch(model, group=1, beams=False, recorder=Traced(after=0))
    with torch.inference_mode():
        for capacity in (1, CAPACITY):
            batch.make_room(capacity - len(batch.sequences), at_most=CAPACITY)
            if not batch.sequences:
                batch.admit([sequence(model, 2)])
            for _ in range(3):
                batch.step()
            assert batch._capacity == capacity
            assert batch._shape().n_windows == 1
            assert batch._rows.length[0] == batch._lengths[0]


@pytest.mark.parametrize(("taken", "computed"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_few_shapes_are_recorded(model: WhisperModel, taken: int, computed: int) -> None:
    """As many as there are places, at most."""
    for recorder, expected in ((Traced(), computed), (None, taken)):
        batch = Batch(model, group=1, beams=False, recorder=recorder)
        batch._capacity = 20
        batch.sequences = [sequence(model, 1)] * taken
        batch._lengths = [63] * taken
        shape = batch._shape()
        assert (shape.n_windows, shape.longest, shape.hot) == (expected, 64, False)


def test_beams_are_never_recorded(model: WhisperModel) -> None:
    recorder = Traced(after=0)
    batch = Batch(model, group=2, beams=True, recorder=recorder)
    with torch.inference_mode():
        batch.make_room(3, at_most=CAPACITY)
        batch.admit([sequence(model, number) for number in (1, 2, 3)])
        batch.step()
    assert batch._shape().n_windows == 3
    assert recorder.outside == []


# Whole files.


def test_files_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there are places, hot and cold, with words; also where the host hears late."""
    hot = {"temperature": (0.8,), "logprob_threshold": -100, "compression_ratio_threshold": 100}
    files = [
        (spoken_at(0, 30.2), options(word_timestamps=True)),
        (speech(), options(**hot)),
        (speech("My friend is happy."), options(best_of=2, **hot)),
        (speech("The red cat hears the old king."), options(beam_size=2)),
        (speech("My friend is happy."), options(temperature=(0.0, 0.4), logprob_threshold=0.0, no_speech_threshold=1)),
    ]
    expected = together(None, files)
    monkeypatch.setattr(batches, "is_late", lambda device: True)
    recorder = Traced(after=2)
    for transcript, other in zip(together(recorder, files), expected, strict=True):
        assert_same(transcript, other)
    assert recorder.n_replays > 20


def options(**given: object) -> JobOptions:
    return JobOptions.model_validate({"model": "demo", "language": "en", **given})


def together(recorder: Recorder | None, files: list[tuple[Audio, JobOptions]]) -> list[Transcript]:
    engine = WhisperEngine(CPU, vram_reserve_mb=0, max_rows=3)
    engine.recorder = recorder
    engine.load(demo(), lambda _: None)
    begun = [engine.begin(demo(), *file) for file in files]
    while not all(one.ended for one in begun):
        engine.step()
    return [one.result() for one in begun]


# When what is recorded.


class Tape:
    """A Recorder that tells what it is asked."""

    def __init__(self, after: int, *, fails: bool = False) -> None:
        self.after = after
        self.fails = fails
        self.told: list[str] = []

    def pool(self) -> object:
        return self

    def record(self, work: Work, pool: object) -> Work | None:
        assert pool is self
        work()
        self.told.append("recorded")
        return None if self.fails else lambda: self.told.append("replayed")


def test_a_shape_is_recorded_after_it_was_used_some_times() -> None:
    tape = Tape(after=2)
    recorded = Graphs(tape)
    for _ in range(4):
        recorded.run("a", lambda: tape.told.append("a"))
    recorded.run("b", lambda: tape.told.append("b"))
    assert tape.told == ["a", "a", "a", "recorded", "replayed", "b"]


def test_what_cannot_be_recorded_is_asked_once() -> None:
    tape = Tape(after=1, fails=True)
    recorded = Graphs(tape)
    for _ in range(4):
        recorded.run("a", lambda: tape.told.append("a"))
    assert tape.told == ["a", "a", "recorded", "a", "a"]


def test_without_a_recorder_work_is_done_as_it_is() -> None:
    told: list[str] = []
    for _ in range(20):
        Graphs(None).run("a", lambda: told.append("a"))
    assert told == ["a"] * 20


class Cuda:
    """What CudaGraphs asks of torch.cuda, on a device that fails while something is recorded."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.current, self.side = Stream(), Stream()
        self.records = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graphs, "_stream", lambda: self.side)
        for name, fake in {
            "current_stream": lambda: self.current,
            "stream": self.stream,
            "graph": self.graph,
            "CUDAGraph": Graph,
            "graph_pool_handle": object,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextlib.contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph: "Graph", **given: Any) -> Iterator[None]:
        assert given["stream"] is self.current is self.side
        assert given["capture_error_mode"] == "thread_local"
        self.records += 1
        yield
        self.current = Stream()  # as torch does it: its own stream is left only when all is well
        if self.error is not None:
            raise self.error
        self.current = given["stream"]


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


class Graph:
    def replay(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "replays", "records"),
    [
        (None, 3, 3),
        (torch.OutOfMemoryError("CUDA out of memory"), 0, 3),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), 0, 1),
    ],
)
def test_a_record_that_fails_costs_no_more_than_that(
    error: Exception | None,
    replays: int,
    records: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where memory was short another shape may fit; after another error nothing is recorded any more."""
    cuda, works = Cuda(error), 0
    cuda.install(monkeypatch)
    recorder, before = CudaGraphs(), cuda.current

    def work() -> None:
        nonlocal works
        works += 1

    found = [recorder.record(work, recorder.pool()) for _ in range(3)]
    assert len([one for one in found if one is not None]) == replays
    assert (cuda.records, works) == (records, 3 + records)
    assert cuda.current is before
    told = capsys.readouterr().err.splitlines()
    assert told == ([] if error is None else [f"a step cannot be recorded and is launched kernel by kernel: {error}"])


def test_an_error_of_the_work_itself_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(None)
    cuda.install(monkeypatch)

    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs().record(work, None)
    assert cuda.records == 0


# The self-test.


class Forgetful(Traced):
    """A device that launches nothing when it is asked to replay."""

    def record(self, work: Work, pool: object) -> Work:
        work()
        return lambda: None


def test_graphs_that_say_the_same_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    engine = WhisperEngine(CPU, vram_reserve_mb=0)
    engine.recorder = recorder = Traced(after=5)
    selftest.check_graphs(engine)
    assert engine.recorder is recorder
    assert recorder.after == 5
    assert recorder.n_replays > 5
    assert capsys.readouterr().err == ""


def test_graphs_that_say_something_else_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    engine = WhisperEngine(CPU, vram_reserve_mb=0)
    engine.recorder = Forgetful()
    selftest.check_graphs(engine)
    used: Recorder | None = engine.recorder
    assert used is None
    assert capsys.readouterr().err.startswith("the self-test failed with recorded steps, which are not used: ")
    assert engine.loaded() == ()
