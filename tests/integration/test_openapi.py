"""The daemon does what its OpenAPI document says, whatever it is sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gpu_daemon.api.app import document
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


def answers(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where, of what media type, and what is said of it."""
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                for kind, said in answer.get("content", {}).items():
                    yield f"{method} {path} {status}", kind, said


def test_every_answer_has_an_example_that_fits_it() -> None:
    described = document()
    schemas = described["components"]["schemas"]
    seen = set()
    for where, kind, said in answers(described):
        schema = said.get("schema", {})
        names = [each["$ref"].rpartition("/")[2] for each in (schema, *schema.get("anyOf", ())) if "$ref" in each]
        assert "example" in said or (names and all("examples" in schemas[name] for name in names)), (where, kind)
        seen.update(names)
    for name in seen:
        whole = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
        for example in schemas[name]["examples"]:
            jsonschema_rs.validate(whole, example)
