"""The engine hears what `whisper.transcribe` hears, whoever shares the batch. `make parity` asks for all of it."""

import random
from collections.abc import Sequence

import pytest
import torch
import whisper

from gpu_daemon.engine.transcribe import WhisperEngine, create
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import Transcript
from tests.parity.case import CASES, Case
from tests.parity.corpus import recording
from tests.parity.golden import golden, load
from tests.parity.hear import hear
from tests.parity.judge import judge

SEED = 8
MOST_WINDOWS = 3
pytestmark = [
    pytest.mark.timeout(600),  # half a minute of work for one core, which a loaded machine has in no hurry
    pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning"),  # whisper's vocabularies
]


@pytest.fixture(scope="module")
def engine() -> WhisperEngine:
    engine = create("cpu", 0)
    torch.set_num_threads(1)  # several would wait for each other by spinning
    return engine


def mix(n: int, seed: int) -> list[Case]:
    """Any files, languages and options, but none that takes long."""
    short = [case for case in CASES if len(load()[str(case)].heard.windows) <= MOST_WINDOWS]
    return random.Random(seed).sample(short, n)


def heard(engine: WhisperEngine, cases: Sequence[Case], at_once: int) -> list[Transcript]:
    return hear(engine, [(case.spec, recording(case.recording).samples, case.options) for case in cases], at_once)


def assert_heard(cases: Sequence[Case], transcripts: Sequence[Transcript]) -> None:
    verdicts = [judge(case, transcript) for case, transcript in zip(cases, transcripts, strict=True)]
    assert not [f"{verdict.case}: {verdict.failure}" for verdict in verdicts if verdict.failure]
    assert sum(verdict.tokens for verdict in verdicts) > 50 * len(cases), "they hardly compare anything"


@pytest.mark.parametrize(("at_once", "n_cases"), [(1, 6), (8, 16)])
def test_what_whisper_hears_is_heard(engine: WhisperEngine, at_once: int, n_cases: int) -> None:
    cases = mix(n_cases, SEED + at_once)
    assert_heard(cases, heard(engine, cases, at_once))


def test_who_shares_the_batch_changes_nothing(engine: WhisperEngine) -> None:
    cases = mix(34, SEED)
    together = heard(engine, cases, 32)
    assert_heard(cases, together)
    alone = heard(engine, cases[:2], 1)
    for case, one, among_others in zip(cases, alone, together, strict=False):
        assert one.text == among_others.text, str(case)
        assert [segment.tokens for segment in one.segments] == [segment.tokens for segment in among_others.segments]
        for ours, theirs in zip(one.segments, among_others.segments, strict=True):
            assert (ours.start, ours.end, ours.temperature) == (theirs.start, theirs.end, theirs.temperature)
            assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-4)


def test_a_network_of_the_size_of_tiny(engine: WhisperEngine) -> None:
    cases = [Case("500ms", "words", "random-tiny")]
    assert_heard(cases, heard(engine, cases, 1))
    engine.unload("random-tiny")


@pytest.mark.parametrize("recorded", ["60s", "30s", "30s-less-one", "en-sentence", "one-sample", "all-kinds"])
def test_each_window_is_encoded_once(engine: WhisperEngine, recorded: str) -> None:
    case = Case(recorded, "words")
    samples = recording(recorded).samples
    before = engine.encoded_windows
    heard(engine, [case], 1)
    # The language of what is shorter than a window is heard with silence after it, and the window with nothing at all.
    is_short = len(samples) < whisper.audio.CHUNK_LENGTH * SAMPLE_RATE_HZ
    assert engine.encoded_windows - before == len(golden(case).heard.windows) + is_short
