"""Who speaks when is the same on the GPU as on the CPU, but for rounding."""

import threading
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.engine.base import SpeakerRequest, Spoken
from gpu_daemon.engine.diarize import DeviceKind, create
from tests import made_pipeline
from tests.gpu.device import IS_DRY, marks
from tests.gpu.recordings import recording

pytestmark = marks
OFF_BY_S = 0.05
"""Three of the segmentation's frames."""
ENDS_WITHIN_S = 240.0


def found(device: DeviceKind, request: SpeakerRequest) -> Spoken:
    ended = threading.Event()
    audio = (recording("en-sentence" if IS_DRY else "fr-dialogue") * 32767).astype(np.int16)
    diarization = create(device, "auto").begin(request, audio, ended.set)
    assert ended.wait(ENDS_WITHIN_S)
    return diarization.result()


def test_a_gpu_finds_the_turns_that_a_cpu_finds(tmp_path: Path) -> None:
    request = SpeakerRequest(pipeline=made_pipeline.write(tmp_path / "pipeline"))
    on_cpu, there = (found(device, request) for device in ("cpu", "cpu" if IS_DRY else "cuda"))
    assert (there.device, there.fallback) == ("cpu" if IS_DRY else "cuda", None)
    assert on_cpu.turns
    assert [turn.speaker for turn in there.turns] == [turn.speaker for turn in on_cpu.turns]
    for ours, theirs in zip(there.turns, on_cpu.turns, strict=True):
        assert (ours.start, ours.end) == pytest.approx((theirs.start, theirs.end), abs=OFF_BY_S)
