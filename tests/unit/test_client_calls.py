"""What the client does with answers and with their absence; and callbacks that are signed, or are not."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook

from gpu_daemon.client import NO_ANSWER, BadSignature, GpuDaemonClientError, JobEvent, Retries, verify_callback
from gpu_daemon.client.calls import Ask, Call, Calls, EventReader, Pause, retry_after_s
from gpu_daemon.client.upload import arguments
from tests.running import ROOT

SECRET = "whsec_" + "c2VjcmV0" * 6
ACCEPTED = {"job_id": "7"}


def answer(status: int, body: Any = None, **headers: str) -> httpx2.Response:
    request = httpx2.Request("GET", "http://daemon/x")
    return httpx2.Response(status, json=body, headers=headers, request=request)


def drive(call: Call[Any], outcomes: list[httpx2.Response | httpx2.HTTPError]) -> tuple[Any, list[Ask], list[float]]:
    """The value, or the error; what was asked, and how long was waited before each but the first."""
    asked: list[Ask] = []
    waited: list[float] = []
    outcome: httpx2.Response | httpx2.HTTPError | None = None
    try:
        while True:
            step = call.send(outcome)
            outcome = None
            if isinstance(step, Pause):
                waited.append(step.seconds)
            else:
                asked.append(step)
                outcome = outcomes[len(asked) - 1]
    except StopIteration as done:
        return done.value, asked, waited
    except GpuDaemonClientError as error:
        return error, asked, waited


def calls(**retries: Any) -> Calls:
    return Calls("http://daemon", Retries(**retries))


def test_a_submission_that_is_sent_again_is_the_same_one() -> None:
    ours = calls()
    ours.answered = True
    value, asked, waited = drive(
        ours.submit(Path("talk.wav"), {"language": "en", "diarize": False, "model": None}, None),
        [answer(503), httpx2.ReadTimeout("x"), httpx2.ConnectError("x"), answer(202, ACCEPTED)],
    )
    assert value == "7"
    assert len({ask.headers["Idempotency-Key"] for ask in asked}) == 1
    assert asked[0].form == {"language": ["en"], "diarize": ["false"]}
    assert 0.4 <= waited[0] <= 0.5 < waited[1] <= 1.0 < waited[2] <= 2.0
    _, (other,), _ = drive(ours.submit("https://example.org/a.mp3", {}, None), [answer(202, ACCEPTED)])
    assert other.headers != asked[0].headers
    assert (other.form, other.file) == ({"url": ["https://example.org/a.mp3"]}, None)


def test_a_backend_needs_one_package_for_the_client() -> None:
    """Beside httpx2 and what that brings along; docs/clients.md says so."""
    script = "import sys, gpu_daemon.client; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    ours = {"pydantic", "pydantic_settings", "fastapi", "starlette", "asyncpg", "structlog", "numpy", "psutil", "typer"}
    assert ours & set(imported.stdout.split()) == set()


def test_fields_are_sent_as_the_form_has_them() -> None:
    fields = {"metadata": {"order": 7}, "priority": 3, "timestamp_granularities[]": ["word", "segment"], "prompt": "é"}
    _, (ask,), _ = drive(calls().submit("talk.wav", fields, None), [answer(202, ACCEPTED)])
    assert ask.file == Path("talk.wav")
    assert ask.form == {
        "metadata": ['{"order": 7}'],
        "priority": ["3"],
        "timestamp_granularities[]": ["word", "segment"],
        "prompt": ["é"],
    }


def test_voices_that_are_known_come_as_files_and_ask_who_speaks(tmp_path: Path) -> None:
    (tmp_path / "ada.wav").write_bytes(b"RIFF")
    (tmp_path / "eve").write_bytes(b"RIFF")
    known: dict[str, Path | str] = {"Ada": tmp_path / "ada.wav", "Eve": str(tmp_path / "eve")}
    _, (ask,), _ = drive(
        calls().submit("https://example.org/a.mp3", {"num_speakers": 2}, None, known), [answer(202, ACCEPTED)]
    )
    assert ask.form == {"diarize": ["true"], "num_speakers": ["2"], "url": ["https://example.org/a.mp3"]}
    with arguments(ask) as given:
        voices = [(name, value) for name, (_, value) in given["files"] if name.startswith("known")]
    assert voices == [
        ("known_speaker_names[]", "Ada"),
        ("known_speaker_references[]", "data:audio/x-wav;base64,UklGRg=="),
        ("known_speaker_names[]", "Eve"),
        ("known_speaker_references[]", "data:application/octet-stream;base64,UklGRg=="),
    ]


def test_a_name_that_is_no_text_is_sent_with_a_mark_in_its_place(tmp_path: Path) -> None:
    """File systems keep bytes; a form has UTF-8."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    path.write_bytes(b"RIFF")
    _, (ask,), _ = drive(calls().submit(path, {}, None, {"caf\udce9": path}), [answer(202, ACCEPTED)])
    with arguments(ask) as given:
        names = [value for name, (_, value) in given["files"] if name == "known_speaker_names[]"]
        assert (given["files"][-1][1][0], names) == ("caf\ufffd.wav", ["caf\ufffd"])


