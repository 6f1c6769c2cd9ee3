"""Makes the directory that `pyannote.audio.Pipeline.from_pretrained` loads.

    python -m tests.espeak_speakers.export SEGMENTATION.pt TRAINED.npz DEVELOPMENT.npz OUT

The segmentation network is trained already; the embedding network and its PLDA are computed here. OUT's config.yaml is
kept when there is one. Weights are stored in half precision, which loading widens.
"""

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it would send telemetry

import sys
from pathlib import Path
from typing import Any

import lightning
import pyannote.audio
import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications

from tests.espeak_speakers import embedding, train_segmentation
from tests.espeak_speakers.corpus import Corpus

N_CHUNKS, N_EXAMINED = 450, 50
CONFIG = """\
dependencies:
  pyannote.audio: 4.0.0

pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: VBxClustering
    segmentation: $model/segmentation
    segmentation_batch_size: 16
    embedding: $model/embedding
    embedding_batch_size: 16
    embedding_exclude_overlap: true
    plda: $model/plda

params:
  clustering:
    threshold: 0.6
    Fa: 0.05
    Fb: 4.0
  segmentation:
    min_duration_off: 0.0
"""


def save(model: Any, specifications: Specifications, path: Path) -> None:
    """As Lightning and `pyannote.audio.Model.on_save_checkpoint` do, but for the half precision."""
    weights = {
        name: (tensor.half() if tensor.is_floating_point() and "running" not in name else tensor).clone()
        for name, tensor in model.state_dict().items()
    }
    checkpoint = {
        "state_dict": weights,
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": lightning.__version__,
        "pyannote.audio": {
            "versions": {"pyannote.audio": pyannote.audio.__version__},
            "architecture": {"module": type(model).__module__, "class": type(model).__name__},
            "specifications": specifications,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)


def main() -> None:
    trained_pt, trained, development, out = map(Path, sys.argv[1:])
    segmentation = train_segmentation.new_model()
    segmentation.load_state_dict(torch.load(trained_pt, weights_only=True))
    save(segmentation, train_segmentation.SPECIFICATIONS, out / "segmentation" / "pytorch_model.bin")

    model = embedding.new_model()
    heard = embedding.statistics(model, Corpus(trained), N_CHUNKS, seed=3)
    embedding.fit_last_layer(model, heard)
    unknown = embedding.statistics(model, Corpus(development), N_EXAMINED, seed=4)
    print(f"equal error rate {embedding.equal_error_rate(embedding.embeddings(model, unknown)):.1%}")
    whole = Specifications(problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=embedding.CHUNK_S)
    save(model, whole, out / "embedding" / "pytorch_model.bin")
    embedding.save_plda(embedding.embeddings(model, heard), out / "plda")

    if not (out / "config.yaml").exists():
        (out / "config.yaml").write_text(CONFIG)
    print("\n".join(f"{each.stat().st_size:>9} {each}" for each in sorted(out.rglob("*.*"))))


if __name__ == "__main__":
    main()
