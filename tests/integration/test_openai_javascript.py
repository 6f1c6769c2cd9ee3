"""OpenAI's own JavaScript client against the daemon: the calls are in tests/javascript."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.api import attendance as attendance_module
from gpu_daemon.database.pool import ConnectionParameters
from tests.running import ROOT
from tests.serving import served_daemon, tone

PACKAGES = ROOT / ".cache" / "javascript"
SEGMENTS = 3


pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed"),
    pytest.mark.skipif(
        not (PACKAGES / "node_modules" / "openai").exists(),
        reason="deploy/javascript.sh could not install npm's openai",
    ),
]


async def printed(script: str, *arguments: str | Path) -> Any:
    node = await asyncio.create_subprocess_exec(
        *("node", ROOT / "tests" / "javascript" / script, *arguments),
        cwd=PACKAGES,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(100):
        stdout, stderr = await node.communicate()
    assert node.returncode == 0, stderr.decode()
    return json.loads(stdout)


async def test_a_request_that_comes_again_is_joined_to_its_job(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance_module, "ARRIVAL_S", 60.0)
    wav = tmp_path / "talk.wav"
    wav.write_bytes(tone(12.0))
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        said = await printed("retry.cjs", f"{served.url}/v1", wav, tmp_path / "go")
        (job,) = (await served.json("/jobs"))["jobs"]
        result = (await served.json(f"/jobs/{job['job_id']}"))["result"]
    assert said == {"text": result["text"], "counts": ["0", "1"]}
    assert (job["status"], job["attempt"]) == ("completed", 1)


async def test_every_call_and_format(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance_module, "ARRIVAL_S", 0.0)
    wav = tmp_path / "talk.wav"
    wav.write_bytes(tone(12.0))
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        said = await printed("openai.cjs", f"{served.url}/v1", wav, tmp_path / "go")
        (hung_up, *_) = (await served.json("/jobs"))["jobs"]
        assert (await served.finished(hung_up["job_id"]))["status"] == "cancelled"

    text = said["json"]["text"]
    assert said["json"]["usage"] == {"type": "duration", "seconds": 12}
    assert said["text"] == f"{text}\n"
    assert said["srt"].startswith("1\n00:00:00,000 --> 00:00:05,000\n")
    assert said["vtt"].startswith("WEBVTT\n\n00:00.000 --> 00:05.000\n")
    assert (said["verbose_json"]["language"], said["verbose_json"]["task"]) == ("english", "transcribe")
    assert len(said["verbose_json"]["segments"]) == SEGMENTS
    assert "words" not in said["verbose_json"]
    assert " ".join(word["word"] for word in said["words"]["words"]) == text
    assert [(segment["id"], segment["speaker"]) for segment in said["diarized_json"]["segments"]] == [
        ("seg_0", "A"),
        ("seg_1", "B"),
        ("seg_2", "A"),
    ]
    assert said["auto"]["text"] == said["all_fields"]["text"] == text

    assert said["translated_json"]["text"] == text
    assert said["translated_text"] == said["text"]
    assert (said["translated_srt"], said["translated_vtt"]) == (said["srt"], said["vtt"])
    assert (said["translated_verbose_json"]["task"], said["translated_verbose_json"]["language"]) == (
        "translate",
        "english",
    )

    tokens = said["logprobs"]["logprobs"]
    assert "".join(token["token"] for token in tokens).strip() == said["logprobs"]["text"] == text
    assert all(bytes(token["bytes"]).decode() == token["token"] and token["logprob"] < 0 for token in tokens)
    *deltas, done = said["streamed_logprobs"]
    assert [token for delta in deltas for token in delta["logprobs"]] == done["logprobs"] == tokens

    *deltas, done = said["streamed"]
    assert "".join(event["delta"] for event in deltas) == done["text"] == text
    assert (done["type"], done["usage"]["type"]) == ("transcript.text.done", "tokens")
    assert [event["type"] for event in said["streamed_diarized"]] == [
        *["transcript.text.delta"] * SEGMENTS,
        *["transcript.text.segment"] * SEGMENTS,
        "transcript.text.done",
    ]
    assert {"demo", "whisper-1"} <= set(said["models"])
    assert said["model"] == "whisper-1"

    assert said["refused"] == {
        "model": refused("NotFoundError", 404, "model_not_found", "model"),
        "format": refused("BadRequestError", 400, "invalid_value", "response_format"),
        "logprobs": refused("BadRequestError", 400, "invalid_value", "include[]"),
        "failed": refused("InternalServerError", 500, "engine_error", None),
        "stream": {"kind": "APIError", "code": "engine_error", "param": None, "hasId": True},
    }


def refused(kind: str, status: int, code: str, param: str | None) -> dict[str, object]:
    return {"kind": kind, "status": status, "code": code, "param": param, "hasId": True}
