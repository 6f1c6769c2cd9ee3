"""OpenAI's own Python client against the daemon: every call, every format, and how it and we take trouble."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import webvtt
from openai import AsyncOpenAI
from openai.types.audio import TranscriptionDiarized, TranscriptionVerbose
from structlog.testing import capture_logs

from gpu_daemon.api import attendance as attendance_module
from gpu_daemon.api import line as line_module
from gpu_daemon.database.pool import ConnectionParameters
from tests.fake_engine import LOGPROB
from tests.serving import ServedDaemon, served_daemon, tone

SPOKEN = tone(12.0)


@pytest.fixture
async def served(
    tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDaemon]:
    async with served_daemon(tmp_path, database, monkeypatch, max_file_size_mb=1, max_duration_s=60) as served:
        yield served


@pytest.fixture
async def client(served: ServedDaemon) -> AsyncIterator[AsyncOpenAI]:
    """As its documentation makes it: with a base URL and a key, which nobody looks at here."""
    async with AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="any", http_client=httpx2.AsyncClient(trust_env=False, timeout=60)
    ) as client:
        yield client


async def by_hand(served: ServedDaemon, audio: bytes = SPOKEN, **fields: Any) -> dict[str, Any]:
    """The whole result of the same, by our own route."""
    job = await served.finished(await served.submit(audio=audio, **fields))
    result: dict[str, Any] = job["result"]
    return result


async def test_every_format(served: ServedDaemon, client: AsyncOpenAI) -> None:
    create = client.audio.transcriptions.create
    result = await by_hand(served, timestamp_granularity="word")
    file = ("talk.wav", SPOKEN)

    plain = await create(file=file, model="whisper-1")
    assert plain.text == result["text"]
    assert plain.usage is not None
    assert plain.usage.to_dict() == {"type": "duration", "seconds": 12.0}
    assert [language.code for language in plain.languages or ()] == ["en"]

    assert await create(file=file, model="demo", response_format="text") == result["text"] + "\n"
    srt = await create(file=file, model="gpt-4o-transcribe", response_format="srt", language="en", prompt="Names.")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:05,000\n")
    vtt = webvtt.from_string(await create(file=file, model="gpt-4o-mini-transcribe-2025-12-15", response_format="vtt"))
    assert [caption.text for caption in vtt.captions] == [segment["text"].strip() for segment in result["segments"]]

    verbose = await create(file=file, model="whisper-1", response_format="verbose_json", temperature=0.2)
    assert isinstance(verbose, TranscriptionVerbose)
    assert (verbose.language, verbose.duration, verbose.words) == ("english", 12.0, None)
    assert verbose.segments is not None
    for said, segment in zip(verbose.segments, result["segments"], strict=True):
        assert said.to_dict().items() >= {name: segment[name] for name in TYPED}.items()

    words = await create(file=file, model="whisper-1", response_format="verbose_json", timestamp_granularities=["word"])
    assert words.segments is None
    assert [(word.word, word.start, word.end) for word in words.words or ()] == [
        (word["word"].strip(), word["start"], word["end"])
        for segment in result["segments"]
        for word in segment["words"]
    ]
    both = await create(
        file=file, model="whisper-1", response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert len(both.segments or ()) == 3
    assert len(both.words or ()) == 12

    diarized = await create(
        file=file, model="whisper-1", response_format="diarized_json", chunking_strategy="auto", stream=False
    )
    assert isinstance(diarized, TranscriptionDiarized)
    assert [(segment.id, segment.speaker) for segment in diarized.segments] == [
        ("seg_0", "A"),
        ("seg_1", "B"),
        ("seg_2", "A"),
    ]
    assert diarized.segments[1].type == "transcript.text.segment"


TYPED = ("id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio")


async def test_the_daemons_own_fields_come_in_extra_body(served: ServedDaemon, client: AsyncOpenAI) -> None:
    create = client.audio.transcriptions.create
    karaoke = await create(
        file=("talk.wav", SPOKEN), model="whisper-1", response_format="vtt", extra_body={"highlight_words": True}
    )
    assert len(webvtt.from_string(karaoke).captions) == 12
    assert "<u>" in karaoke
    await create(
        file=("talk.wav", SPOKEN),
        model="whisper-1",
        keywords=["Ada", "Charles"],
        languages=["en"],
        chunking_strategy={"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 300},
        extra_body={"priority": 3, "metadata": '{"order": 7}', "something": "else"},
    )
    (job, *_) = (await served.json("/jobs"))["jobs"]
    assert (job["priority"], job["metadata"], job["language"], job["model"]) == (3, {"order": 7}, "en", "demo")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI means to drop them; here they stay
async def test_translations(served: ServedDaemon, client: AsyncOpenAI) -> None:
    create = client.audio.translations.create
    file = ("talk.wav", SPOKEN)
    text = (await create(file=file, model="whisper-1")).text
    assert text == (await by_hand(served))["text"]
    assert await create(file=file, model="whisper-1", response_format="text", prompt="x", temperature=0) == f"{text}\n"
    assert (await create(file=file, model="whisper-1", response_format="srt")).startswith("1\n")
    assert (await create(file=file, model="whisper-1", response_format="vtt")).startswith("WEBVTT\n")
    verbose = await create(file=file, model="whisper-1", response_format="verbose_json")
    assert (verbose.language, verbose.duration, len(verbose.segments or ())) == ("english", 12.0, 3)
    (job, *_) = (await served.json("/jobs"))["jobs"]
    assert job["task"] == "translate"


async def test_models(client: AsyncOpenAI) -> None:
    models = {model.id: model async for model in client.models.list()}
    assert {"demo", "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"} <= models.keys()
    assert models["demo"].object == "model"
    for name in ("demo", "whisper-1", "gpt-4o-transcribe-2025-03-20", "gpt-4o-transcribe-diarize-2025-10-15"):
        assert (await client.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError) as refused:
        await client.models.retrieve("org/nonesuch")
    assert refused.value.code == "model_not_found"


async def test_the_text_comes_as_it_is_decoded(served: ServedDaemon, client: AsyncOpenAI, tmp_path: Path) -> None:
    go = tmp_path / "go"
    result = await by_hand(served)
    stream = await client.audio.transcriptions.create(
        file=("talk.wav", SPOKEN), model="whisper-1", prompt=f"fake:then=until={go}", stream=True
    )
    deltas = []
    async for event in stream:
        if event.type == "transcript.text.delta":
            deltas.append(event.delta)
            if not go.exists():  # the rest has not been heard yet
                assert len(deltas) == 1
                go.touch()
        else:
            done = event
    assert done.type == "transcript.text.done"
    assert "".join(deltas) == done.text == result["text"]
    assert len(deltas) == 3
    assert done.usage is not None
    assert done.usage.to_dict() == {
        "type": "tokens",
        "input_tokens": 600,
        "input_token_details": {"audio_tokens": 600},
        "output_tokens": result["token_count"],
        "total_tokens": 600 + result["token_count"],
    }


async def test_the_log_probability_of_each_token(served: ServedDaemon, client: AsyncOpenAI) -> None:
    create, file = client.audio.transcriptions.create, ("talk.wav", SPOKEN)
    plain = await create(file=file, model="whisper-1")
    assert plain.logprobs is None
    asked = await create(file=file, model="gpt-4o-transcribe", include=["logprobs"])
    assert asked.text == plain.text
    assert asked.logprobs is not None
    assert "".join(said.token or "" for said in asked.logprobs).strip() == asked.text
    assert b"".join(bytes(map(int, said.bytes or ())) for said in asked.logprobs).decode().strip() == asked.text
    assert {said.logprob for said in asked.logprobs} == {LOGPROB}

    deltas: list[Any] = []
    async for event in await create(file=file, model="gpt-4o-transcribe", include=["logprobs"], stream=True):
        if event.type == "transcript.text.delta":
            assert "".join(said.token or "" for said in event.logprobs or ()).strip() == event.delta.strip()
            deltas += event.logprobs or ()
        elif event.type == "transcript.text.done":
            done = event
    assert [said.to_dict() for said in done.logprobs or ()] == [said.to_dict() for said in deltas]
    assert [said.token for said in deltas] == [said.token for said in asked.logprobs]

    verbose = await create(file=file, model="whisper-1", response_format="verbose_json", extra_body={"logprobs": True})
    result = await by_hand(served, logprobs="true")
    for said, segment in zip(verbose.segments or (), result["segments"], strict=True):
        assert said.to_dict()["logprobs"] == segment["logprobs"]
        assert len(segment["logprobs"]) == 4


async def test_segments_are_streamed_where_the_format_has_them(client: AsyncOpenAI, tmp_path: Path) -> None:
    stream = await client.audio.transcriptions.create(
        file=("talk.wav", SPOKEN),
        model="whisper-1",
        response_format="verbose_json",
        prompt=f"fake:then=once={tmp_path / 'died'},exit",  # the second attempt says nothing twice
        stream=True,
    )
    kinds = [event.type async for event in stream]
    assert kinds == [*["transcript.text.delta", "transcript.text.segment"] * 3, "transcript.text.done"]


async def test_who_speaks_is_streamed_once_it_is_known(client: AsyncOpenAI, tmp_path: Path) -> None:
    go = tmp_path / "go"
    stream = await client.audio.transcriptions.create(
        file=("talk.wav", SPOKEN),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        chunking_strategy="auto",
        known_speaker_names=["Ada"],
        known_speaker_references=[f"data:audio/wav;base64,{base64.b64encode(tone(3.0)).decode()}"],
        prompt=f"fake:then=until={go}",
        stream=True,
    )
    told: list[tuple[str, str]] = []
    async for event in stream:
        if event.type == "transcript.text.segment":
            told.append((event.speaker, f"{event.start:.0f}-{event.end:.0f}"))
        else:
            told.append((event.type, ""))
            go.touch()
    assert told == [
        *[("transcript.text.delta", "")] * 3,
        ("Ada", "0-5"),
        ("A", "5-10"),
        ("Ada", "10-12"),
        ("transcript.text.done", ""),
    ]


REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None, str | None]] = [
    ({"model": "huge"}, openai.NotFoundError, "model_not_found", "model"),
    ({"model": "tiny"}, openai.NotFoundError, "model_not_found", "model"),
    ({"response_format": "docx"}, openai.BadRequestError, "invalid_value", "response_format"),
    ({"response_format": "srt", "stream": True}, openai.BadRequestError, "invalid_value", "response_format"),
    (
        {"include": ["logprobs"], "response_format": "verbose_json"},
        openai.BadRequestError,
        "invalid_value",
        "include[]",
    ),
    ({"include": ["everything"]}, openai.BadRequestError, "invalid_value", "include[]"),
    ({"timestamp_granularities": ["page"]}, openai.BadRequestError, None, "timestamp_granularities[]"),
    ({"temperature": 2}, openai.BadRequestError, "invalid_value", "temperature"),
    ({"language": "Klingon"}, openai.BadRequestError, "invalid_value", "language"),
    ({"chunking_strategy": {"type": "server_vad", "threshold": 7}}, openai.BadRequestError, None, None),
    ({"chunking_strategy": "never"}, openai.BadRequestError, "invalid_value", "chunking_strategy"),
    ({"known_speaker_names": ["Ada"]}, openai.BadRequestError, "invalid_value", "known_speaker_names"),
    (
        {"known_speaker_names": ["Ada"], "known_speaker_references": ["https://example.org/ada.wav"]},
        openai.BadRequestError,
        "invalid_value",
        "known_speaker_references",
    ),
    ({"extra_body": {"task": "diarize"}}, openai.BadRequestError, "invalid_value", "task"),
    ({"file": ("a.mp3", b"no audio at all " * 99)}, openai.APIStatusError, "not_media", "file"),
    ({"file": ("a.wav", b"x" * (1 << 20 | 1))}, openai.APIStatusError, "too_large", "file"),
    ({"extra_body": {"highlight_words": "maybe"}}, openai.BadRequestError, "invalid_value", "highlight_words"),
]


async def test_what_is_refused(served: ServedDaemon, client: AsyncOpenAI) -> None:
    for given, error, code, param in REFUSED:
        arguments: dict[str, Any] = {"file": ("talk.wav", SPOKEN), "model": "whisper-1"} | given
        with pytest.raises(error) as refused:
            await client.audio.transcriptions.create(**arguments)
        assert refused.value.request_id, given
        assert refused.value.type == "invalid_request_error", given
        assert code in (None, refused.value.code), given
        assert param in (None, refused.value.param), given
        assert len(refused.value.body["message"]) > 20, given  # type: ignore[index]
        assert served.directories() == []


async def test_what_failed_is_not_sent_again(served: ServedDaemon, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await client.audio.transcriptions.create(file=("a.wav", SPOKEN), model="whisper-1", prompt="fake:error")
    assert failed.value.code == "engine_error"
    stream = await client.audio.transcriptions.create(
        file=("a.wav", SPOKEN), model="whisper-1", prompt="fake:error", stream=True
    )
    with pytest.raises(openai.APIError) as broken:
        async for _ in stream:
            pass
    assert broken.value.code == "engine_error"
    assert [job["status"] for job in (await served.json("/jobs"))["jobs"]] == ["failed", "failed"]


async def running(served: ServedDaemon) -> str:
    """The one job, once it is being done."""
    async with asyncio.timeout(20):
        while not (ids := (await served.json("/queue"))["running"]):
            await asyncio.sleep(0.02)
    job_id: str = ids[0]
    return job_id


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_cancels_its_job(
    served: ServedDaemon, client: AsyncOpenAI, tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance_module, "ARRIVAL_S", 0.0)

    async def ask() -> None:
        made: Any = await client.audio.transcriptions.create(
            file=("talk.wav", SPOKEN), model="whisper-1", prompt=f"fake:until={tmp_path / 'never'}", stream=stream
        )
        if stream:
            async for _ in made:
                pass

    asking = asyncio.create_task(ask())
    job_id = await running(served)
    asking.cancel()
    assert (await served.finished(job_id))["status"] == "cancelled"


async def test_curl_that_hangs_up_cancels_at_once(served: ServedDaemon, tmp_path: Path) -> None:
    asking = asyncio.create_task(
        served.client.post(
            "/v1/audio/transcriptions",
            files={"file": ("talk.wav", SPOKEN)},
            data={"model": "whisper-1", "prompt": f"fake:until={tmp_path / 'never'}"},
        )
    )
    job_id = await running(served)
    asking.cancel()
    assert (await served.finished(job_id))["status"] == "cancelled"


class Impatient(httpx2.AsyncHTTPTransport):
    """Its first request is given up when the test says so: as if nothing had been heard for too long."""

    def __init__(self) -> None:
        super().__init__()
        self.enough = asyncio.Event()
        self._gave_up = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._gave_up:
            return await super().handle_async_request(request)
        asking = asyncio.create_task(super().handle_async_request(request))
        enough = asyncio.create_task(self.enough.wait())
        await asyncio.wait({asking, enough}, return_when=asyncio.FIRST_COMPLETED)
        self._gave_up = True
        asking.cancel()
        await asyncio.wait({asking})
        raise httpx2.ReadTimeout("nothing was heard")


async def test_a_request_that_comes_again_is_joined_to_its_job(
    served: ServedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance_module, "ARRIVAL_S", 60.0)
    go = tmp_path / "go"
    transport = Impatient()
    with capture_logs() as lines:
        async with AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="any", http_client=httpx2.AsyncClient(transport=transport)
        ) as client:
            asking = asyncio.create_task(
                client.audio.transcriptions.create(file=("a.wav", SPOKEN), model="whisper-1", prompt=f"fake:until={go}")
            )
            job_id = await running(served)
            transport.enough.set()
            async with asyncio.timeout(30):
                while not any(line["event"] == "job.rejoined" for line in lines):
                    await asyncio.sleep(0.02)
            go.touch()
            assert (await asking).text
    (job,) = (await served.json("/jobs"))["jobs"]
    assert (job["job_id"], job["status"], job["attempt"]) == (job_id, "completed", 1)
    assert served.directories() == []


async def test_one_that_does_not_come_back_is_given_up_after_its_pause(
    served: ServedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests for one job: the first to hang up does not take it from the other."""
    monkeypatch.setattr(attendance_module, "ARRIVAL_S", 0.0)
    monkeypatch.setattr(attendance_module, "FIRST_PAUSE_S", 0.0)

    def ask(retry: int) -> "asyncio.Task[httpx2.Response]":
        return asyncio.create_task(
            served.client.post(
                "/v1/audio/transcriptions",
                files={"file": ("talk.wav", SPOKEN)},
                data={"model": "whisper-1", "prompt": f"fake:until={tmp_path / 'never'}"},
                headers={"x-stainless-retry-count": str(retry)},
            )
        )

    with capture_logs() as lines:
        first = ask(0)
        job_id = await running(served)
        second = ask(1)
        async with asyncio.timeout(30):
            while not any(line["event"] == "job.rejoined" for line in lines):
                await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.wait({first})
        assert (await served.json(f"/jobs/{job_id}"))["status"] == "processing"
        second.cancel()
        assert (await served.finished(job_id))["status"] == "cancelled"
    assert [line["event"] for line in lines].count("job.given_up") == 1


