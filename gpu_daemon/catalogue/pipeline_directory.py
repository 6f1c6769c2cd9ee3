"""A pipeline's files as they are on the disk."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.hashing import sha256_of
from gpu_daemon.catalogue.pipeline_config import CONFIG, belongs
from gpu_daemon.durable import write
from gpu_daemon.engine.base import PipelineSpec
from gpu_daemon.errors import PipelineUnavailable

MOST_FILES = 100

Stamps = Mapping[str, tuple[int, int]]
"""Bytes and time of change, by path."""


class Manifest(BaseModel):
    """What came from the hub when it came first: nothing else is ever taken for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    revisions: dict[str, str]
    """The commit by repository, of all that it was made from."""
    files: dict[str, str]
    """SHA-256 by path below the directory."""

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """Blocks. None as well when it is damaged: what is on the disk comes again then."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        """Blocks. Raises OSError."""
        write(path, self.model_dump_json(indent=1).encode())


@dataclass(frozen=True, slots=True)
class Checked:
    """A pipeline whose files were hashed; a file that keeps its size and its time of change is the same still."""

    spec: PipelineSpec
    stamps: Stamps
    size_bytes: int

    @classmethod
    async def of(cls, name: str, directory: Path, paths: list[str]) -> "Checked":
        """Raises OSError."""
        stamps = await blocking(partial(_stamps, directory, paths))
        files = {path: await sha256_of(directory / path) for path in paths}
        size_bytes = sum(size for size, _ in stamps.values())
        return cls(PipelineSpec(name=name, directory=directory, files=files), stamps, size_bytes)

    async def unchanged(self) -> bool:
        try:
            return await blocking(partial(_stamps, self.spec.directory, list(self.spec.files))) == self.stamps
        except OSError:
            return False


def paths_in(directory: Path) -> list[str]:
    """Of all that a pipeline is made of. Blocks. Raises PipelineUnavailable, OSError."""
    found: list[str] = []
    for root, directories, names in os.walk(directory, followlinks=False):
        directories[:] = [name for name in directories if not name.startswith(".")]
        below = PurePosixPath(Path(root).relative_to(directory).as_posix())
        found += [str(below / name) for name in names if belongs(below / name)]
        if len(found) > MOST_FILES:
            raise PipelineUnavailable(f"DIARIZATION_MODEL is a directory of more than {MOST_FILES} files: no pipeline")
    if CONFIG not in found:
        raise PipelineUnavailable(f"DIARIZATION_MODEL is a directory without {CONFIG}: no pipeline")
    return sorted(found)


def _stamps(directory: Path, paths: list[str]) -> Stamps:
    found = {path: (directory / path).stat() for path in paths}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in found.items()}
