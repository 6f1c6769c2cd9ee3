"""The diarizer on a real GPU, beside pyannote unmodified on the same."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_daemon.engine import diarize
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.diarizers import Waiting, conversation, request_of
from tests.made_pipeline import write

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


def test_the_turns_are_those_of_pyannote_unmodified(tmp_path: Path) -> None:
    from pyannote.audio import Pipeline

    spec = write(tmp_path / "pipeline")
    unmodified = Pipeline.from_pretrained(spec.directory)
    assert unmodified is not None
    unmodified.to(torch.device("cuda"))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    spoken = Waiting(diarize.create("cuda", "cuda"), request_of(spec), conversation()).result()
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert spoken.device == "cuda"
    waveform = torch.from_numpy(conversation().astype(np.float32) / 32768)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = unmodified({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ})
    for ours, theirs in (
        (spoken.turns, output.speaker_diarization),
        (spoken.exclusive, output.exclusive_speaker_diarization),
    ):
        expected = diarize.turns_of(theirs, len(conversation()) / SAMPLE_RATE_HZ)
        assert [(turn.start, turn.end) for turn in ours] == [(turn.start, turn.end) for turn in expected]
