"""The daemon does what its OpenAPI document says, whatever it is sent."""

from pathlib import Path

import pytest

from gpu_daemon.database.pool import ConnectionParameters
from tests.fuzz import SAME_AS_AT_THE_ROOT, STREAMS, fuzz


@pytest.mark.timeout(400)
async def test_schemathesis_finds_nothing(tmp_path: Path, database: ConnectionParameters) -> None:
    """All its checks, links included; a few examples for each operation. `make fuzz` tries many, and every boundary."""
    arguments = ["--phases", "examples,fuzzing,stateful", "--max-examples", "2", "--seed", "1", "--no-shrink"]
    arguments += ["--warnings", "off"]
    excluded = f"{STREAMS}|{SAME_AS_AT_THE_ROOT}"
    status, said = await fuzz(tmp_path, database, arguments, excluded=excluded)
    assert status == 0, said[-6000:]
    assert "No issues found" in said
