"""From a request to a job that cannot be lost, or to a refusal that leaves nothing behind."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request

from gpu_daemon.api.context import Context
from gpu_daemon.api.fields import SECRETS, Submission, check_model_knows, parse_fields
from gpu_daemon.api.form import FILE_FIELD
from gpu_daemon.api.uploads import Upload, receive_json, receive_upload
from gpu_daemon.api.voices import REFERENCE_FIELDS, kept
from gpu_daemon.audio.decode import Decoded, plain_audio
from gpu_daemon.audio.fetch import name_in_url
from gpu_daemon.audio.pace import FileLimits
from gpu_daemon.audio.probe import AudioInfo, check_channels, check_duration, probe
from gpu_daemon.audio.sink import sync_file
from gpu_daemon.blocking import blocking
from gpu_daemon.errors import InvalidRequest, OutcomeUnknown
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import ChannelMode, IdempotencyKey, Job, JobId, JobOptions, NewJob
from gpu_daemon.outgoing.target import AddressPolicy, literal
from gpu_daemon.scheduling.preparation import SOURCE_NAME
from gpu_daemon.scheduling.recovery import remove_files
from gpu_daemon.unique import uuid4

JSON_TYPE = "application/json"
PROBES_AT_ONCE = 4
SHORT_BYTES = 1 << 18
"""A body that is here as soon as anybody could notice."""
MAX_KEY_CHARACTERS = 255

Fields = Mapping[str, Sequence[str]]
Translation = Callable[[Fields, bool], Fields]
"""Of the fields of another API to those of POST /transcribe; False: these are only those that came before the file.

