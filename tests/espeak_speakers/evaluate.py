"""How often the bundled pipeline is wrong about who speaks, on conversations of voices that it was not trained on.

    python -m tests.espeak_speakers.evaluate [--variants HELD_OUT|DEVELOPMENT] [--seconds 300] [--files 2] [--tune]
                                             [--directory gpu_daemon/demo/pipeline] [--unmodified]

The diarization error rate has no collar and counts overlaps. Without `--unmodified` each chunk goes through the
embedding network's trunk once for all its speakers, and not through the blocks that add nothing: the same arithmetic,
much faster. `--tune` tries parameters of the clustering; use it with DEVELOPMENT only.
"""

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it would send telemetry

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pyannote.audio import Pipeline
from pyannote.core import Annotation, Segment, SlidingWindowFeature, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_speakers import voices
from tests.espeak_speakers.conversations import Conversation, conversation
from tests.espeak_speakers.embedding import without_idle_blocks

BUNDLED = Path(__file__).parents[2] / "gpu_daemon" / "demo" / "pipeline"
FIRST_SEED = 900_000


def as_file(heard: Conversation) -> dict[str, Any]:
    """As pyannote takes audio that is in memory: float32[1, n_samples] and the rate; no decoder is needed."""
    return {"waveform": torch.tensor(heard.samples)[None], "sample_rate": SAMPLE_RATE_HZ, "uri": "conversation"}


def truth(heard: Conversation) -> Annotation:
    annotation = Annotation(uri="conversation")
    for i, turn in enumerate(heard.turns):
        annotation[Segment(turn.start_s, turn.end_s), i] = f"speaker {turn.speaker}"
    return annotation


def mistakes(heard: Conversation, said: Annotation) -> dict[str, float]:
    """Seconds, by pyannote.metrics: `total` of speech, `missed detection`, `false alarm`, `confusion`; and their rate,
    `diarization error rate`. No collar; overlaps count."""
    whole = Timeline([Segment(0, heard.duration_s)])
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    return {str(name): float(value) for name, value in metric(truth(heard), said, uem=whole, detailed=True).items()}


def stacked_embeddings(pipeline: Any, file: Any, segmentations: SlidingWindowFeature) -> npt.NDArray[np.float32]:
    """float32[n_chunks, n_speakers, dimension], as `SpeakerDiarization.get_embeddings` with `exclude_overlap`."""
    model = pipeline._embedding.model_
    resnet = without_idle_blocks(model)
    n_samples = segmentations.sliding_window.duration * SAMPLE_RATE_HZ
    shortest = np.ceil(segmentations.data.shape[1] * pipeline._embedding.min_num_samples / n_samples)
    found = []
    for chunk, active in segmentations:
        waveform, _ = pipeline._audio.crop(file, chunk, mode="pad")
        alone = active * (active.sum(1, keepdims=True) < 2)
        masks = np.where(alone.sum(0) > shortest, alone, active).T.astype(np.float32)
        with torch.inference_mode():
            frames = resnet.forward_frames(model.compute_fbank(waveform[None]))
            found.append(resnet.forward_embedding(frames, torch.tensor(masks)[None])[1][0].numpy())
    return np.stack(found)


def load(directory: Path, unmodified: bool) -> Any:
    pipeline: Any = Pipeline.from_pretrained(directory)
    if not unmodified:

        def get_embeddings(file: Any, segmentations: Any, **options: Any) -> npt.NDArray[np.float32]:
            if "embeddings" not in file:
                file["embeddings"] = stacked_embeddings(pipeline, file, segmentations)
            embeddings: npt.NDArray[np.float32] = file["embeddings"]
            return embeddings

        pipeline.get_embeddings = get_embeddings
        pipeline.training = True  # keeps the segmentation of a file, too
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", default="HELD_OUT", choices=("HELD_OUT", "DEVELOPMENT"))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--files", type=int, default=2, help="for each number of speakers")
    parser.add_argument("--directory", type=Path, default=BUNDLED)
    parser.add_argument("--unmodified", action="store_true")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    pipeline = load(options.directory, options.unmodified)
    files: list[tuple[Conversation, dict[str, Any]]] = []
    rates = []
    for n_speakers, i in itertools.product((2, 3, 4), range(options.files)):
        seed = FIRST_SEED + 100 * n_speakers + i
        heard = conversation(seed, n_speakers, options.seconds, variants=getattr(voices, options.variants))
        files.append((heard, as_file(heard)))
        started_at = time.process_time()
        said = pipeline(files[-1][1]).speaker_diarization
        spent_s = time.process_time() - started_at
        found = mistakes(heard, said)
        rates.append(found["diarization error rate"])
        print(
            f"{n_speakers} speakers, seed {seed}: DER {rates[-1]:.1%}, {len(said.labels())} heard;"
            f" of {found['total']:.0f} s missed {found['missed detection']:.1f}, false {found['false alarm']:.1f},"
            f" confused {found['confusion']:.1f}; {spent_s:.0f} s of CPU",
            flush=True,
        )
    print(f"mean {np.mean(rates):.1%}, worst {max(rates):.1%}")
    if options.tune:
        tune(pipeline, files)


def tune(pipeline: Any, files: Sequence[tuple[Conversation, dict[str, Any]]]) -> None:
    for threshold, fa, fb in itertools.product((0.5, 0.6, 0.7), (0.05, 0.1, 0.2), (4.0, 6.0, 8.0, 12.0)):
        pipeline.instantiate({"clustering": {"threshold": threshold, "Fa": fa, "Fb": fb}})
        rates = [mistakes(heard, pipeline(file).speaker_diarization)["diarization error rate"] for heard, file in files]
        print(f"threshold {threshold}, Fa {fa}, Fb {fb}: mean {np.mean(rates):.1%}, worst {max(rates):.1%}", flush=True)


if __name__ == "__main__":
    main()
