"""Tokens of the hub: they open what they are for, and are seen nowhere else. A daemon, a hub and a receiver."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from websockets.asyncio.client import connect

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.settings import SECRETS
from tests.fake_hub import FakeHub, pipeline_files
from tests.origin import Reply
from tests.receiver import Receiver
from tests.running import FAKE_ENGINE, ONE_AT_A_TIME, RunningDaemon, descendants, running_daemon
from tests.serving import tone

NAME = "somebody/speaker-diarization"
OWN, WRONG, GOOD = "canary-own-5d1c7e", "canary-wrong-9b2f4a", "canary-good-3e8d60"
"""Without the hf_ by which a log would know them: they must not come there at all."""
MALFORMED, KEY = "canary broken-71a0", "canary-key"
SIGN = "canary"
FORMATS = ("json", "verbose_json", "diarized_json", "text", "srt", "vtt", "tsv")


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    hub = FakeHub()
    hub.members.add(GOOD)
    hub.strangers.add(OWN)
    await hub.start()
    hub.publish(NAME, pipeline_files())
    yield hub
    await hub.stop()


def settings(hub: FakeHub) -> dict[str, str]:
    return FAKE_ENGINE | {
        "GPU_DAEMON_DIARIZER": "tests.fake_diarizer:create",
        "DIARIZATION_MODEL": NAME,
        "HF_ENDPOINT": hub.url,
        "NO_PROXY": "127.0.0.1,127.0.0.2",
    }


async def stored(database: ConnectionParameters) -> str:
    """Every value of every row of every table of ours."""
    connection = await asyncpg.connect(**database.arguments())
    try:
        tables = await connection.fetch(
            """SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
               WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"""
        )
        assert len(tables) > 3
        rows = [await connection.fetch(f"SELECT each::text FROM {table['name']} AS each") for table in tables]
        assert sum(map(len, rows)) > 10
        return "\n".join(row[0] for found in rows for row in found)
    finally:
        await connection.close()


def written(directory: Path) -> bytes:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return b"\n".join(path.read_bytes() for path in files) + "\n".join(map(str, files)).encode()


async def told(daemon: RunningDaemon, job_id: str) -> str:
    """Everything that its events say, to the end."""
    async with asyncio.timeout(60), daemon.client.stream("GET", f"/jobs/{job_id}/events") as response:
        return (await response.aread()).decode()


async def watch(daemon: RunningDaemon, told: list[str]) -> None:
    """Whatever the page is told goes to `told`."""
    async with connect(daemon.url.replace("http", "ws", 1) + "/ws/dashboard", proxy=None) as connection:
        await connection.send(json.dumps({"type": "key", "key": KEY}))
        async for message in connection:
            told.append(str(message))


async def test_a_token_is_seen_by_the_hub_and_by_nobody_else(
    tmp_path: Path, database: ConnectionParameters, receiver: Receiver, hub: FakeHub
) -> None:
    (audio := tmp_path / "tone.wav").write_bytes(tone(12))
    seen: list[str] = []
    dashboard: list[str] = []
    async with running_daemon(
        tmp_path, database, HF_TOKEN=OWN, HUGGING_FACE_HUB_TOKEN=OWN, API_KEYS=KEY, **settings(hub)
    ) as daemon:
        daemon.client.headers["x-api-key"] = KEY
        refused = await daemon.line("pipeline.not_ready", pipeline=NAME)
        assert f"accept the conditions of {NAME}" in refused["reason"]

        response = await daemon.client.post(
            "/transcribe", files={"file": ("tone.wav", tone(1))}, data={"diarize": "true", "hf_token": MALFORMED}
        )
        assert (response.status_code, response.json()["error"]["param"]) == (400, "hf_token")
        seen.append(response.text)

        watching = asyncio.create_task(watch(daemon, dashboard))
        jobs: list[str] = []
        for task, token in (("diarize", WRONG), ("transcribe", WRONG), ("transcribe", GOOD)):
            fields = {"diarize": "true", "task": task, "hf_token": token, "callback_url": f"{receiver.url}/done"}
            answer = await daemon.client.post(
                "/transcribe",
                files={"file": (audio.name, audio.read_bytes())},
                data=fields,
                headers={"Idempotency-Key": f"key-of-{len(jobs)}"},
            )
            assert answer.status_code == 202, answer.text
            jobs.append(job_id := answer.json()["job_id"])
            seen += [
                answer.text,
                f"{answer.headers}",
                await told(daemon, job_id),
                json.dumps(await daemon.finished(job_id)),
            ]
            if task == "diarize":
                refused = await daemon.job(job_id)
                assert (refused["status"], refused["error"]["code"]) == ("failed", "pipeline_gated")
                answer = await daemon.client.post(
                    "/diarize", params={"hf_token": token}, files={"file": tone(1)}, data={"hf_token": token}
                )
                assert (answer.status_code, answer.json()["code"]) == (400, "pipeline_gated"), answer.text
                seen.append(answer.text)
        gated, heard = [await daemon.json(f"/jobs/{job_id}/result") for job_id in jobs[1:]]
        assert gated["diarization"]["error_code"] == "pipeline_gated"
        assert "the hub does not know this token" in gated["diarization"]["error"]
        assert gated["text"] == heard["text"] != ""
        assert {turn["speaker"] for turn in heard["diarization_segments"]} == {"SPEAKER_00", "SPEAKER_01"}

        for path in ("/jobs", "/dashboard/state", "/metrics", "/models", "/health", "/status"):
            seen.append((await daemon.client.get(path)).text)
        wrongly: list[dict[str, Any]] = [
            {"hf_token": [GOOD, GOOD]},
            {"hf_token": {SIGN: 1}},
            {"hf_token": GOOD, "hf_tokens": GOOD},
        ]
        for fields in wrongly:
            body = {"url": "http://127.0.0.1/", "diarize": True} | fields
            answer = await daemon.client.post("/transcribe", json=body)
            assert answer.status_code == 400, answer.text
            seen.append(answer.text)
        for job_id in jobs[1:]:
            for format in FORMATS:
                response = await daemon.client.get(f"/jobs/{job_id}/result", params={"format": format})
                assert response.status_code == 200, response.text
                seen.append(response.text)
        seen += [f"{call.headers} {call.body!r}" for call in await receiver.wait_for(3)]
        async with asyncio.timeout(20):
            while not any(jobs[0] in message for message in dashboard):  # it failed: others may be over within a tick
                await asyncio.sleep(0.05)
        watching.cancel()
        seen += dashboard
        assert SIGN not in await stored(database)
        environments = [
            said.read_bytes() for pid in descendants(daemon.pid) if (said := Path(f"/proc/{pid}/environ")).exists()
        ]
        assert any(b"GPU_DAEMON_ENGINE" in environment for environment in environments), "of the runner"
        for environment in environments:
            assert not [secret for secret in (SIGN, *SECRETS) if secret.encode() in environment]
        await daemon.stop()
        log = "\n".join(daemon.raw)
    assert SIGN not in "\n".join(seen)
    assert SIGN not in log
    assert "pipeline.ready" in log
    assert SIGN.encode() not in written(tmp_path / "data")
    assert {request.headers.get("authorization") for request in hub.site.requests} == {
        f"Bearer {token}" for token in (OWN, WRONG, GOOD)
    }
    assert hub.cdn.heads
    assert not [head for head in hub.cdn.heads if SIGN in head]


async def test_a_job_takes_no_place_while_its_pipeline_comes(
    tmp_path: Path, database: ConnectionParameters, hub: FakeHub
) -> None:
    (audio := tmp_path / "tone.wav").write_bytes(tone(6))
    hub.cdn.plan(Reply(hold_after=100_000))
    async with running_daemon(tmp_path, database, **settings(hub), **ONE_AT_A_TIME) as daemon:
        speakers = await daemon.submit(audio, diarize="true", hf_token=GOOD)
        await hub.cdn.held()
        job = await daemon.job(speakers["job_id"])
        assert (job["status"], job["stage"]) == ("queued", "fetching")
        (shown,) = [one for one in (await daemon.json("/dashboard/state"))["models"] if one["source"] == "pipeline"]
        assert shown["state"] == "downloading"
        assert 0 < shown["done_bytes"] < shown["size_bytes"]
        plain = await daemon.submit(audio)
        assert (await daemon.finished(plain["job_id"]))["status"] == "completed"

        cancelled = await daemon.submit(audio, diarize="true")
        response = await daemon.client.post(f"/jobs/{cancelled['job_id']}/cancel")
        assert response.json()["status"] == "cancelled"
        assert (await daemon.job(speakers["job_id"]))["status"] == "queued"
        hub.cdn.release()
        assert (await daemon.finished(speakers["job_id"]))["status"] == "completed"
        result = await daemon.json(f"/jobs/{speakers['job_id']}/result")
        assert result["diarization_segments"]
        assert result["diarization"]["error"] is None
