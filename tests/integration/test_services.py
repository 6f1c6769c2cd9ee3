"""The five services' documents, replayed: each curl line and client snippet is run as it is written there, with another
base URL; each field that a document shows is there, with the type that it shows. Real daemon, real audio, demo model.
"""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.gpu.reading import GpuReading, summarise
from tests.conftest import fresh_database
from tests.media import noise, wav
from tests.receiver import Receiver
from tests.running import FAKE_DIARIZER, ONE_AT_A_TIME, RunningDaemon, running_daemon
from tests.shapes import deviations
from tests.speech import Spoken, conversation, word_error_rate, write

pytestmark = pytest.mark.asyncio(loop_scope="module")
SPOKEN = conversation("en", 500_061, 2)
SPOKEN_FR = conversation("fr", 500_062, 2)
BASE_URLS = re.compile(r"http://localhost(:\d+)?(?=[/\"'`\s]|$)")
MAX_QUEUE = 3


class Replayed:
    def __init__(self, daemon: RunningDaemon, directory: Path) -> None:
        self.daemon = daemon
        self.directory = directory
        write(SPOKEN, directory / "audio.mp3", "mp3")
        write(SPOKEN, directory / "test.mp3", "mp3")
        for name in ("audio.wav", "long_audio.wav"):
            write(SPOKEN_FR, directory / name, "wav")
        (directory / "interview.wav").write_bytes(wav(noise(900 * 16_000).tobytes()))

    async def run(self, command: str, base_path: str = "", **names: str) -> str:
        """What a line of shell prints. `{name}` in it is one of `names`."""
        for name, value in names.items():
            command = command.replace(f"{{{name}}}", value)
        if shutil.which("jq") is None:
            command = command.partition("| jq .")[0]
        return await self._output("/bin/sh", "-c", self._moved(command.replace("curl ", "curl -sS "), base_path))

    async def python(self, snippet: str, base_path: str = "") -> str:
        return await self._output(sys.executable, "-c", self._moved(snippet, base_path))

    async def answer(self, command: str, base_path: str = "", **names: str) -> Any:
        output = await self.run(command, base_path, **names)
        try:
            return json.loads(output)
        except ValueError:
            raise AssertionError(f"{command} printed {output[:300]!r}") from None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """A job that goes on for as long as a test needs it; at the end nothing waits or runs."""
        job_id: str = (await self.daemon.submit(self.directory / "interview.wav"))["job_id"]
        await self.daemon.line("job.started", job_id=job_id)
        try:
            yield job_id
        finally:
            queue = await self.daemon.json("/queue")
            for left in queue["queued"] + queue["running"]:
                await self.daemon.client.post(f"/jobs/{left}/cancel")

    def _moved(self, text: str, base_path: str) -> str:
        assert BASE_URLS.search(text), text
        return BASE_URLS.sub(self.daemon.url + base_path, text)

    async def _output(self, *command: str) -> str:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{self.directory}:{Path(__file__).parents[2]}"}
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.directory,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            said, complained = await process.communicate()
        assert process.returncode == 0, (command, complained.decode()[-1000:])
        return said.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replayed(postgres: ConnectionParameters, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replayed]:
    """One daemon for all; its model `base`, which the clients ask for, is the demo checkpoint."""
    directory = tmp_path_factory.mktemp("services")
    async with (
        fresh_database(postgres) as database,
        running_daemon(directory, database, MAX_QUEUE=str(MAX_QUEUE), **ONE_AT_A_TIME, **FAKE_DIARIZER) as daemon,
    ):
        connection = await asyncpg.connect(**database.arguments())
        await connection.execute(
            """UPDATE whisper_models SET source = 'file', path = demo.path, sha256 = demo.sha256
               FROM (SELECT path, sha256 FROM whisper_models WHERE name = 'demo') demo WHERE name = 'base'"""
        )
        await connection.close()
        assert (await daemon.client.patch("/models/base", json={"enabled": True})).status_code == 200
        await daemon.line("model.ready", model="base")
        await daemon.line("runner.ready")
        yield Replayed(daemon, directory)


