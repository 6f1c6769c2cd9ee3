"""Long files and many speakers: what is done beside the networks, in whose place is what they would say of a file in
which one speaker after the other has a turn and is interrupted by the next."""

import tracemalloc
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.engine.diarize import turns_of
from gpu_daemon.engine.known_voices import in_order
from gpu_daemon.engine.pipeline_files import PipelineFiles
from gpu_daemon.engine.speaker_models import SpeakerModels, imported
from gpu_daemon.transcript.model import SpeakerTurn
from tests.made_pipeline import CHUNK_S, EMBEDDING_DIM, N_SPEAKERS, STEP, write

N_FRAMES = 293
TURN_S, OVERLAP_S = 7.0, 1.0


@dataclass(frozen=True)
class Said:
    """By the networks, of each chunk."""

    active: Any
    """uint8[n_chunks, n_frames, n_local_speakers] with its times"""
    embeddings: np.ndarray[Any, np.dtype[np.float32]]
    """float32[n_chunks, n_local_speakers, n_dimensions]"""
    duration_s: float


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> PipelineSpec:
    return write(tmp_path_factory.mktemp("pipeline"))


def said(minutes: int, n_speakers: int) -> Said:
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    chance = np.random.default_rng(n_speakers)
    step_s = STEP * CHUNK_S
    n_chunks = int((minutes * 60 - CHUNK_S) / step_s) + 1
    voices = chance.standard_normal((n_speakers, EMBEDDING_DIM))
    active = np.zeros((n_chunks, N_FRAMES, N_SPEAKERS), np.uint8)
    embeddings = np.zeros((n_chunks, N_SPEAKERS, EMBEDDING_DIM), np.float32)
    frames_s = (np.arange(N_FRAMES) + 0.5) * CHUNK_S / N_FRAMES
    for chunk in range(n_chunks):
        times_s = chunk * step_s + frames_s
        first = max(0, int((times_s[0] - OVERLAP_S) / TURN_S))
        for local, turn in enumerate(range(first, first + N_SPEAKERS)):
            active[chunk, :, local] = (times_s >= turn * TURN_S) & (times_s < (turn + 1) * TURN_S + OVERLAP_S)
            noise = 0.3 * chance.standard_normal(EMBEDDING_DIM)
            embeddings[chunk, local] = voices[turn % n_speakers] + noise
    window = SlidingWindow(start=0.0, duration=CHUNK_S, step=step_s)
    return Said(SlidingWindowFeature(active, window), embeddings, minutes * 60.0)


def ours(spec: PipelineSpec) -> Any:
    imported()
    from gpu_daemon.engine.speakers import Speakers

    return Speakers(SpeakerModels(PipelineFiles(spec)), "cpu")


def unmodified(spec: PipelineSpec) -> Any:
    imported()
    from pyannote.audio import Pipeline

    return Pipeline.from_pretrained(spec.directory)


def found(pipeline: Any, networks: Said, **bounds: int) -> tuple[list[SpeakerTurn], list[SpeakerTurn]]:
    """All turns, and those of one at a time; speakers are named in the order of their first turns."""
    is_ours = hasattr(pipeline, "find")
    scores = networks.active if is_ours else networks.active * np.float32(1)
    pipeline.__dict__["get_segmentations"] = lambda *given, **more: scores
    pipeline.__dict__["get_embeddings"] = lambda *given, **more: networks.embeddings.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_ours:
            output = pipeline.find(np.zeros(0, np.int16), lambda fraction: None, **bounds)
        else:
            output = pipeline.apply({"uri": "audio"}, **bounds)
    turns = turns_of(output.speaker_diarization, networks.duration_s)
    exclusive = turns_of(output.exclusive_speaker_diarization, networks.duration_s)
    called = in_order(turns, {})
    return _named(turns, called), _named(exclusive, called)


def _named(turns: tuple[SpeakerTurn, ...], called: dict[str, str]) -> list[SpeakerTurn]:
    return [turn.model_copy(update={"speaker": called[turn.speaker]}) for turn in turns]


@pytest.mark.parametrize("bounds", [{}, {"num_speakers": 30}, {"max_speakers": 12}])
def test_thirty_speakers_are_found_as_pyannote_finds_them(spec: PipelineSpec, bounds: dict[str, int]) -> None:
    networks = said(8, 30)
    turns, exclusive = found(ours(spec), networks, **bounds)
    assert (turns, exclusive) == found(unmodified(spec), networks, **bounds)
    names = list(dict.fromkeys(turn.speaker for turn in turns))
    assert names == [f"SPEAKER_{number:02d}" for number in range(len(names))]
    if bounds == {"num_speakers": 30}:
        for number, turn in enumerate(turns):
            assert turn.speaker == f"SPEAKER_{number % 30:02d}"
            assert abs(turn.start - number * TURN_S) < 0.1
    assert all(one.end <= other.start for one, other in pairwise(exclusive))
    assert any(one.end > other.start for one, other in pairwise(turns))


def test_of_a_longer_file_only_so_many_are_compared(spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, networks, compared = ours(spec), said(8, 4), list[int]()
    from gpu_daemon.engine import speaker_clusters

    linkage = pipeline._linkage

    def counted(embeddings: Any, method: str, metric: str) -> Any:
        compared.append(len(embeddings))
        return linkage(embeddings, method, metric)

    pipeline.__dict__["_linkage"] = counted
    turns, _ = found(pipeline, networks)
    monkeypatch.setattr(speaker_clusters, "BLOCK", 100)
    assert found(pipeline, networks)[0] == turns, "however many at a time"
    monkeypatch.setattr(speaker_clusters, "MOST_COMPARED", 150)
    assert found(pipeline, networks)[0] == turns
    assert compared[0] == compared[1] > 2 * 150
    assert compared[2:] == [150]
    assert len({turn.speaker for turn in turns}) == 4


def test_memory_grows_with_the_length_of_a_file_and_no_faster(spec: PipelineSpec) -> None:
    pipeline = ours(spec)
    found(pipeline, said(1, 3))  # what is made once is made
    peaks_mb = {}
    for minutes in (4, 12):
        networks = said(minutes, 12)
        tracemalloc.start()
        found(pipeline, networks)
        peaks_mb[minutes] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    assert peaks_mb[12] < 3.2 * peaks_mb[4]
    assert peaks_mb[12] < 10