async def test_a_long_wait_is_kept_from_falling_asleep(
    served: ServedDaemon, client: AsyncOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blanks before the JSON; a job that fails then breaks the line, and who asks again hears why."""
    monkeypatch.setattr(attendance_module, "QUIET_S", 0.0)
    monkeypatch.setattr(line_module, "DRIP_S", 0.02)
    form: dict[str, Any] = {"files": {"file": ("talk.wav", SPOKEN)}}
    async with served.client.stream(
        "POST",
        "/v1/audio/transcriptions",
        data={"model": "whisper-1", "prompt": f"fake:until={tmp_path / 'go'}"},
        **form,
    ) as response:
        assert (response.status_code, response.headers["x-accel-buffering"]) == (200, "no")
        body = b""
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > 3:
                (tmp_path / "go").touch()
    assert body[:3] == b"   "
    assert response.headers["content-type"] == "application/json"
    assert httpx2.Response(200, content=body).json()["text"]
    text = await client.audio.transcriptions.create(file=("talk.wav", SPOKEN), model="whisper-1")
    assert text.text
    with pytest.raises(openai.InternalServerError) as failed:
        await client.audio.transcriptions.create(file=("talk.wav", SPOKEN), model="whisper-1", prompt="fake:error")
    assert failed.value.code == "engine_error"
    assert len((await served.json("/jobs", status="failed"))["jobs"]) == 1


async def test_keys(tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        served_daemon(tmp_path, database, monkeypatch, api_keys=("one",)) as served,
        httpx2.AsyncClient(trust_env=False) as http,
    ):
        good = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="one", http_client=http)
        bad = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="two", http_client=http)
        assert (await good.audio.transcriptions.create(file=("a.wav", SPOKEN), model="whisper-1")).text
        for call in (
            bad.models.list(),
            bad.models.retrieve("demo"),
            bad.audio.transcriptions.create(file=("a.wav", SPOKEN), model="whisper-1"),
        ):
            with pytest.raises(openai.AuthenticationError) as refused:
                await call
            assert refused.value.code == "invalid_api_key"
