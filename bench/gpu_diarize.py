"""Who speaks when on a GPU: ours beside unmodified pyannote, the same pipeline, file and device.

`python -m bench.gpu_diarize` (bench/gpu.sh). The pipeline is the bundled one, or without that one of random weights.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu_record import arguments, device_of, record
from bench.gpu_roofline import wait
from gpu_daemon.demo.child import CHECKOUT
from gpu_daemon.engine.base import Pcm, PipelineSpec, SpeakerRequest
from gpu_daemon.engine.diarize import PyannoteDiarizer, create
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests import made_pipeline
from tests.gpu.recordings import recording

BUNDLED = CHECKOUT / "gpu_daemon" / "demo" / "pipeline"


def main() -> int:
    given = arguments(__doc__)
    device = device_of(given)
    duration_s = 10 if given.device == "cpu" else 1800
    once = (recording("fr-dialogue") * 32767).astype(np.int16)
    audio: Pcm = np.tile(once, -(-duration_s * SAMPLE_RATE_HZ // len(once)))[: duration_s * SAMPLE_RATE_HZ]
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as name:
        bundled = (BUNDLED / "config.yaml").exists()
        spec = made_pipeline.spec_of(BUNDLED) if bundled else made_pipeline.write(Path(name) / "pipeline")
        contenders = {"gpu_daemon": _ours(create(given.device, "auto"), spec), "pyannote": _theirs(spec, device)}
        for who, find in contenders.items():
            find(audio[: 20 * SAMPLE_RATE_HZ])
            wait(device)
            began_s = time.perf_counter()
            n_turns = find(audio)
            took_s = time.perf_counter() - began_s
            record(
                given.out,
                f"diarize {who}",
                pipeline="bundled" if bundled else "random",
                seconds=duration_s,
                took_s=took_s,
                real_time_factor=duration_s / took_s,
                turns=n_turns,
            )
    return 0


def _ours(diarizer: PyannoteDiarizer, spec: PipelineSpec) -> Any:
    def find(audio: Pcm) -> int:
        ended = threading.Event()
        diarization = diarizer.begin(SpeakerRequest(pipeline=spec), audio, ended.set)
        ended.wait()
        return len(diarization.result().turns)

    return find


def _theirs(spec: PipelineSpec, device: torch.device) -> Any:
    from pyannote.audio import Pipeline

    pipeline = Pipeline.from_pretrained(spec.directory).to(device)

    def find(audio: Pcm) -> int:
        waveform = torch.from_numpy(audio.astype(np.float32) / 32768)[None]
        output = pipeline({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ})
        return len(list(output.speaker_diarization.itertracks()))

    return find


if __name__ == "__main__":
    sys.exit(main())