def heard(spoken: Spoken, text: str) -> bool:
    return word_error_rate(spoken.text, text) <= 0.2


# The CUDA service, whose routes are the root's own.

CUDA_RESULT = {
    "text": "...",
    "segments": [{"start": 0.0, "end": 2.0, "text": "..."}],
    "queue_time_s": 0.2,
    "processing_time_s": 12.4,
    "gpu": None,  # on a CPU
    "token_count": 1234,
}
CUDA_GPU = {
    "index": 0,
    "util_avg_percent": 63.5,
    "util_max_percent": 98.0,
    "vram_total_mb": 24576.0,
    "vram_used_avg_mb": 4200.0,
    "vram_used_max_mb": 6100.0,
    "vram_used_percent": 17.0,
    "vram_used_percent_max": 24.8,
}
CUDA_CALLBACK = {
    "job_id": "...",
    "status": "completed",
    "model": "base",
    "language": "Russian",
    "queue_time_s": 0.2,
    "processing_time_s": 12.4,
    "result": CUDA_RESULT,
    "error": None,
    "callback": {"delivered": True, "delivered_at_ms": 1700000000000, "error": None},
}
CUDA_FAILED = {"job_id": "...", "status": "failed", "result": None, "error": "..."}


async def test_the_cuda_services_jobs_and_callbacks(replayed: Replayed) -> None:
    daemon, receiver = replayed.daemon, Receiver()
    await receiver.start()
    try:
        assert (await daemon.json("/health"))["status"] == "ready"
        assert await daemon.json("/queue") == {"status": "idle", "queued": [], "running": []}
        asked = f"-F model=base -F callback_url={receiver.url}/done http://localhost/transcribe"
        job_id = (await replayed.answer(f"curl -F file=@audio.mp3 {asked}"))["job_id"]
        (callback,) = await receiver.wait_for(1, timeout_s=30)
        assert deviations(callback.json(), CUDA_CALLBACK) == []
        assert (callback.json()["status"], callback.json()["error"]) == ("completed", None)
        job = await daemon.json(f"/status?job_id={job_id}")
        assert deviations(job, {"job_id": "...", "status": "completed", "result": CUDA_RESULT}) == []
        assert heard(SPOKEN, job["result"]["text"])

        await replayed.answer(f"curl -F url=http://LOCALHOST:9/a.mp3 {asked}")
        _, failed = await receiver.wait_for(2, timeout_s=30)
        assert deviations(failed.json(), CUDA_FAILED) == []
        assert (failed.json()["status"], failed.json()["result"]) == ("failed", None)
    finally:
        await receiver.stop()
    reading = GpuReading(util_percent=63.5, vram_used_mb=4200.0, vram_total_mb=24576.0)
    assert deviations(summarise(0, [reading]), CUDA_GPU) == []


async def test_the_cuda_services_queue_and_page(replayed: Replayed) -> None:
    async with replayed.running() as job_id:
        assert await replayed.daemon.json("/queue") == {"status": "busy", "queued": [], "running": [job_id]}
        assert (await replayed.daemon.client.get("/")).headers["content-type"].startswith("text/html")
        state = await replayed.daemon.json("/dashboard/state")
        shown = {
            "health": {"status": "ready"},
            "models": [{"name": "base", "state": "ready"}],
            "workers": [{"index": 0}],
        }
        assert deviations(state, shown) == []


# The ROCm service.

