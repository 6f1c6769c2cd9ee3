"""Where tests/gpu runs: on a GPU if there is one; GPU_DAEMON_GPU_TESTS_ON=cpu is a dry run, with less to hear."""

import os
import shutil

import pytest

from tests.gpu import recordings

ON = os.environ.get("GPU_DAEMON_GPU_TESTS_ON") or ("cuda" if shutil.which("nvidia-smi") else None)
IS_DRY = ON == "cpu"
marks = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(ON is None, reason="no NVIDIA GPU here; GPU_DAEMON_GPU_TESTS_ON=cpu is a dry run"),
    pytest.mark.skipif(
        ON is not None and not recordings.PATH.exists(), reason="nothing to hear: `bench/gpu.sh pack` makes it"
    ),
    pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning"),  # whisper's vocabularies
]
gpu_only = pytest.mark.skipif(IS_DRY, reason="a CPU has no such memory")
NAMES = ("en-sentence", "500ms", "one-hop") if IS_DRY else recordings.NAMES
N_TOGETHER = 4 if IS_DRY else 32
