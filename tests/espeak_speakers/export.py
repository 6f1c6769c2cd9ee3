"""Makes the directory that `pyannote.audio.Pipeline.from_pretrained` loads.

    python -m tests.espeak_speakers.export SEGMENTATION.pt EMBEDDING.pt UNSEEN.npz OUT

Both networks are trained already; the mean of the embeddings, which is taken off, and their PLDA are computed here, of
speakers that neither was trained on. OUT's config.yaml is kept when there is one. Weights are stored in half precision,
which loading widens.
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

N_CHUNKS = 700
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
    Fa: 0.07
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
    segmentation_pt, embedding_pt, unseen, out = map(Path, sys.argv[1:])
    segmentation = train_segmentation.new_model()
    segmentation.load_state_dict(torch.load(segmentation_pt, weights_only=True))
    save(segmentation, train_segmentation.SPECIFICATIONS, out / "segmentation" / "pytorch_model.bin")

    model = embedding.new_model()
    model.load_state_dict(torch.load(embedding_pt, weights_only=True))
    heard = embedding.embeddings(model, Corpus(unseen), N_CHUNKS, seed=3)
    with torch.no_grad():
        model.resnet.seg_1.bias -= torch.tensor(heard.features.mean(0))
    whole = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=train_segmentation.CHUNK_S
    )
    save(model, whole, out / "embedding" / "pytorch_model.bin")
    embedding.save_plda(embedding.centred(heard), out / "plda")

    if not (out / "config.yaml").exists():
        (out / "config.yaml").write_text(CONFIG)
    print("\n".join(f"{each.stat().st_size:>9} {each}" for each in sorted(out.rglob("*.*"))))


if __name__ == "__main__":
    main()