ROCM = "/services/rocm"
ROCM_IDLE: dict[str, Any] = {
    "busy": False,
    "job_id": None,
    "filename": None,
    "stage": "idle",
    "progress": 0.0,
    "elapsed_seconds": 0.0,
    "stage_elapsed_seconds": 0.0,
    "transcription_segments": 0,
    "diarization_segments": 0,
    "error_message": None,
    "details": {},
}
ROCM_RUNNING = ROCM_IDLE | {
    "job_id": "a1b2c3d4",
    "filename": "interview.mp3",
    "details": {"audio_duration_seconds": 180.5},
}
ROCM_ENDED = ROCM_RUNNING | {"details": {"audio_duration_seconds": 180.5, "speakers_detected": 3}}
ROCM_STAGES = {"uploading", "loading", "transcribing", "diarizing", "merging"}
ROCM_HEALTH = {
    "status": "ok",
    "gpu_available": True,
    "device": "cuda",
    "gpu_name": None,  # there is none here, and so for the memory
    "memory_total_gb": None,
    "memory_available_gb": None,
    "models_loaded": {"whisper": True, "pyannote": True},
    "busy": True,
    "current_job": ROCM_RUNNING,
}
ROCM_PROCESSED = {
    "text": "...",
    "segments": [{"start": 0.0, "end": 2.5, "speaker": "SPEAKER_00", "text": "Bonjour..."}],
    "transcription_segments": [{"start": 0.0, "end": 2.5, "text": "Bonjour..."}],
    "diarization_segments": [{"start": 0.0, "end": 2.5, "speaker": "SPEAKER_00"}],
}
ROCM_BUSY = {"error": "Service occupé", "message": "...", "current_job": ROCM_RUNNING}
ROCM_FORM = "-F file=@audio.wav -F hf_token=hf_secret -F language=fr -F min_speakers=1 -F max_speakers=2"


@pytest.mark.parametrize("base_path", ["", ROCM])
async def test_the_rocm_service_processes(replayed: Replayed, base_path: str) -> None:
    processed = await replayed.answer(f"curl {ROCM_FORM} http://localhost:8000/process", base_path)
    assert deviations(processed, ROCM_PROCESSED) == []
    assert heard(SPOKEN_FR, processed["text"])
    assert processed["diarization_error"] is None
    turns = {turn["speaker"] for turn in processed["diarization_segments"]}
    assert turns == {"SPEAKER_00", "SPEAKER_01"}
    assert processed["segments"][0]["speaker"] == "SPEAKER_00"
    assert {piece["speaker"] for piece in processed["segments"]} <= turns
    for pieces in (processed["segments"], processed["transcription_segments"]):
        assert "".join(piece["text"] for piece in pieces).strip() == processed["text"].strip()
    diarized = await replayed.answer(f"curl {ROCM_FORM} http://localhost:8000/diarize", base_path)
    assert diarized == {"segments": processed["diarization_segments"]}

    skips = f"curl {ROCM_FORM} -F skip_diarization=true http://localhost:8000/process"
    alone = await replayed.answer(skips, base_path)
    assert deviations(alone, ROCM_PROCESSED | {"diarization_segments": []}) == []
    assert (alone["text"], alone["diarization_segments"]) == (processed["text"], [])
    assert {piece["speaker"] for piece in alone["segments"]} == {"SPEAKER_00"}
    refused = await replayed.answer(
        "curl -F file=@audio.wav -F max_speakers=many http://localhost:8000/diarize", base_path
    )
    assert (refused["code"], refused["current_job"]) == ("invalid_value", None)
    assert not any("hf_secret" in line for line in replayed.daemon.raw)


async def test_the_rocm_service_says_for_a_while_how_the_last_job_ended(replayed: Replayed) -> None:
    """Its clients poll until `completed` or `error`."""
    processed = await replayed.answer(f"curl {ROCM_FORM} http://localhost:8000/process", ROCM)
    for base_path in ("", ROCM):
        status = await replayed.answer("curl http://localhost:8000/status", base_path)
        assert deviations(status, ROCM_ENDED) == []
        assert (status["busy"], status["stage"], status["progress"]) == (False, "completed", 100.0)
        assert (status["filename"], status["error_message"]) == ("audio.wav", None)
        for name in ("transcription_segments", "diarization_segments"):
            assert status[name] == len(processed[name])
        assert status["details"]["speakers_detected"] == 2
    failed = await replayed.answer("curl -F url=http://LOCALHOST:9/a.mp3 http://localhost:8000/transcribe", ROCM)
    status = await replayed.answer("curl http://localhost:8000/status", ROCM)
    assert deviations(status, ROCM_ENDED | {"error_message": "...", "details": {}}) == []
    assert (status["stage"], status["error_message"]) == ("error", failed["message"])


