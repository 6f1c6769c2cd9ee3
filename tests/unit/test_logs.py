import asyncio
import errno
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pytest
import structlog

from gpu_daemon.logs import about, configure, log, redact


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    root.handlers, level = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == "", "logs go to stderr only"
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_json_with_action_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    log.info("job.completed", job_id="7", seconds=1.5)
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "job.completed", "level": "info", "job_id": "7", "seconds": 1.5}


@pytest.mark.parametrize("sign", ["", "a@b"])
def test_what_json_does_not_know_is_written_as_text(capsys: pytest.CaptureFixture[str], sign: str) -> None:
    configure("INFO", "json")
    log.info("a", path=Path("/a"), names={"b"}, by={("c", 1): 2}, of=MappingProxyType({"d": 3}), error=ValueError("ß"))
    log.info("b", said=sign, path=Path("/a"), names={"b"}, of=MappingProxyType({"d": 3}), error=ValueError("ß"))
    first, second = lines(capsys)
    assert first["by"] == {"('c', 1)": 2}
    for line in (first, second):
        assert (line["path"], line["names"], line["of"], line["error"]) == ("/a", ["b"], {"d": 3}, "ß")


@pytest.mark.parametrize(("level", "expected"), [("DEBUG", 2), ("INFO", 1), ("ERROR", 0)])
def test_our_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str], level: str, expected: int) -> None:
    configure(level, "json")
    log.debug("a")
    log.info("b")
    assert len(lines(capsys)) == expected


def test_libraries_come_out_in_the_same_form_from_warning_upwards(capsys: pytest.CaptureFixture[str]) -> None:
    configure("DEBUG", "json")
    logging.getLogger("uvicorn.error").info("not heard")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request %s", "received")
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    first, second = lines(capsys)
    assert (first["event"], first["level"], first["logger"]) == (
        "Invalid HTTP request received",
        "warning",
        "uvicorn.error",
    )
    assert (second["level"], second["logger"]) == ("error", "asyncio")


@pytest.mark.parametrize("format", ["json", "pretty"])
def test_an_exception_is_written_without_the_secrets_in_it(
    capsys: pytest.CaptureFixture[str], format: Literal["json", "pretty"]
) -> None:
    configure("INFO", format)
    try:
        raise ValueError("cannot reach postgresql://scribe:hunter22@db/jobs")
    except ValueError:
        log.exception("database.lost")
    written = capsys.readouterr().err
    assert "ValueError: cannot reach postgresql://[secret]@db/jobs" in written
    assert "hunter22" not in written


def test_auto_is_json_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    configure("INFO", "auto")
    log.info("a")
    assert lines(capsys)[0]["event"] == "a"


def test_auto_is_pretty_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure("INFO", "auto")
    log.info("daemon.started", url="http://localhost:8000")
    written = capsys.readouterr().err
    assert not written.startswith("{")
    assert "daemon.started" in written
    assert "http://localhost:8000" in written


class FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_line_that_cannot_be_written_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", FullDisk())
    configure("INFO", "json")
    log.info("a")


def test_values_of_secret_names_are_struck_out_at_any_depth(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    log.info("request", headers={"Authorization": "k-12345", "Accept": "*/*"}, hf_token="anything", job_id="7")
    [line] = lines(capsys)
    assert line["headers"] == {"Authorization": "[secret]", "Accept": "*/*"}
    assert line["hf_token"] == "[secret]"
    assert line["job_id"] == "7"


def test_secrets_inside_quotes_leave_the_line_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    log.info("request", body='{"authorization": "k-12345"}', urls=["http://a:b@c/d"], error=ValueError("hf_abcdefgh1"))
    [line] = lines(capsys)
    assert line["body"] == '{"authorization": "[secret]"}'
    assert line["urls"] == ["http://[secret]@c/d"]
    assert line["error"] == "hf_[secret]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token hf_abcdefghijKLMNOP1234 refused", "token hf_[secret] refused"),
        ("CALLBACK_SECRET=whsec_C2FVsBQIhrscChlQIM+/b5==", "CALLBACK_SECRET=whsec_[secret]"),
        ("sent Authorization: Bearer sk-abc.def_123", "sent Authorization: Bearer [secret]"),
        ("sent Authorization: Basic dXNlcjpwYXNz", "sent Authorization: Basic [secret]"),
        ("Authorization: plainkey", "Authorization: [secret]"),
        ("{'x-api-key': 'plainkey', 'accept': '*/*'}", "{'x-api-key': '[secret]', 'accept': '*/*'}"),
        ("[(b'authorization', b'plainkey'), (b'host', b'a')]", "[(b'authorization', b'[secret]'), (b'host', b'a')]"),
        ("POST https://user:pass@example.org/hook", "POST https://[secret]@example.org/hook"),
        ("POST https://user:p@ss@example.org/hook", "POST https://[secret]@example.org/hook"),
        ("postgresql://scribe@/tmp/socket", "postgresql://[secret]@/tmp/socket"),
    ],
)
def test_secrets_are_struck_out(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/jobs/1?who=a@b.example",
        "mail to a@b.example",
        "hf_ is the prefix of a token",
        "the basic rule",
        "authorization failed",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


async def test_a_task_of_its_own_says_what_it_is_about_and_nothing_of_who_began_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("INFO", "json")
    stages = iter((None, "preparing", "transcribing"))

    async def work() -> None:
        log.info("claiming")
        log.info("decoding")
        log.info("retried", worker=9)

    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        await asyncio.create_task(work(), context=about(job_id="7", worker=1, gpu=None, stage=lambda: next(stages)))
        log.info("answered")
    claiming, decoding, retried, answered = (
        {name: line.get(name) for name in ("job_id", "stage", "worker", "request_id")} for line in lines(capsys)
    )
    assert claiming == {"job_id": "7", "stage": None, "worker": 1, "request_id": None}
    assert decoding == {"job_id": "7", "stage": "preparing", "worker": 1, "request_id": None}
    assert retried == {"job_id": "7", "stage": "transcribing", "worker": 9, "request_id": None}
    assert answered == {"job_id": None, "stage": None, "worker": None, "request_id": "req_1"}
