"""Who may come in, and whose jobs they see."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from gpu_daemon.api.context import Context, context_of
from gpu_daemon.errors import NotFound, Unauthorized
from gpu_daemon.jobs.model import Job, JobId
from gpu_daemon.settings import Settings

CLIENT_NAME_CHARACTERS = 16

SCHEMES = (
    Security(HTTPBearer(auto_error=False, scheme_name="Bearer", description="as OpenAI's clients send their key")),
    Security(APIKeyHeader(auto_error=False, name="X-API-Key", scheme_name="X-API-Key")),
)
"""For the OpenAPI document; the headers are read below."""


async def _client(request: Request, _bearer: object = SCHEMES[0], _header: object = SCHEMES[1]) -> str | None:
    """The client that the request's key names; None when no keys are configured. Raises Unauthorized.

    Awaits nothing, but is no plain function: those are run in a thread.
    """
    return client_of(request)


def client_of(connection: HTTPConnection) -> str | None:
    """As above."""
    settings = context_of(connection).settings
    connection.state.client = client = client_of_keys(settings, _keys(connection)) if settings.api_keys else None
    return client


def has_key(connection: HTTPConnection) -> bool:
    """Whatever it is worth."""
    return bool(_keys(connection))


def client_of_keys(settings: Settings, sent: Sequence[bytes]) -> str:
    """The client that the first known one of these names. Raises Unauthorized."""
    if not sent:
        raise Unauthorized("send your API key: Authorization: Bearer KEY, or X-API-Key: KEY")
    known = [hashlib.sha256(key.get_secret_value().encode()).digest() for key in settings.api_keys]
    for digest in (hashlib.sha256(key).digest() for key in sent):
        # All are compared, so that the time taken says nothing about which came near.
        if any([hmac.compare_digest(digest, other) for other in known]):
            return digest.hex()[:CLIENT_NAME_CHARACTERS]
    raise Unauthorized("this API key is not known")


def _keys(connection: HTTPConnection) -> list[bytes]:
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    sent = [bearer if scheme.lower() == "bearer" else "", connection.headers.get("x-api-key", "")]
    return [key.strip().encode("latin-1") for key in sent if key.strip()]


RequireKey = Depends(_client)
"""For routes that show nothing of any one client."""

Client = Annotated[str | None, RequireKey]


async def own_job(context: Context, client: str | None, job_id: str) -> Job:
    """Raises NotFound, also for a job of another client: it is nobody's business that it exists."""
    job = await context.jobs.get(JobId(job_id))
    if job is None or (client is not None and job.client != client):
        raise NotFound(f"there is no job {job_id[:50]!r}", param="job_id")
    return job


def own_ids(context: Context, client: str | None, job_ids: list[JobId]) -> list[JobId]:
    """Of jobs that wait or run, the client's own; all of them where no keys are configured."""
    if client is None:
        return job_ids
    return [job_id for job_id in job_ids if context.scheduler.client_of(job_id) == client]
