"""Every error leaves in one envelope. The only place that knows which of our errors is which HTTP status."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import compile_path

from gpu_daemon.api.schemas import Error, ErrorDetail
from gpu_daemon.errors import (
    Conflict,
    DiskFull,
    Forbidden,
    GpuDaemonError,
    InvalidRequest,
    NotFound,
    NotMedia,
    RateLimited,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
)
from gpu_daemon.jobs.model import Job
from gpu_daemon.logs import log

STATUSES: Mapping[type[GpuDaemonError], int] = {
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    TooSlow: 408,
    Conflict: 409,
    TooLarge: 413,
    NotMedia: 415,
    Unavailable: 503,
    DiskFull: 507,
    RateLimited: 429,
}
JOB_STATUSES = {
    "url_blocked": 400,
    "fetch_failed": 400,
    "not_media": 415,
    "too_long": 413,
    "too_large": 413,
    "cancelled": 409,
    "model_unavailable": 503,
    "pipeline_gated": 400,
    "pipeline_unavailable": 503,
}
"""Of a job that failed while its client waited for the answer; 500 else."""
MEANINGS = {
    400: "a field is wrong; `param` names it",
    401: "the API key is missing or wrong",
    404: "there is no such thing, or it is another client's",
    408: "the body came too slowly",
    409: "the job is not in a state for this",
    413: "too many bytes, or too many seconds of audio",
    415: "not audio or video that can be decoded",
    429: "too many submissions in a minute; `Retry-After` says when to come back",
    500: "a mistake of the daemon's",
    503: "starting, draining, stopping, or the queue is full; `Retry-After` says when to come back",
    507: "too little disk space; `Retry-After` says when to come back",
}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
PHRASES = {
    404: ("not_found", "there is nothing at this address"),
    405: ("method_not_allowed", "this address does not take that method"),
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for OpenAPI."""
    return {status: {"model": Error, "description": MEANINGS[status]} for status in statuses}


class JobFailed(Exception):
    """To a client that waited for the result."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.error_message)
        self.job = job


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An error as HTTP has it, before it is put in the words of any one API."""

    status: int
    message: str
    code: str | None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def enveloped(self) -> JSONResponse:
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return JSONResponse(Error(error=detail).model_dump(), self.status, headers=self.headers)


INTERNAL = Refusal(
    status=500, message="the daemon made a mistake; its log says more about this request's id", code="internal_error"
)


def refusal(error: Exception) -> Refusal:
    """Of a GpuDaemonError, a JobFailed or what FastAPI says of a parameter."""
    if isinstance(error, JobFailed):
        return _of_failed(error.job)
    if isinstance(error, RequestValidationError):  # FastAPI's 422 is the contract's 400
        first = error.errors()[0]
        param = str(first["loc"][-1]) if first["loc"] else None
        return Refusal(status=400, message=f"{param}: {first['msg']}", code="invalid_value", param=param)
    assert isinstance(error, GpuDaemonError)
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
    if status == 500:
        log.error("request.failed", error=repr(error), exc_info=error)
        return INTERNAL
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return Refusal(status=status, message=error.message, code=error.code, param=error.param, headers=headers)


def _of_failed(job: Job) -> Refusal:
    status = JOB_STATUSES.get(job.error_code or "", 500)
    message = job.error_message or f"the job was {job.state.value}"
    source = "file" if job.source_url is None else "url"
    param = "hf_token" if job.error_code == "pipeline_gated" else source
    return Refusal(
        status=status, message=message, code=job.error_code, param=param if status in (400, 413, 415) else None
    )


def internal_error() -> JSONResponse:
    return INTERNAL.enveloped()


def install(app: FastAPI, document: Mapping[str, Any]) -> None:
    """`document`: OpenAPI's, which knows every method of a path; the router's own answer names those of one route."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return refusal(error).enveloped()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code, message = PHRASES.get(error.status_code, (None, str(error.detail)))
        headers = dict(error.headers or {})
        if error.status_code == 405 and (allowed := _methods(document, request.url.path)):
            headers["Allow"] = ", ".join(sorted(allowed))
        return Refusal(status=error.status_code, message=message, code=code, headers=headers).enveloped()

    for kind in (GpuDaemonError, JobFailed, RequestValidationError):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, http)


def _methods(document: Mapping[str, Any], path: str) -> set[str]:
    declared = {
        method.upper()
        for template, operations in document["paths"].items()
        if compile_path(template)[0].match(path)
        for method in operations
    }
    return declared | {"HEAD"} if "GET" in declared else declared
