"""What the daemon answers, read (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

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
        """HTTP; None: nobody answered, or it is the job that failed."""
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

    @property
    def diarization_error(self) -> str | None:
        """Why nobody knows who speaks, in a job that is completed all the same."""
        result = self.json.get("result") or {}
        error: str | None = (result.get("diarization") or {}).get("error")
        return error


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    kind: str
    """`state`, `segments` or `end`."""
    id: int
    """To go on after it."""
    json: Mapping[str, Any]


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


def members(response: httpx2.Response, *required: str) -> Mapping[str, Any]:
    """Raises GpuDaemonClientError."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not answer.keys() >= set(required):
        raise GpuDaemonClientError(
            f"{response.url} does not answer as a gpu_daemon does", code=NO_ANSWER, status=response.status_code
        )
    return answer


def refusal(response: httpx2.Response) -> GpuDaemonClientError:
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), error["code"]
    except (ValueError, KeyError, TypeError):
        message, code = f"{response.url} answers {response.status_code} {response.reason_phrase}", NO_ANSWER
    request_id = response.headers.get("x-request-id")
    return GpuDaemonClientError(message, code=code, status=response.status_code, request_id=request_id)


def unreachable(base_url: str, error: Exception) -> GpuDaemonClientError:
    return GpuDaemonClientError(
        f"no daemon answers at {base_url}: {str(error) or type(error).__name__}", code=NO_ANSWER
    )


def job_of(response: httpx2.Response) -> JobView:
    return job_view(members(response, "job_id", "status", "stage", "progress", "queue_position", "error"))


def job_view(answer: Mapping[str, Any]) -> JobView:
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


def models_of(response: httpx2.Response) -> list[ModelView]:
    names = ("name", "source", "enabled", "state", "size_bytes", "done_bytes", "rate_bytes_per_s", "error")
    return [ModelView(**{name: model[name] for name in names}) for model in members(response, "models")["models"]]


def result_of(job: JobView) -> Mapping[str, Any]:
    """Of a job that has ended. Raises GpuDaemonClientError when it did not complete."""
    if job.status != "completed":
        raise GpuDaemonClientError(job.error_message or f"the job was {job.status}", code=job.error_code or job.status)
    result: Mapping[str, Any] = job.json["result"]
    return result