async def test_the_rocm_service_transcribes(replayed: Replayed) -> None:
    answer = await replayed.answer("curl -F file=@audio.wav -F language=fr http://localhost:8000/transcribe", ROCM)
    assert deviations(answer, {"text": "...", "segments": ROCM_PROCESSED["transcription_segments"]}) == []
    assert heard(SPOKEN_FR, answer["text"])


async def test_the_rocm_services_state_and_503(replayed: Replayed) -> None:
    idle = await replayed.answer("curl http://localhost:8000/health", ROCM)
    assert (idle["status"], idle["busy"], idle["current_job"]) == ("ok", False, None)
    async with asyncio.timeout(30):  # the last job's end is shown for 5 s
        while (status := await replayed.answer("curl http://localhost:8000/status", ROCM))["stage"] == "completed":
            pass
    assert status == ROCM_IDLE
    async with replayed.running() as job_id:
        for base_path in ("", ROCM):
            status = await replayed.answer("curl http://localhost:8000/status", base_path)
            assert deviations(status, ROCM_RUNNING) == []
            assert (status["busy"], status["job_id"], status["filename"]) == (True, job_id, "interview.wav")
            assert status["stage"] in ROCM_STAGES
        assert deviations(await replayed.answer("curl http://localhost:8000/health", ROCM), ROCM_HEALTH) == []
        for _ in range(MAX_QUEUE):
            await replayed.daemon.submit(replayed.directory / "audio.wav")
        for path in ("process", "transcribe"):
            full = await replayed.run(f"curl -w %{{http_code}} {ROCM_FORM} http://localhost:8000/{path}", ROCM)
            assert full.endswith("503")
            assert deviations(json.loads(full[:-3]), ROCM_BUSY) == []
            assert json.loads(full[:-3])["current_job"]["job_id"] == job_id


# The microservice.

MICRO = "/services/micro"
MICRO_RESULT = {
    "text": "Full transcription text",
    "language": "en",
    "language_probability": 0.98,
    "duration": 125.5,
    "segments": [
        {"id": 0, "start": 0.0, "end": 5.2, "text": "Hello, this is a test.", "confidence": 0.95, "words": []}
    ],
    "processing_time": 12.3,
}
MICRO_WORD = {"word": "Hello", "start": 0.0, "end": 0.5, "confidence": 0.96}
MICRO_ACCEPTED = {
    "job_id": "abc-123-def-456",
    "status": "pending",
    "message": "...",
    "status_url": "/api/v1/status/abc-123-def-456",
    "estimated_time": 30,
}
MICRO_JOB = {
    "job_id": "abc-123-def-456",
    "status": "completed",
    "progress": 100,
    "created_at": "2025-10-04T10:00:00Z",
    "completed_at": "2025-10-04T10:02:30Z",
    "result": {"text": "Full transcription text", "language": "en", "segments": []},
}
MICRO_TRANSCRIBE = (
    """curl -X POST "http://localhost:8000/api/v1/transcribe" -F "file=@audio.mp3" -F "language=en" """,
    """curl -X POST "http://localhost:8000/api/v1/transcribe" -H "Content-Type: multipart/form-data" \\
       -F "file=@audio.mp3" -F "language=en" -F "model=base" -F "response_format=json" """,
    """curl -X POST "http://localhost:8000/api/v1/transcribe" -F "file=@test.mp3" -F "model=base" """,
)
MICRO_SUBMIT = (
    """curl -X POST "http://localhost:8000/api/v1/transcribe-async" -F "file=@audio.mp3" -F "model=base" """,
    """curl -X POST "http://localhost:8000/api/v1/transcribe-async" -F "file=@test.mp3" """,
)
MICRO_HEALTH = ("/health", "/health/live", "/health/ready", "/health/async")
MICRO_SYNC_SNIPPET = """
import requests

with open('audio.mp3', 'rb') as f:
    response = requests.post(
        'http://localhost:8000/api/v1/transcribe',
        files={'file': f},
        data={
            'language': 'en',
            'model': 'base',
            'response_format': 'json'
        }
    )

result = response.json()
print(result['text'])
"""
MICRO_POLL_SNIPPET = """
import requests
import time

with open('audio.mp3', 'rb') as f:
    response = requests.post(
        'http://localhost:8000/api/v1/transcribe-async',
        files={'file': f},
        data={'model': 'base', 'language': 'en'}
    )

job_id = response.json()['job_id']
print(f"Job submitted: {job_id}")

while True:
    status = requests.get(
        f'http://localhost:8000/api/v1/status/{job_id}'
    ).json()

    if status['status'] == 'completed':
        print("Transcription:", status['result']['text'])
        break
    elif status['status'] == 'failed':
        print("Error:", status['error'])
        break

    print(f"Progress: {status.get('progress', 0)}%")
    time.sleep(2)
"""
MICRO_FUNCTION_SNIPPET = """
import requests
import time

def transcribe_async(file_path, model='base'):
    with open(file_path, 'rb') as f:
        response = requests.post(
            'http://localhost:8000/api/v1/transcribe-async',
            files={'file': f},
            data={'model': model}
        )

    job_id = response.json()['job_id']

    while True:
        status = requests.get(
            f'http://localhost:8000/api/v1/status/{job_id}'
        ).json()

        if status['status'] == 'completed':
            return status['result']
        elif status['status'] == 'failed':
            raise Exception(status.get('error', 'Unknown error'))

        time.sleep(2)

result = transcribe_async('audio.mp3', model='base')
print(result['text'])
"""