Raises InvalidRequest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    submission: Submission
    job: Job
    replayed: bool
    """The client had made this job before."""


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

    async def accept(
        self, request: Request, client: str | None, translate: Translation | None = None, *, rejoin: bool = False
    ) -> Taken:
        """When this returns the job is durable. Raises InvalidRequest and its like, Unavailable, ClientDisconnect.

        `rejoin`: a job that the client has made of the same before is the answer, if it has only just ended or not yet.
        """
        key = _idempotency_key(request)
        job_id = JobId(str(uuid4()))
        source = self._jobs_dir / job_id / SOURCE_NAME
        try:
            upload = await self._received(request, source, translate)
            fields = upload.fields if translate is None else translate(upload.fields, True)
            submission = self._checked(fields)
            file_name, duration_s, audio = upload.file_name, None, None
            if file_name is not None:
                _check_alone(submission.url)
                duration_s = (await self._examined(upload, source, submission.options)).duration_s
                audio = self._known_audio(upload, source, submission.options)
            elif submission.url is not None:
                file_name = name_in_url(submission.url)
            else:
                raise InvalidRequest(
                    "the field `file` is missing: it holds the audio; or give its `url`", param=FILE_FIELD
                )
            if submission.voices:
                submission = await self._with_voices(submission, source.parent)
        except BaseException:
            await asyncio.shield(remove_files(self._jobs_dir, job_id))
            raise
        new = NewJob(
            id=job_id,
            options=submission.options,
            requested_language=submission.requested_language,
            priority=submission.priority,
            client=client,
            file_name=file_name,
            source_url=submission.url,
            file_size_bytes=upload.size_bytes,
            file_sha256=upload.sha256,
            duration_s=duration_s,
            callback_url=submission.callback_url,
            metadata=submission.metadata,
        )
        idempotency = (
            None if key is None else IdempotencyKey(key, _fingerprint(fields, upload.sha256 or "", submission.options))
        )
        try:
            job = await self._context.jobs.alike(new) if rejoin else None
            if job is None:
                job = await self._context.scheduler.submit(
                    new,
                    idempotency,
                    reuse_result=submission.reuse_result,
                    audio=audio,
                    hf_token=submission.hf_token,
                )
        except OutcomeUnknown:
            raise  # the row may have been committed, here as when we are cancelled: the files stay until that is known
        except Exception:
            await remove_files(self._jobs_dir, job_id)
            raise
        if job.id != job_id:
            await remove_files(self._jobs_dir, job_id)
        return Taken(submission=submission, job=job, replayed=job.id != job_id)

    async def _received(self, request: Request, source: Path, translate: Translation | None) -> Upload:
        content_type = request.headers.get("content-type", "")
        if translate is None and content_type.partition(";")[0].strip().lower() == JSON_TYPE:
            return await receive_json(request.receive, self._limits)

        length = request.headers.get("content-length", "")
        is_short = length.isdecimal() and int(length) <= SHORT_BYTES

        def check(fields: Fields) -> None:
            if not is_short:
                self._check_early(fields if translate is None else translate(fields, False))

        return await receive_upload(request.receive, content_type, source, self._limits, on_file=check)

    async def _examined(self, upload: Upload, source: Path, options: JobOptions) -> AudioInfo:
        """The file is synced then. Raises NotMedia, TooLarge, InvalidRequest."""
        if (info := upload.plain) is None:
            async with self._probing:
                info = await probe(source)
        check_duration(info, self._max_duration_s)
        if options.channel_mode is ChannelMode.SPLIT:
            check_channels(info)
        if upload.plain is None:
            await blocking(lambda: sync_file(source))
            reach(FaultPoint.FILE_SYNCED)
        return info

    async def _with_voices(self, submission: Submission, directory: Path) -> Submission:
        """Their files are synced then. Raises InvalidRequest and its like, DiskFull."""
        known = await kept(
            submission.voices, directory, reserve_bytes=self._limits.reserve_bytes, probing=self._probing
        )
        options = submission.options.model_copy(update={"known_speakers": known})
        return replace(submission, options=options, voices=())

    def _known_audio(self, upload: Upload, source: Path, options: JobOptions) -> Decoded | None:
        """What the engine is to hear, if that is the file as it is."""
        if upload.plain is None or upload.size_bytes is None or (options.trim_silence and not upload.is_loud):
            return None
        audio = plain_audio(source, upload.size_bytes)
        return audio if audio.duration_s <= self._max_duration_s else None

    def _checked(self, fields: Fields) -> Submission:
        catalogue, settings = self._context.catalogue, self._context.settings
        submission = parse_fields(
            fields,
            default_model=lambda: catalogue.default(settings.default_model),
            default_language=settings.default_language,
        )
        self._check_addresses(submission)
        catalogue.check(submission.options.model)
        status = catalogue.status(submission.options.model)
        check_model_knows(submission.options, official=status is not None and status.source == "whisper")
        return submission

    def _check_early(self, fields: Fields) -> None:
        """The fields that came before the file: what they get wrong need not wait for gigabytes."""
        settings = self._context.settings
        submission = parse_fields(
            fields, default_model=lambda: "", default_language=settings.default_language, complete=False
        )
        _check_alone(submission.url)
        self._check_addresses(submission)
        if submission.options.model:
            self._context.catalogue.check(submission.options.model)

    def _check_addresses(self, submission: Submission) -> None:
        context = self._context
        _check_address("url", submission.url, context.fetch_policy, "FETCH_ALLOWED_NETWORKS")
        _check_address("callback_url", submission.callback_url, context.callback_policy, "CALLBACK_ALLOWED_NETWORKS")


def _check_alone(url: str | None) -> None:
    """There is a file. Raises InvalidRequest."""
    if url is not None:
        raise InvalidRequest("give the audio as `file` or as `url`, not as both", param="url")


def _check_address(name: str, url: str | None, policy: AddressPolicy, setting: str) -> None:
    """What can be known without asking a name server; the rest is checked when it is connected to."""
    host = None if url is None else urlsplit(url).hostname
    address = None if host is None else literal(host)
    if address is not None and not policy.allows(address, str(host)):
        raise InvalidRequest(f"{name} is not an address that {setting} allows", code="address_not_allowed", param=name)


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


def _fingerprint(fields: Fields, file_sha256: str, options: JobOptions) -> str:
    """Of what was asked for: the boundaries of a form differ from try to try, and the order of its fields may."""
    heard = [file_sha256, *(voice.sha256 for voice in options.known_speakers)]
    said = {name: list(values) for name, values in fields.items() if name not in SECRETS | REFERENCE_FIELDS}
    return hashlib.sha256(json.dumps([*heard, sorted(said.items())]).encode()).hexdigest()
