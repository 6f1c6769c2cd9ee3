"""Who speaks, from the field to every form of the answer; engine and diarizer do what they are told."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.database.pool import ConnectionParameters
from tests.serving import POLL_S, ServedDaemon, served_daemon, tone
from tests.web import Site, answer

SPOKEN = tone(12.0)
SPEAKERS = ["SPEAKER_00", "SPEAKER_01", "SPEAKER_00"]
"""Turns and segments are 5 s long."""


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(
        tmp_path, database, monkeypatch, reuse_results=True, fetch_allowed_networks=("loopback",)
    ) as served:
        yield served


def voice(seconds: float) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(tone(seconds)).decode()}"


def speakers_of(result: dict[str, Any]) -> list[str | None]:
    assert all({word["speaker"] for word in each["words"]} <= {each["speaker"]} for each in result["segments"])
    return [segment["speaker"] for segment in result["segments"]]


async def test_every_form_of_a_result_says_who_speaks(served: ServedDaemon) -> None:
    job_id = await served.submit(audio=SPOKEN, diarize="true")
    result = (await served.finished(job_id))["result"]
    assert speakers_of(result) == SPEAKERS
    assert all(segment["words"] for segment in result["segments"])
    assert [segment["speaker"] for segment in result["transcription_segments"]] == [None] * 3
    assert result["diarization_segments"][:2] == [
        {"start": 0.0, "end": 5.5, "speaker": "SPEAKER_00"},
        {"start": 5.0, "end": 10.5, "speaker": "SPEAKER_01"},
    ]
    assert result["diarization"] == {
        **{"model": "fake_pipeline", "device": "cpu", "speakers": SPEAKERS[:2]},
        **{"fallback": None, "error": None, "error_code": None},
    }
    assert "diarizing" in result["timings"]
    for format, said in {
        "text": "[SPEAKER_01]: ",
        "srt": "\n[SPEAKER_01]: ",
        "vtt": "\n<v SPEAKER_01>",
        "diarized_json": '"speaker": "B"',
    }.items():
        assert (await served.client.get(f"/jobs/{job_id}/result", params={"format": format})).text.count(said) == 1
    events = (await served.client.get(f"/jobs/{job_id}/events")).text
    told = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    assert [segment["speaker"] for event in told for segment in event.get("segments", ())] == SPEAKERS

    again = await served.finished(await served.submit(audio=SPOKEN, diarize="true"))
    assert (again["reused"], speakers_of(again["result"])) == (True, SPEAKERS)


async def test_what_is_known_of_them_is_used(served: ServedDaemon) -> None:
    asked = {"diarize": "true", "num_speakers": "3", "timestamp_granularity": "segment"}
    three = (await served.finished(await served.submit(audio=SPOKEN, **asked)))["result"]
    assert speakers_of(three) == ["SPEAKER_00", "SPEAKER_01", "SPEAKER_02"]
    assert not any(segment["words"] for segment in three["segments"])

    site = Site()
    site.put("/talk.wav", answer(body=SPOKEN))
    await site.start()
    body: dict[str, Any] = {
        **{"url": f"{site.url}/talk.wav", "diarize": True, "wait": True},
        **{"known_speaker_names": ["Ada"], "known_speaker_references": [voice(4.0)]},
    }
    named = (await served.client.post("/transcribe", json=body)).json()
    other = (await served.client.post("/transcribe", json=body | {"known_speaker_references": [voice(5.0)]})).json()
    await site.stop()
    assert speakers_of(named) == speakers_of(other) == ["Ada", "SPEAKER_00", "Ada"]
    assert not other["reused"]

    alone = await served.post(SPOKEN, task="diarize", max_speakers="1", wait="true")
    assert alone.status_code == 200
    assert (alone.json()["text"], alone.json()["segments"]) == ("", [])
    assert {turn["speaker"] for turn in alone.json()["diarization_segments"]} == {"SPEAKER_00"}
    async with asyncio.timeout(20):
        while served.directories():  # the voices go with the file
            await asyncio.sleep(POLL_S)


async def test_a_failure_to_tell_them_apart_costs_nothing_else(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DIARIZER", "error")
    async with served_daemon(tmp_path, database, monkeypatch, reuse_results=True) as served:
        job_id = await served.submit(audio=SPOKEN, diarize="true")
        job = await served.finished(job_id)
        assert (job["status"], job["error"]) == ("completed", None)
        assert speakers_of(job["result"]) == [None] * 3
        assert job["result"]["diarization"]["error_code"] == "diarization_failed"
        why = job["result"]["diarization"]["error"]
        diarized = await served.json(f"/jobs/{job_id}/result", format="diarized_json")
        assert diarized["diarization"] == {"error": why, "error_code": "diarization_failed"}
        assert {segment["speaker"] for segment in diarized["segments"]} == {"unknown"}

        files = {"file": ("talk.wav", SPOKEN)}
        processed = (await served.client.post("/process", files=files)).json()
        assert processed["diarization_error"] == why
        assert [piece["speaker"] for piece in processed["segments"]] == ["unknown"] * 3
        assert len(processed["transcription_segments"]) == 3
        refused = await served.client.post("/diarize", files=files)
        assert (refused.status_code, refused.json()["code"]) == (500, "diarization_failed")
        assert refused.json()["error"] == why

        again = await served.finished(await served.submit(audio=SPOKEN, diarize="true"))
        assert not again["reused"]


async def test_without_a_pipeline_it_is_said_why(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_daemon(tmp_path, database, monkeypatch, diarization_model=str(tmp_path / "nowhere")) as served:
        files = {"file": ("talk.wav", SPOKEN)}
        processed = await served.client.post("/process", files=files)
        refused = await served.client.post("/diarize", files=files)
    assert (processed.status_code, len(processed.json()["segments"])) == (200, 3)
    said = refused.json()
    assert (refused.status_code, said["code"], said["current_job"]) == (503, "pipeline_unavailable", None)
    assert said["error"] == said["message"] == processed.json()["diarization_error"]
    assert "DIARIZATION_MODEL" in said["error"]
    assert str(tmp_path) not in refused.text