@pytest.mark.parametrize("base_path", ["", MICRO])
async def test_the_microservice_transcribes(replayed: Replayed, base_path: str) -> None:
    for command in MICRO_TRANSCRIBE:
        answer = await replayed.answer(command, base_path)
        assert deviations(answer, MICRO_RESULT) == [], command
        assert heard(SPOKEN, answer["text"])
    words = MICRO_TRANSCRIBE[0] + "-F timestamp_granularity=word -F temperature=0.0"
    answer = await replayed.answer(words, base_path)
    assert deviations(answer["segments"][0]["words"], [MICRO_WORD]) == []


@pytest.mark.parametrize(("format", "start"), [("text", ""), ("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:0")])
async def test_the_microservices_other_formats(replayed: Replayed, format: str, start: str) -> None:
    text = await replayed.run(MICRO_TRANSCRIBE[0] + f"-F response_format={format}")
    assert text.startswith(start)
    assert heard(SPOKEN, text) if format == "text" else " --> " in text, text


async def test_the_microservices_other_formats_of_a_job(replayed: Replayed) -> None:
    accepted = await replayed.answer(MICRO_SUBMIT[0] + "-F response_format=srt")
    await replayed.daemon.finished(accepted["job_id"])
    job = await replayed.answer(f"curl http://localhost:8000/api/v1/status/{accepted['job_id']}")
    assert deviations(job, MICRO_JOB) == []
    address = accepted["message"].partition("GET ")[2]
    assert (await replayed.run(f"curl http://localhost:8000{address}")).startswith("1\n00:00:0")
    refused = await replayed.answer(MICRO_SUBMIT[0] + "-F response_format=docx")
    assert (refused["error"]["code"], refused["error"]["param"]) == ("invalid_value", "response_format")


