"""From checked files to the networks of a pyannote pipeline.

pyannote reads checkpoints with `weights_only=False`, so that loading one runs whatever is pickled in it, and its
configuration names Python classes to be imported. Here both come from bytes that were compared with their sha256, and
even so only tensors, plain values and the few classes named below come out of a checkpoint, and only pyannote's own
classes are made from names.
"""

import importlib
import io
import os
import warnings
from functools import cache
from typing import Any

import torch
import yaml

from gpu_daemon.engine.pipeline_files import CONFIG, PipelineFiles
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

PIPELINES = {
    "pyannote.audio.pipelines.SpeakerDiarization",
    "pyannote.audio.pipelines.speaker_diarization.SpeakerDiarization",
}
ARCHITECTURES = "pyannote.audio.models."
"""Where the classes of networks are."""
CHECKPOINT = "pytorch_model.bin"
TRAINING = (
    "pyannote.",
    "lightning.",
    "lightning_fabric.",
    "pytorch_lightning.",
    "torch.",
    "torchmetrics.",
    "torch_audiomentations.",
    "omegaconf.",
    "numpy.",
    "typing.",
    "collections.",
    "argparse.",
)
"""Checkpoints keep what they were trained with: callbacks, options, versions. Nothing of it is used; of these packages
an object stands for it that does nothing, anything else is refused."""
_TELEMETRY = "PYANNOTE_METRICS_ENABLED"


class Inert:
    """What a checkpoint says of its training."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def imported() -> None:
    """Imports pyannote, which takes seconds, in peace: it would tell its makers of every file (its `telemetry`), ask
    the hub for files, and warn of a decoder of audio that is not needed here.

    Raises JobError when it would talk all the same.
    """
    os.environ[_TELEMETRY] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyannote.audio.telemetry.metrics import is_metrics_enabled

    if is_metrics_enabled():
        raise JobError("pyannote.audio would report what it does to its makers", code="diarization_failed")
    _end_telemetry()


@cache
def _end_telemetry() -> None:
    """Its thread runs even where it is turned off."""
    from pyannote.audio.telemetry.metrics import provider

    provider.shutdown()


class SpeakerModels:
    """The configuration of a pipeline and its networks, on the CPU."""

    def __init__(self, files: PipelineFiles) -> None:
        """Raises JobError (`diarization_failed`) when it is not a pipeline that can be run here."""
        config = yaml.safe_load(files[CONFIG])
        try:
            name, params = config["pipeline"]["name"], config["pipeline"]["params"]
            self.segmentation_path, self.embedding_path = (
                _below(params[part]) for part in ("segmentation", "embedding")
            )
        except (KeyError, TypeError) as error:
            raise refused("config.yaml lacks what a pipeline needs") from error
        if name not in PIPELINES:
            raise refused("it is of another kind than SpeakerDiarization")
        if config.get("preprocessors"):
            raise refused("it has preprocessors")
        self.tuned: dict[str, Any] = config.get("params", {})
        self.frozen: dict[str, Any] = config.get("freeze", {})
        self.clustering: str = params.get("clustering", "VBxClustering")
        self.params = {key: params[key] for key in ("segmentation_step", "embedding_exclude_overlap") if key in params}
        self.segmentation_batch_size: int = params.get("segmentation_batch_size", 1)
        self.segmentation = load_network(files[f"{self.segmentation_path}/{CHECKPOINT}"])
        self.embedding = load_network(files[f"{self.embedding_path}/{CHECKPOINT}"])
        self.plda = self._load_plda(files, params.get("plda"))
        # MIOpen compiles a dropout that nothing uses, and fails at it (pyannote-audio#1995).
        if isinstance(lstm := getattr(self.segmentation, "lstm", None), torch.nn.LSTM):
            lstm.dropout = 0.0

    def _load_plda(self, files: PipelineFiles, named: object) -> Any:
        from pyannote.audio.core.plda import PLDA

        if self.clustering == "VBxClustering":
            directory = _below(named)
            parts = (files[f"{directory}/xvec_transform.npz"], files[f"{directory}/plda.npz"])
            return PLDA(*map(io.BytesIO, parts))
        # Pipelines of before 4.0 have none, and nothing asks for it: but it must be there.
        return PLDA.__new__(PLDA)


def load_network(data: bytes) -> Any:
    """A pyannote `Model`. Raises JobError (`diarization_failed`) when the checkpoint holds what it should not."""
    from pyannote.audio.core.model import Introspection
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from torch.torch_version import TorchVersion

    known: list[Any] = [Problem, Resolution, Specifications, Introspection, TorchVersion]
    names = {f"{each.__module__}.{each.__qualname__}" for each in known}
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)):
        if name in names:
            continue
        if not name.startswith(TRAINING):
            raise refused("a checkpoint of it holds more than a network")
        known.append((Inert, name))
    with torch.serialization.safe_globals(known):
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        try:
            architecture = checkpoint["pyannote.audio"]["architecture"]
            module, name = architecture["module"], architecture["class"]
        except (KeyError, TypeError) as error:
            raise refused("a checkpoint of it is not pyannote's") from error
        if not f"{module}.".startswith(ARCHITECTURES):
            raise refused("its networks are not pyannote's own")
        network = getattr(importlib.import_module(module), name).load_from_checkpoint(
            io.BytesIO(data), map_location="cpu", strict=False, weights_only=True
        )
    if network.audio.sample_rate != SAMPLE_RATE_HZ:
        raise refused(f"its networks do not hear {SAMPLE_RATE_HZ} Hz")
    network.eval()
    return network


def refused(why: str) -> JobError:
    return JobError(f"the diarization pipeline cannot be used: {why}", code="diarization_failed")


def _below(named: object) -> str:
    """`$model/segmentation` is the directory `segmentation` of the pipeline. Raises JobError."""
    if isinstance(named, str) and named.startswith("$model/"):
        return named.removeprefix("$model/").split("@")[0]
    raise refused("config.yaml names parts that do not lie beside it: each must be `$model/` and a directory")
