"""The daemon seen over its wire: `with WhisperClient("http://localhost:8000") as client: client.submit(path)`."""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0
FIRST_LOOK_S = 0.1
SLOWEST_LOOK_S = 1.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
TERMINAL = frozenset({"completed", "failed", "cancelled"})
NO_ANSWER = "unreachable"
"""The `code` of an error that is not the daemon's: nobody answered, or somebody else did."""


class GpuDaemonClientError(Exception):
    def __init__(
        self, message: str, *, code: str | None, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        """HTTP; None: nobody answered."""
        self.request_id = request_id
        """What the daemon's log calls the request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    job_id: str
    status: str
    stage: str | None
    progress: float
    """0–100."""
    queue_position: int | None
    error_code: str | None
    error_message: str | None
    json: Mapping[str, Any]
    """The whole answer."""

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelView:
    name: str
    source: str
    enabled: bool
    state: str
    size_bytes: int | None
    done_bytes: int
    rate_bytes_per_s: float | None
    error: str | None


class WhisperClient:
    """For one thread. Every method raises GpuDaemonClientError."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        try:
            self._http = httpx2.Client(
                base_url=self.base_url,
                headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
                timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                trust_env=urlsplit(self.base_url).hostname not in LOOPBACK,  # no proxy leads back to this machine
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise GpuDaemonClientError(f"{base_url!r} is no address: {error}", code=NO_ANSWER) from error

    def __enter__(self) -> "WhisperClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(
        self,
        source: Path | str,
        *,
        model: str | None = None,
        language: str | None = None,
        callback_url: str | None = None,
        priority: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        other_fields: Mapping[str, str] | None = None,
        on_upload_progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """The id of the job, which the daemon will not lose any more. `other_fields`: those of POST /transcribe.

        `source` is a file, or as text the http(s) address that the daemon fetches it from. `on_upload_progress` is told
        bytes sent and bytes in all. Raises OSError when the file cannot be read.
        """
        named = {
            "model": model,
            "language": language,
            "callback_url": callback_url,
            "priority": priority,
            "metadata": None if metadata is None else json.dumps(metadata),
        }
        form = dict(other_fields or {}) | {name: str(value) for name, value in named.items() if value is not None}
        if isinstance(source, str):
            parts = {name: (None, value) for name, value in (form | {"url": source}).items()}
            answer = self._ask("POST", "/transcribe", files=parts)
        else:
            with _Upload(source, on_upload_progress) as file:
                answer = self._ask("POST", "/transcribe", files={"file": (source.name, file)}, data=form)
        return str(_members(answer, "job_id")["job_id"])

    def job(self, job_id: str) -> JobView:
        return _job(self._ask("GET", f"/jobs/{job_id}"))

    def watch(self, *job_ids: str) -> Iterator[JobView]:
        """Each job whenever it has moved; ends when all have ended."""
        seen: dict[str, JobView] = {}
        pause_s = FIRST_LOOK_S
        while True:
            for job_id in job_ids:
                if job_id in seen and seen[job_id].ended:
                    continue
                job = self.job(job_id)
                if seen.get(job_id) != job:
                    seen[job_id] = job
                    yield job
            if all(job.ended for job in seen.values()):
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, SLOWEST_LOOK_S)

    def wait(self, job_id: str, on_progress: Callable[[JobView], None] | None = None) -> JobView:
        """The job when it has ended, whether completed or not."""
        for job in self.watch(job_id):
            if on_progress is not None:
                on_progress(job)
        return job

    def result(self, job_id: str, format: str = "json") -> str:
        """As the daemon writes it; `json` is the whole result."""
        return self._ask("GET", f"/jobs/{job_id}/result", params={"format": format}).text

    def cancel(self, job_id: str) -> JobView:
        return _job(self._ask("POST", f"/jobs/{job_id}/cancel"))

    def models(self) -> list[ModelView]:
        return [_model(model) for model in _members(self._ask("GET", "/models"), "models")["models"]]

    def enable_model(self, name: str, enabled: bool) -> None:
        self._ask("PATCH", f"/models/{name}", json={"enabled": enabled})

    def health(self) -> Mapping[str, Any]:
        return _members(self._ask("GET", "/health"), "status")

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise GpuDaemonClientError(f"no daemon answers at {self.base_url}: {reason}", code=NO_ANSWER) from error
        if response.is_success:
            return response
        raise _refusal(response)


class _Upload(io.FileIO):
    """A file that tells how much of it has been read. It is streamed: never in memory as a whole."""

    def __init__(self, path: Path, on_progress: Callable[[int, int], None] | None) -> None:
        super().__init__(path)
        self._on_progress = on_progress
        self._size_bytes = path.stat().st_size
        self._sent_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(-1 if size is None else size) or b""
        self._sent_bytes += len(block)
        if self._on_progress is not None:
            self._on_progress(self._sent_bytes, self._size_bytes)
        return block


def _members(response: httpx2.Response, *required: str) -> Mapping[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not answer.keys() >= set(required):
        raise GpuDaemonClientError(
            f"{response.url} does not answer as a gpu_daemon does", code=NO_ANSWER, status=response.status_code
        )
    return answer


def _refusal(response: httpx2.Response) -> GpuDaemonClientError:
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), error["code"]
    except (ValueError, KeyError, TypeError):
        message, code = f"{response.url} answers {response.status_code} {response.reason_phrase}", NO_ANSWER
    request_id = response.headers.get("x-request-id")
    return GpuDaemonClientError(message, code=code, status=response.status_code, request_id=request_id)


def _job(response: httpx2.Response) -> JobView:
    answer = _members(response, "job_id", "status", "stage", "progress", "queue_position", "error")
    error = answer["error"] or {}
    return JobView(
        job_id=answer["job_id"],
        status=answer["status"],
        stage=answer["stage"],
        progress=answer["progress"],
        queue_position=answer["queue_position"],
        error_code=error.get("code"),
        error_message=error.get("message"),
        json=answer,
    )


def _model(answer: Mapping[str, Any]) -> ModelView:
    names = ("name", "source", "enabled", "state", "size_bytes", "done_bytes", "rate_bytes_per_s", "error")
    return ModelView(**{name: answer[name] for name in names})