@pytest.mark.parametrize("base_path", ["", MICRO])
async def test_the_microservices_jobs(replayed: Replayed, base_path: str) -> None:
    async with replayed.running() as waits_id:
        accepted = [await replayed.answer(command, base_path) for command in MICRO_SUBMIT]
        for answer in accepted:
            assert deviations(answer, MICRO_ACCEPTED) == []
            assert answer["status"] == "pending"
            assert answer["status_url"] == f"/api/v1/status/{answer['job_id']}"
        first, second = (answer["job_id"] for answer in accepted)
        asked = """curl "http://localhost:8000/api/v1/jobs?status=processing" """
        listed = await replayed.answer(asked, base_path)
        assert [(job["job_id"], job["status"]) for job in listed["jobs"]] == [(waits_id, "processing")]
        pending = await replayed.answer(asked.replace("processing", "pending"), base_path)
        assert [job["job_id"] for job in pending["jobs"]] == [second, first]
        assert (pending["total"], pending["page"]) == (2, 1)

        cancel = """curl -X POST "http://localhost:8000/api/v1/jobs/{job_id}/cancel" """
        assert (await replayed.answer(cancel, base_path, job_id=waits_id))["job_id"] == waits_id
        check = """curl "http://localhost:8000/api/v1/status/{job_id}" """
        cancelled = await replayed.answer(check, base_path, job_id=waits_id)
        assert (cancelled["status"], cancelled["error"]) == ("failed", "the job was cancelled"), "the snippets poll on"
        assert cancelled["failed_at"] is not None
        for status in ("failed", "cancelled"):
            ended = await replayed.answer(asked.replace("processing", status), base_path)
            assert (ended["jobs"][0]["job_id"], ended["jobs"][0]["status"]) == (waits_id, "failed")
        assert ended["total"] < (await replayed.answer("curl http://localhost:8000/api/v1/jobs", base_path))["total"]
        await replayed.daemon.finished(first)
        job = await replayed.answer(check, base_path, job_id=first)
        assert deviations(job, MICRO_JOB) == []
        assert (job["status"], job["progress"], job["error"]) == ("completed", 100, None)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job["completed_at"])
        assert heard(SPOKEN, job["result"]["text"])
        delete = """curl -X DELETE "http://localhost:8000/api/v1/jobs/{job_id}" """
        await replayed.daemon.finished(second)
        assert (await replayed.answer(delete, base_path, job_id=second))["job_id"] == second
        assert (await replayed.answer(check, base_path, job_id=second))["error"]["code"] == "not_found"


@pytest.mark.parametrize("base_path", ["", MICRO])
async def test_the_microservices_health_and_lists(replayed: Replayed, base_path: str) -> None:
    for path in MICRO_HEALTH:
        answer = await replayed.run(f"curl -w %{{http_code}} http://localhost:8000{path}", base_path)
        assert answer.endswith("200"), path
    models = await replayed.answer("curl http://localhost:8000/api/v1/models", base_path)
    assert {model["name"] for model in models["models"]} == {"base", "demo"}
    languages = await replayed.answer("curl http://localhost:8000/api/v1/languages", base_path)
    assert {"code": "en", "name": "English"} in languages["languages"]


@pytest.mark.parametrize(
    ("snippet", "base_path"),
    [(MICRO_SYNC_SNIPPET, ""), (MICRO_POLL_SNIPPET, MICRO), (MICRO_FUNCTION_SNIPPET, "")],
    ids=["sync", "poll", "function"],
)
async def test_the_microservices_snippets(replayed: Replayed, snippet: str, base_path: str) -> None:
    printed = await replayed.python(snippet, base_path)
    assert heard(SPOKEN, printed.strip().splitlines()[-1].removeprefix("Transcription: "))


# The queue guide.

RQ = "/services/rq"
RQ_ACCEPTED = {
    "job_id": "c8b13006-fd93-4ea6-8a26-98c3807165b5",
    "status": "queued",
    "message": "...",
    "queue_position": 0,
    "estimated_wait": "0 minutes",
}
RQ_JOB = {"job_id": "c8b13006", "status": "queued", "created_at": "2025-10-20T20:43:19.570894", "message": "..."}
RQ_QUEUED = RQ_JOB | {"queue_position": 2}
RQ_STARTED = RQ_JOB | {"started_at": "2025-10-20T20:43:25.591326"}
RQ_ENDED = RQ_STARTED | {"ended_at": "2025-10-20T20:45:10.578469"}
RQ_RESULT: dict[str, Any] = {
    "text": "Bonjour, ceci est une transcription...",
    "segments": [{"start": 0.0, "end": 1.0, "text": "..."}],
    "metadata": {
        "filename": "long_audio.wav",
        "processing_time": 105.5,
        "language": "fr",
        "task": "transcribe",
        "service": "faster-whisper",
    },
}
RQ_STATS = {"queue_name": "...", "queued": 3, "workers": 1, "failed": 2, "finished": 15, "started": 1}
RQ_TRANSCRIBE = """curl -X POST http://localhost:8003/transcribe \\
  -F "file=@audio.wav" -F "language=fr" -F "task=transcribe" """
