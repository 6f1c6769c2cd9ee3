"""The files of a diarization pipeline, read once: what was compared is what is loaded (no torch here)."""

import hashlib
from pathlib import Path

from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.errors import JobError

CONFIG = "config.yaml"


class PipelineFiles:
    """Bytes by path below the pipeline's directory; nothing that was not compared can be had."""

    def __init__(self, spec: PipelineSpec) -> None:
        """Raises JobError (`pipeline_changed`) when a file differs from its sha256, or is gone."""
        self._bytes: dict[str, bytes] = {}
        for path, sha256 in spec.files.items():
            try:
                data = (spec.directory / path).read_bytes()
            except OSError as error:
                raise _changed(spec) from error
            if hashlib.sha256(data).hexdigest() != sha256:
                raise _changed(spec)
            self._bytes[path] = data

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self._bytes.values()))

    def __contains__(self, path: str) -> bool:
        return path in self._bytes

    def __getitem__(self, path: str) -> bytes:
        """Raises JobError (`diarization_failed`) when the pipeline has no such file, or none that was compared."""
        try:
            return self._bytes[path]
        except KeyError:
            name = Path(path).name
            raise JobError(
                f"the diarization pipeline has no {name} where it should", code="diarization_failed"
            ) from None


def _changed(spec: PipelineSpec) -> JobError:
    return JobError(
        f"the files of the diarization pipeline {spec.name} are not those that were checked when they came",
        code="pipeline_changed",
    )
