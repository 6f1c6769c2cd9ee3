"""The result of an earlier job with the same audio, model and options, as that of a new one (pure)."""

import json

from gpu_daemon.engine.base import ModelSpec, PipelineSpec
from gpu_daemon.jobs.model import JobOptions


def source_of(options: JobOptions, model: ModelSpec, pipeline: PipelineSpec | None) -> str | None:
    """What makes the result, besides audio and options; None: it is not to be had again."""
    if not options.diarize:
        return model.sha256
    return None if pipeline is None else f"{model.sha256}+{pipeline.digest}"


def reused_result(text: str) -> bytes:
    """`text`: the earlier job's result; what it says of that job's run is not true of this one."""
    result = json.loads(text)
    result |= {"queue_time_s": 0.0, "processing_time_s": 0.0, "timings": {}, "gpu": None, "reused": True}
    return json.dumps(result, ensure_ascii=False).encode()