RQ_SUBMIT = """curl -X POST http://localhost:8003/transcribe/async \\
  -F "file=@long_audio.wav" -F "language=fr" | jq ."""
RQ_STATUS = "curl http://localhost:8003/transcribe/status/{job_id} | jq ."
RQ_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")


async def test_the_queue_guide_transcribes(replayed: Replayed) -> None:
    answer = await replayed.answer(RQ_TRANSCRIBE, RQ)
    assert deviations(answer, RQ_RESULT) == []
    assert heard(SPOKEN_FR, answer["text"])


@pytest.mark.parametrize("base_path", ["", RQ])
async def test_the_queue_guides_jobs(replayed: Replayed, base_path: str) -> None:
    async with replayed.running() as running_id:
        accepted = await replayed.answer(RQ_SUBMIT, base_path)
        assert deviations(accepted, RQ_ACCEPTED) == []
        assert (accepted["status"], accepted["queue_position"]) == ("queued", 0)
        queued = await replayed.answer(RQ_STATUS, base_path, job_id=accepted["job_id"])
        assert deviations(queued, RQ_QUEUED) == []
        assert (queued["status"], queued.keys()) == ("queued", RQ_QUEUED.keys())
        started = await replayed.answer(RQ_STATUS, base_path, job_id=running_id)
        assert deviations(started, RQ_STARTED) == []
        assert (started["status"], started.keys()) == ("started", RQ_STARTED.keys())
        stats = await replayed.answer("curl http://localhost:8003/queue/stats | jq .", base_path)
        assert deviations(stats, RQ_STATS) == []
        assert (stats["queued"], stats["started"], stats["workers"]) == (1, 1, 1)
        assert await replayed.answer("curl http://localhost:8003/queue/stats | jq '.workers'", base_path) == 1

        never_began = (await replayed.answer(RQ_SUBMIT, base_path))["job_id"]
        await replayed.daemon.client.post(f"/jobs/{never_began}/cancel")
        ended = await replayed.answer(RQ_STATUS, base_path, job_id=never_began)
        assert deviations(ended, RQ_ENDED | {"error": "..."}) == []
        assert (ended["status"], ended["started_at"]) == ("failed", ended["ended_at"])

        await replayed.daemon.client.post(f"/jobs/{running_id}/cancel")
        cancelled = await replayed.answer(RQ_STATUS, base_path, job_id=running_id)
        assert (cancelled["status"], cancelled["error"]) == ("failed", "the job was cancelled")
        await replayed.daemon.finished(accepted["job_id"])
        finished = await replayed.answer(RQ_STATUS, base_path, job_id=accepted["job_id"])
        assert deviations(finished, RQ_ENDED | {"result": RQ_RESULT}) == []
        assert (finished["status"], finished.keys()) == ("finished", RQ_ENDED.keys() | {"result"})
        assert all(RQ_TIME.fullmatch(finished[name]) for name in ("created_at", "started_at", "ended_at"))
        assert finished["result"]["metadata"]["filename"] == "long_audio.wav"
        assert heard(SPOKEN_FR, finished["result"]["text"])

        unreachable = await replayed.answer(
            RQ_SUBMIT.replace("file=@long_audio.wav", "url=http://LOCALHOST:9/a"), base_path
        )
        await replayed.daemon.finished(unreachable["job_id"])
        failed = await replayed.answer(RQ_STATUS, base_path, job_id=unreachable["job_id"])
        assert deviations(failed, RQ_ENDED | {"error": "..."}) == []
        assert (failed["status"], failed.keys()) == ("failed", RQ_ENDED.keys() | {"error"})


