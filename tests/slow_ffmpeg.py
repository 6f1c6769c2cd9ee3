"""An ffmpeg whose decoding waits, so that a job can be met while it is prepared."""

import os
import shutil
from pathlib import Path

SCRIPT = """#!/bin/sh
case "$*" in *"-f s16le"*) while [ ! -e "{go}" ]; do sleep 0.05; done ;; esac
exec {ffmpeg} "$@"
"""


def slow_ffmpeg(directory: Path, go: Path) -> str:
    """A PATH on which decoding goes on once `go` exists; probing does not wait."""
    found = shutil.which("ffmpeg")
    assert found is not None
    directory.mkdir()
    script = directory / "ffmpeg"
    script.write_text(SCRIPT.format(go=go, ffmpeg=found))
    script.chmod(0o755)
    return f"{directory}{os.pathsep}{os.environ['PATH']}"
