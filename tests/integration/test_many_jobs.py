"""Fifty jobs of every kind at once, by the real engine: each ends as it does alone."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from gpu_daemon.database.pool import ConnectionParameters, Pool
from tests.integration.test_audio_refusals import REFUSED
from tests.invariants import violations, watch
from tests.receiver import Receiver
from tests.running import RunningDaemon, running_daemon
from tests.speech import conversation, write

SECOND = "second"
"""Another name for the demo checkpoint: a model of its own to the runner."""
SEED = 4_000_004
GOOD, CANCELLED, BROKEN, WRONG = 30, 9, 6, 5
REFUSALS = ("not_media", "decode_failed", "missing_field", "empty_file")


@dataclass(frozen=True)
class Asked:
    """A file, and what is to be done with it."""

    audio: Path
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@pytest.fixture
def good(tmp_path: Path) -> list[Asked]:
    """Files of different lengths, languages and containers, each with options of its own."""

    def spoken(name: str, language: str, seed: int, sentences: int) -> Path:
        write(conversation(language, seed, sentences), path := tmp_path / name, path.suffix[1:])  # type: ignore[arg-type]
        return path

    return [
        Asked(spoken("one.wav", "en", 500_301, 1)),
        Asked(spoken("words.mp3", "en", 500_302, 2), {"word_timestamps": "true"}),
        Asked(spoken("french.ogg", "fr", 500_303, 2), {"language": "fr"}),
        Asked(spoken("russian.flac", "ru", 500_304, 2)),
        Asked(spoken("windows.wav", "en", 500_305, 12), {"condition_on_previous_text": "false"}),
        Asked(spoken("prompt.m4a", "en", 500_306, 1), {"initial_prompt": "My friend is happy.", "temperature": "0"}),
    ]


@pytest.fixture
def long(tmp_path: Path) -> Path:
    write(conversation("en", 500_307, 60), tmp_path / "long.wav", "wav")
    return tmp_path / "long.wav"


async def offer_second(daemon: RunningDaemon, pool: Pool) -> None:
    await pool.execute(
        """WITH made AS (INSERT INTO whisper_models (name, source, path, sha256)
                         SELECT $1, source, path, sha256 FROM whisper_models WHERE name = 'demo'
                         RETURNING id_model)
           INSERT INTO model_settings (id_model, enabled) SELECT id_model, true FROM made""",
        SECOND,
    )
    async with asyncio.timeout(60):  # until the change of the tables is noticed
        while "ready" not in [
            model["state"] for model in (await daemon.json("/models"))["models"] if model["name"] == SECOND
        ]:
            await asyncio.sleep(0.05)


def said(job: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What must not depend on who else is heard at the time."""
    result = job["result"]
    return [
        (segment["start"], segment["end"], segment["text"], [word["word"] for word in segment["words"]])
        for segment in result["segments"]
    ] + [(result["text"], result["language"])]


@pytest.mark.timeout(400)
async def test_each_ends_as_it_does_alone(
    tmp_path: Path, database: ConnectionParameters, pool: Pool, receiver: Receiver, good: list[Asked], long: Path
) -> None:
    chance = random.Random(SEED)
    async with running_daemon(tmp_path, database, JOBS_PER_GPU="8") as daemon:
        await watch(database)
        await offer_second(daemon, pool)

        async def submit(asked: Asked, **more: str) -> str:
            told = await daemon.submit(asked.audio, callback_url=receiver.url, **asked.options, **more)
            job_id: str = told["job_id"]
            return job_id

        async def is_done(asked: Asked, model: str) -> str:
            job_id = await submit(asked, model=model)
            job = await daemon.finished(job_id, timeout_s=300)
            assert (job["status"], job["attempt"], job["model"]) == ("completed", 1, model), job
            assert said(job) == alone[asked.audio]
            return job_id

        async def is_cancelled(moment: str) -> str:
            job_id = await submit(Asked(long), model=chance.choice(("demo", SECOND)))
            if moment == "started":
                await daemon.line("job.started", 300, job_id=job_id)
            if moment == "transcribing":
                async with asyncio.timeout(300):
                    while (await daemon.job(job_id))["stage"] != "transcribing":
                        await asyncio.sleep(0.05)
            response = await daemon.client.post(f"/jobs/{job_id}/cancel")
            assert (response.status_code, response.json()["status"]) == (200, "cancelled")
            return job_id

        async def is_refused(kind: str) -> str | None:
            (broken := tmp_path / f"broken-{kind}").mkdir()
            (path := broken / "file").write_bytes(REFUSED[kind][1](broken))
            with path.open("rb") as file:
                files = {"file": (path.name, file)}
                response = await daemon.client.post("/transcribe", files=files, data={"callback_url": receiver.url})
            if response.status_code != 202:
                assert response.json()["error"]["code"] in REFUSALS
                return None
            job = await daemon.finished(response.json()["job_id"], timeout_s=300)
            assert (job["status"], job["attempt"], job["error"]["code"] in REFUSALS) == ("failed", 1, True), job
            return str(job["job_id"])

        async def is_impossible() -> str:
            job_id = await submit(good[0], language="yue", model=chance.choice(("demo", SECOND)))
            job = await daemon.finished(job_id, timeout_s=300)
            assert (job["status"], job["attempt"]) == ("failed", 1)
            assert job["error"]["code"] == "language_not_supported"
            return job_id

        first = [await submit(asked) for asked in good]
        alone = {asked.audio: said(await daemon.finished(job_id)) for asked, job_id in zip(good, first, strict=True)}
        storm = [is_done(chance.choice(good), chance.choice(("demo", SECOND))) for _ in range(GOOD)]
        storm += [is_cancelled(chance.choice(("queued", "started", "transcribing"))) for _ in range(CANCELLED)]
        kinds = chance.sample(sorted(REFUSED), BROKEN)
        strange = [is_refused(kind) for kind in kinds]
        impossible = [is_impossible() for _ in range(WRONG)]
        everything = [*storm, *strange, *impossible]
        chance.shuffle(everything)
        told = [job_id for job_id in await asyncio.gather(*everything) if job_id is not None]
        (worker,) = (await daemon.json("/workers"))["workers"]
        assert (worker["restarts"], worker["jobs"]) == (0, [])
        assert set(worker["loaded"]) == {"demo", SECOND}
        async with asyncio.timeout(60):
            for job_id in told:
                while not (await daemon.job(job_id))["callback"]["delivered"]:
                    await asyncio.sleep(0.05)
        everyone = {*first, *told}
        assert await violations(database, daemon.data_dir / "jobs", receiver.requests, told=everyone) == []
