"""The client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from gpu_daemon.client.calls import Ask, Call, Calls, EventReader, OnUpload, Outcome, Retries, Value
from gpu_daemon.client.connection import event_headers, options
from gpu_daemon.client.upload import arguments
from gpu_daemon.client.views import NO_ANSWER, GpuDaemonClientError, JobEvent, JobView, ModelView, job_view, result_of


class AsyncWhisperClient:
    """Every method raises GpuDaemonClientError, and those that are given a file OSError."""

    def __init__(self, base_url: str, api_key: str | None = None, *, retries: Retries | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._calls = Calls(self.base_url, retries or Retries())
        self._http = httpx2.AsyncClient(**options(self.base_url, api_key))

    async def __aenter__(self) -> "AsyncWhisperClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def transcribe_file(
        self,
        source: Path | str,
        *,
        on_progress: Callable[[JobView], None] | None = None,
        known_speakers: Mapping[str, Path | str] | None = None,
        **fields: object,
    ) -> Mapping[str, Any]:
        """The whole result, when the job is done: `text`, `language`, `segments` … As `submit` and `wait`."""
        job_id = await self._run(self._calls.submit(source, fields, None, known_speakers))
        return result_of(await self.wait(job_id, on_progress))

    async def submit(
        self,
        source: Path | str,
        *,
        on_upload_progress: OnUpload | None = None,
        known_speakers: Mapping[str, Path | str] | None = None,
        **fields: object,
    ) -> str:
        """The id of the job, which the daemon will not lose any more. `fields`: those of POST /transcribe.

        `source` is a file, or the http(s) address that the daemon fetches it from. `known_speakers`: by name a file
        with 2 to 10 seconds of that voice alone; who speaks is asked for then.
        """
        return await self._run(self._calls.submit(source, fields, on_upload_progress, known_speakers))

    async def job(self, job_id: str) -> JobView:
        return await self._run(self._calls.job(job_id))

    async def events(self, job_id: str, *, after: int | None = None) -> AsyncGenerator[JobEvent]:
        """As they come, until the job has ended; over broken connections, too. `after`: the id of one that was had."""
        failures = 0
        while True:
            reader = EventReader()
            try:
                async with self._http.stream("GET", f"/jobs/{job_id}/events", headers=event_headers(after)) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return
                    if not response.is_success:
                        await response.aread()
                        outcome: httpx2.Response | httpx2.HTTPError = response
                    else:
                        outcome = httpx2.ReadError("the events broke off")
                        async for line in response.aiter_lines():
                            if (event := reader.read(line)) is None:
                                continue
                            failures, after = 0, event.id
                            self._calls.answered = True
                            yield event
                            if event.kind == "end":
                                return
            except httpx2.HTTPError as error:
                outcome = error
            failures += 1
            pause_s = self._calls.pause_s(outcome, failures, following=True)
            if pause_s is None:
                raise self._calls.error_of(outcome)
            await asyncio.sleep(pause_s)

    async def wait(self, job_id: str, on_progress: Callable[[JobView], None] | None = None) -> JobView:
        """The job when it has ended, whether completed or not."""
        async with aclosing(self.events(job_id)) as events:
            async for event in events:
                if event.kind == "state" and on_progress is not None:
                    on_progress(job_view(event.json))
        job = await self._run(self._calls.job(job_id, following=True))
        if on_progress is not None:
            on_progress(job)
        return job

    async def result(self, job_id: str, format: str = "verbose_json", **cues: object) -> str:
        """As the daemon writes it. `cues`: max_line_width and the like, for srt and vtt."""
        return await self._run(self._calls.result(job_id, format, cues))

    async def cancel(self, job_id: str) -> JobView:
        return await self._run(self._calls.cancel(job_id))

    async def models(self) -> list[ModelView]:
        return await self._run(self._calls.models())

    async def health(self) -> Mapping[str, Any]:
        return await self._run(self._calls.health())

    async def _run(self, call: Call[Value]) -> Value:
        outcome: Outcome = None
        try:
            while True:
                step = call.send(outcome)
                if isinstance(step, Ask):
                    outcome = await self._ask(step)
                else:
                    await asyncio.sleep(step.seconds)
                    outcome = None
        except StopIteration as done:
            value: Value = done.value
            return value

    async def _ask(self, ask: Ask) -> httpx2.Response | httpx2.HTTPError:
        try:
            with arguments(ask) as given:
                return await self._http.request(**given)
        except httpx2.HTTPError as error:
            return error
        except httpx2.InvalidURL as error:
            raise GpuDaemonClientError(str(error), code=NO_ANSWER) from error