def test_retry_after_is_obeyed() -> None:
    value, _, waited = drive(
        calls().health(), [answer(429, None, **{"Retry-After": "7"}), answer(200, {"status": "x"})]
    )
    assert (value, waited) == ({"status": "x"}, [7.0])
    error, asked, waited = drive(calls().health(), [answer(503, None, **{"Retry-After": "61"})])
    assert (error.status, len(asked), waited) == (503, 1, [])
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    assert retry_after_s(format_datetime(now + timedelta(seconds=9), usegmt=True), now) == 9.0
    assert retry_after_s(format_datetime(now - timedelta(seconds=9), usegmt=True), now) == 0.0
    assert [retry_after_s(said, now) for said in (None, "soon", "")] == [None, None, None]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 415, 500])
def test_what_the_daemon_means_is_not_asked_again(status: int) -> None:
    said = {"error": {"message": "no", "code": "because", "type": "x", "param": None}}
    error, asked, _ = drive(calls().health(), [answer(status, said, **{"x-request-id": "req_1"})])
    assert (error.status, error.code, error.message, error.request_id) == (status, "because", "no", "req_1")
    assert len(asked) == 1


def test_patience_ends() -> None:
    error, asked, waited = drive(calls(most=2).health(), [answer(502)] * 3)
    assert (error.status, error.code, len(asked), len(waited)) == (502, NO_ANSWER, 3, 2)


def test_who_follows_a_job_waits_for_a_daemon_that_restarts_and_is_told() -> None:
    told: list[tuple[str, float]] = []
    ours = calls(told=lambda error, pause_s: told.append((error.message, pause_s)))
    ours.answered = True
    error, asked, waited = drive(ours.job("7", following=True), [httpx2.ConnectError("refused")] * 100)
    assert (error.code, len(asked)) == (NO_ANSWER, 81)
    assert 480 < sum(waited) < 640
    assert told == [("no daemon answers at http://daemon: refused", pause_s) for pause_s in waited]
    assert len(drive(ours.job("7"), [httpx2.ConnectError("refused")] * 100)[1]) == 4


def test_who_never_answered_is_not_waited_for() -> None:
    error, asked, _ = drive(calls().health(), [httpx2.ConnectError("refused")])
    assert (error.status, error.code, len(asked)) == (None, NO_ANSWER, 1)
    assert "no daemon answers at http://daemon: refused" in error.message
    assert isinstance(error.__cause__, httpx2.ConnectError)


def test_a_cancel_whose_answer_was_lost_is_not_repeated() -> None:
    ours = calls()
    ours.answered = True
    _, asked, _ = drive(ours.cancel("7"), [httpx2.ReadError("x")])
    assert len(asked) == 1
    _, asked, _ = drive(ours.cancel("7"), [httpx2.ConnectError("x"), answer(404)])
    assert len(asked) == 2


def test_events_are_read_line_by_line() -> None:
    reader = EventReader()
    lines = ["retry: 2000", "", ": keep-alive", "", "id: 1000002", "event: state", 'data: {"a": "b: c"}', "", ""]
    assert [event for line in lines if (event := reader.read(line)) is not None] == [
        JobEvent(kind="state", id=1_000_002, json={"a": "b: c"})
    ]


def signed(body: str, at: datetime) -> dict[str, str]:
    signature = Webhook(SECRET).sign("msg_1", at, body)
    return {"Webhook-Id": "msg_1", "webhook-timestamp": str(int(at.timestamp())), "Webhook-Signature": signature}


def test_a_callback_is_verified() -> None:
    body = json.dumps({"job_id": "7", "status": "completed"})
    now = datetime.now(UTC)
    headers = signed(body, now)
    assert verify_callback(body.encode(), headers, SECRET) == {"job_id": "7", "status": "completed"}
    both = headers | {"Webhook-Signature": f"v1,b2xk v1a,eA== {headers['Webhook-Signature']}"}
    assert verify_callback(body.encode(), both, SECRET)["job_id"] == "7"
    for wrong_body, wrong_headers, secret in (
        (body.replace("7", "8"), headers, SECRET),
        (body, headers, SECRET.replace("c2", "d2")),
        (body, headers | {"Webhook-Id": "msg_2"}, SECRET),
        (body, headers | {"webhook-timestamp": str(int(time.time()) + 1)}, SECRET),
        (body, headers | {"webhook-timestamp": "now"}, SECRET),
        (body, {}, SECRET),
        (body, signed(body, now - timedelta(seconds=301)), SECRET),
        (body, signed(body, now + timedelta(seconds=310)), SECRET),
    ):
        with pytest.raises(BadSignature):
            verify_callback(wrong_body.encode(), wrong_headers, secret)
    with pytest.raises(ValueError, match="whsec_"):
        verify_callback(body.encode(), headers, "secret")