async def test_the_queue_guides_health_and_root(replayed: Replayed) -> None:
    assert (await replayed.answer("curl http://localhost:8003/health", RQ))["status"] == "ready"
    assert "/transcribe/async" in (await replayed.answer("curl http://localhost:8003/", RQ))["endpoints"]


# The production-scale service.

SCALE = "/services/scale"
SCALE_ACCEPTED = {"job_id": "abc123-def456-...", "status": "queued", "message": "..."}
SCALE_SUBMIT = """curl -X POST "http://localhost/transcribe" \\
  -F "file=@audio.mp3" -F "vad_filter=true" -F "language=en" """


SCALE_SNIPPET = """
from example_client import WhisperClient

client = WhisperClient("http://localhost")

result = client.transcribe_file(
    "audio.mp3",
    vad_filter=True,
    language="en"
)

print(f"Text: {result['text']}")
print(f"Language: {result['language']}")
print(f"Duration: {result['duration']}s")
"""


@pytest.mark.parametrize("base_path", ["", SCALE])
async def test_the_production_scale_services_snippet(replayed: Replayed, base_path: str) -> None:
    """Its `example_client` is that service's own file; ours takes its place."""
    (replayed.directory / "example_client.py").write_text(
        "from gpu_daemon.client import WhisperClient as WhisperClient\n"
    )
    text, language, duration = (await replayed.python(SCALE_SNIPPET, base_path)).splitlines()
    assert heard(SPOKEN, text.removeprefix("Text: "))
    assert language == "Language: en"
    assert abs(float(duration.removeprefix("Duration: ").removesuffix("s")) - SPOKEN.duration_s) < 0.1


@pytest.mark.parametrize("base_path", ["", SCALE])
async def test_the_production_scale_services_jobs(replayed: Replayed, base_path: str) -> None:
    async with replayed.running() as running_id:
        status = "curl http://localhost/status/{job_id}"
        assert (await replayed.answer(status, base_path, job_id=running_id))["status"] == "processing"
        accepted = await replayed.answer(SCALE_SUBMIT, base_path)
        assert deviations(accepted, SCALE_ACCEPTED) == []
        assert accepted["status"] == "queued"
        job_id = accepted["job_id"]
        waiting = await replayed.answer(status, base_path, job_id=job_id)
        assert (waiting["status"], waiting["filename"], "result" in waiting) == ("pending", "audio.mp3", False)
        early = await replayed.answer("curl http://localhost/result/{job_id}", base_path, job_id=job_id)
        assert early["error"]["code"] == "no_result"
        stats = await replayed.answer("curl http://localhost/stats", base_path)
        assert stats["workers"] == {"count": 1, "active_tasks": 1}
        assert (stats["jobs"]["queued"], stats["jobs"]["processing"]) == (1, 1)

        await replayed.daemon.client.post(f"/jobs/{running_id}/cancel")
        failed = await replayed.answer(status, base_path, job_id=running_id)
        assert (failed["status"], failed["error"]) == ("failure", "the job was cancelled")
        removed = await replayed.daemon.client.delete(f"{base_path}/job/{running_id}")
        assert (removed.status_code, removed.json()["job_id"]) == (200, running_id)
        gone = await replayed.answer(status, base_path, job_id=running_id)
        assert gone["error"]["code"] == "not_found"
        await replayed.daemon.finished(job_id)
        done = await replayed.answer(status, base_path, job_id=job_id)
        result = await replayed.answer("curl http://localhost/result/{job_id}", base_path, job_id=job_id)
        assert (done["status"], done["result"]) == ("success", result)
        assert deviations(result, {"text": "...", "language": "en", "duration": 5.0}) == []
        assert heard(SPOKEN, result["text"])


@pytest.mark.parametrize("base_path", ["", SCALE])
async def test_the_production_scale_services_health_and_metrics(replayed: Replayed, base_path: str) -> None:
    assert (await replayed.answer("curl http://localhost/health", base_path))["status"] == "ready"
    metrics = await replayed.run("curl http://localhost/metrics", base_path)
    assert 'gpu_daemon_queue_jobs{state="queued"} 0.0\n' in metrics
    assert "gpu_daemon_ready 1.0\n" in metrics
