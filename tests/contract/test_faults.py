"""Every fault of docs/faults.md names tests that exist, and every write that moves a job has a fault point."""

import ast
import re
from pathlib import Path

import pytest

from gpu_daemon.faultpoints import FaultPoint

ROOT = Path(__file__).parent.parent.parent
TABLE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").split("\n## The matrix\n")[1]
ROWS = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", TABLE, re.MULTILINE)
CHANGES = re.compile(r"\b(INSERT INTO|DELETE FROM|SET state =|cancel_requested_at =|file_size_bytes =)")
POINT_OF_THE_CALLER = {
    ("jobs.py", "request_cancel"): FaultPoint.CANCEL_NOTED,
    ("jobs.py", "fetched"): FaultPoint.FETCH_NOTED,
    ("jobs.py", "delete"): FaultPoint.DELETED,
    ("callbacks.py", "_record"): FaultPoint.CALLBACK_RECORDED,
    ("callbacks.py", "redeliver"): FaultPoint.REDELIVERED,
}
"""Where the point stands after the store's method, in the room that called it."""


def test_every_row_is_there_once() -> None:
    assert [number for number, *_ in ROWS] == [str(number) for number in range(1, 42)]


@pytest.mark.parametrize(("number", "tests"), [(row[0], row[3]) for row in ROWS])
def test_a_fault_has_tests_that_exist(number: str, tests: str) -> None:
    named = re.findall(r"`([^`:]+\.py)::(test_\w+)`", tests)
    assert named, number
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert name in defined, f"{path} has no {name}"


def test_every_point_stands_somewhere() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gpu_daemon").rglob("*.py"))
    standing = re.findall(r"\breach\(FaultPoint\.(\w+)\)", code)
    assert set(standing) == {point.name for point in FaultPoint}


@pytest.mark.parametrize("name", ["jobs.py", "callbacks.py"])
def test_every_write_that_moves_something_has_a_point(name: str) -> None:
    source = (ROOT / "gpu_daemon" / "store" / name).read_text(encoding="utf-8")
    methods = [
        method
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.AsyncFunctionDef)
    ]
    found = 0
    for method in methods:
        text = ast.get_source_segment(source, method) or ""
        if CHANGES.search(text):
            found += 1
            assert "reach(FaultPoint." in text or (name, method.name) in POINT_OF_THE_CALLER, (
                f"{method.name} changes rows: give it a fault point and a scenario"
            )
    assert found
