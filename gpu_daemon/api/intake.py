"""From a request to a job that cannot be lost, or to a refusal that leaves nothing behind."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from gpu_daemon.api.context import Context
from gpu_daemon.api.fields import Submission, check_model_knows, parse_fields
from gpu_daemon.api.form import FILE_FIELD
from gpu_daemon.api.uploads import receive_upload
from gpu_daemon.audio.pace import FileLimits
from gpu_daemon.audio.probe import AudioInfo, probe
from gpu_daemon.audio.sink import sync
from gpu_daemon.blocking import blocking
from gpu_daemon.errors import InvalidRequest, OutcomeUnknown, TooLarge
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import IdempotencyKey, Job, JobId, NewJob
from gpu_daemon.outgoing.target import literal
from gpu_daemon.scheduling.preparation import SOURCE_NAME
from gpu_daemon.scheduling.recovery import remove_files

PROBES_AT_ONCE = 4
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    submission: Submission
    job: Job
    replayed: bool
    """The client's Idempotency-Key had made this job before."""


class Intake:
    def __init__(self, context: Context) -> None:
        self._context = context
        settings = context.settings
        self._jobs_dir = settings.jobs_dir
        self._max_duration_s = settings.max_duration_s
        self._limits = FileLimits(
            file_bytes=settings.max_file_size_bytes, reserve_bytes=settings.disk_reserve_mb * 1024 * 1024
        )
        self._probing = asyncio.Semaphore(PROBES_AT_ONCE)

    async def accept(self, request: Request, client: str | None) -> Taken:
        """When this returns the job is durable. Raises InvalidRequest and its like, Unavailable, ClientDisconnect."""
        key = _idempotency_key(request)
        job_id = JobId(str(uuid.uuid4()))
        source = self._jobs_dir / job_id / SOURCE_NAME
        try:
            upload = await receive_upload(
                request.receive, request.headers.get("content-type"), source, self._limits, on_file=self._check_early
            )
            reach(FaultPoint.FILE_WRITTEN)
            submission = self._checked(upload.fields)
            async with self._probing:
                info = await probe(source)
            self._check_duration(info)
            await blocking(lambda: sync(source))
            reach(FaultPoint.FILE_SYNCED)
        except BaseException:
            await asyncio.shield(remove_files(self._jobs_dir, job_id))
            raise
        new = NewJob(
            id=job_id,
            options=submission.options,
            requested_language=submission.requested_language,
            priority=submission.priority,
            client=client,
            file_name=upload.file_name,
            file_size_bytes=upload.size_bytes,
            file_sha256=upload.sha256,
            duration_s=info.duration_s,
            callback_url=submission.callback_url,
            metadata=submission.metadata,
        )
        idempotency = None if key is None else IdempotencyKey(key, _fingerprint(upload.fields, upload.sha256))
        try:
            job = await self._context.scheduler.submit(new, idempotency, reuse_result=submission.reuse_result)
        except OutcomeUnknown:
            raise  # the row may have been committed, here as when we are cancelled: the files stay until that is known
        except Exception:
            await remove_files(self._jobs_dir, job_id)
            raise
        if job.id != job_id:
            await remove_files(self._jobs_dir, job_id)
        return Taken(submission=submission, job=job, replayed=job.id != job_id)

    def _checked(self, fields: Mapping[str, Sequence[str]]) -> Submission:
        catalogue, settings = self._context.catalogue, self._context.settings
        submission = parse_fields(
            fields,
            default_model=lambda: catalogue.default(settings.default_model),
            default_language=settings.default_language,
        )
        self._check_callback(submission.callback_url)
        catalogue.check(submission.options.model)
        status = catalogue.status(submission.options.model)
        check_model_knows(submission.options, official=status is not None and status.source == "whisper")
        return submission

    def _check_early(self, fields: Mapping[str, Sequence[str]]) -> None:
        """The fields that came before the file: what they get wrong need not wait for gigabytes."""
        settings = self._context.settings
        submission = parse_fields(fields, default_model=lambda: "", default_language=settings.default_language)
        self._check_callback(submission.callback_url)
        if submission.options.model:
            self._context.catalogue.check(submission.options.model)

    def _check_callback(self, url: str | None) -> None:
        """What can be known without asking a name server; the rest is checked when it is connected to."""
        host = None if url is None else urlsplit(url).hostname
        address = None if host is None else literal(host)
        if address is not None and not self._context.callback_policy.allows(address, str(host)):
            raise InvalidRequest(
                "callback_url is not an address that callbacks may go to (CALLBACK_ALLOWED_NETWORKS)",
                code="address_not_allowed",
                param="callback_url",
            )

    def _check_duration(self, info: AudioInfo) -> None:
        if info.duration_s is not None and info.duration_s > self._max_duration_s:
            raise TooLarge(
                f"the audio lasts {info.duration_s:.0f} s, the limit is {self._max_duration_s} s",
                code="too_long",
                param=FILE_FIELD,
            )


def _idempotency_key(request: Request) -> str | None:
    """Raises InvalidRequest."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not 0 < len(key) <= MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key is one value of 1 to {MAX_KEY_CHARACTERS} printable ASCII characters, a UUID for example",
            param="Idempotency-Key",
        )
    return key


def _fingerprint(fields: Mapping[str, Sequence[str]], file_sha256: str) -> str:
    """Of what was asked for: the boundaries of a form differ from try to try, and the order of its fields may."""
    asked = json.dumps([file_sha256, sorted((name, list(values)) for name, values in fields.items())])
    return hashlib.sha256(asked.encode()).hexdigest()
