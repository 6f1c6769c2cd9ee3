"""All SQL on `jobs`. Every move compares the state it moves from, and the lease where a worker moves."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TypeAlias

import asyncpg

from gpu_daemon.database.pool import Pool
from gpu_daemon.errors import Conflict, InvalidRequest, OutcomeUnknown, Unavailable
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import Claim, IdempotencyKey, Job, JobId, NewJob, SourceFile
from gpu_daemon.jobs.state import TERMINAL, JobState, Stage, check_move
from gpu_daemon.store.failures import Doubts, connection
from gpu_daemon.store.rows import COLUMNS, job_of, key_of
from gpu_daemon.store.text import storable
from gpu_daemon.store.together import Together
from gpu_daemon.unique import uuid4

OURS = "id = $1 AND state = 'processing' AND attempt = $2 AND lease_token = $3"
"""The job is still the one that this claim was given."""
INSERT = """
    INSERT INTO jobs (id, state, priority, client, options, requested_language, file_name, source_url, file_size_bytes,
                      file_sha256, duration_s, callback_url, metadata, idempotency_key, request_sha256)
    VALUES ($1, 'queued', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    ON CONFLICT (coalesce(client, ''), idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING seq, created_at, $16::integer AS nth,
              (SELECT result FROM jobs WHERE state = 'completed' AND file_sha256 = $9 AND options = $4::jsonb
               AND client IS NOT DISTINCT FROM $3 AND model_sha256 = $15 ORDER BY seq DESC LIMIT 1) AS earlier_result
"""
BEFORE = "extract(epoch FROM now() - started_at)::float8 AS before_s"
CLAIM = f"""
    UPDATE jobs SET state = 'processing', stage = 'preparing', progress = 0, attempt = attempt + 1, lease_token = $2,
                    worker_index = $3, started_at = coalesce(started_at, now())
    WHERE id = $1 AND state = 'queued' RETURNING {COLUMNS}, {BEFORE}, $4::integer AS nth
"""
END = """
    WITH ended AS (
        UPDATE jobs SET state = $5, stage = NULL, finished_at = clock_timestamp(),
                        source_url = regexp_replace(source_url, '[?#].*', ''),
                        progress = CASE WHEN $5 = 'completed' THEN 100 ELSE progress END,
                        result = $6, timings = coalesce($7, timings), model_sha256 = $8,
                        error_code = $9, error_message = $10,
                        reused = $11, started_at = CASE WHEN $11 THEN created_at ELSE started_at END
        WHERE id = $1 AND state = $2 AND ($4::uuid IS NULL OR (attempt = $3 AND lease_token = $4))
        RETURNING *
    ), owed AS (
        INSERT INTO callbacks (job_id, url, payload)
        SELECT id, callback_url, json_build_object(
            'job_id', id, 'status', state, 'model', options->>'model', 'language', requested_language,
            'queue_time_s', round(extract(epoch FROM started_at - created_at), 3),
            'processing_time_s', round(extract(epoch FROM finished_at - started_at), 3),
            'result', result, 'error', error_message, 'error_code', error_code, 'metadata', metadata)
        FROM ended WHERE callback_url IS NOT NULL
    )
    SELECT $12::integer AS nth FROM ended
"""
"""State, result and the callback that is owed: one statement, so that they are in one transaction. Of a job that waits
the lease is NULL. `result` and `metadata` are of the type json: they go into the payload as the text that they are."""
SAME_ID = """
    INSERT INTO jobs (id, state, options, requested_language, file_name, file_size_bytes, file_sha256)
    VALUES ($1, 'queued', '{}', '', '', 0, '') ON CONFLICT (id) DO NOTHING
"""
"""Never committed. Waits for a transaction that has written a row of this id and has not ended."""
MADE = "id = $1 AND state = $2 AND ($3::uuid IS NULL OR lease_token = $3)"
"""A move to this state (under this lease) was the last that was made."""
OWES = "EXISTS (SELECT FROM callbacks WHERE job_id = jobs.id AND callbacks.state = 'pending')"
SAME_REQUEST = timedelta(minutes=1)
"""A client that sends a request again may mean a job that ended so long ago."""
DOUBT_TIMEOUT_S = 5.0
DOUBT_PAUSE_S = 0.25
CANCELLED = ("cancelled", "the job was cancelled")

Lease: TypeAlias = tuple[uuid.UUID, int, uuid.UUID]
"""Job, attempt, lease token: the arguments of OURS."""
Asker: TypeAlias = tuple[uuid.UUID, JobState, int | None, uuid.UUID | None]
"""Whose end it may be: job, state it comes from, attempt, lease token. The first arguments of END."""
Move: TypeAlias = tuple[uuid.UUID, JobState, uuid.UUID | None]
"""Job, state it comes to, lease token: the arguments of MADE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inserted(Job):
    earlier_result: str | None = field(default=None, repr=False)
    """JSON text: of the client's latest job that did the same to the same audio with the same checkpoint."""


class JobStore:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._inserts = Together(pool, INSERT, in_order=True)
        self._claims = Together(pool, CLAIM)
        self._ends = Together(pool, END)
        self._doubts = Doubts()
        self._leases: dict[JobId, uuid.UUID] = {}
        """Of claims that broke and may have been made: tried again, they are found by it."""

    async def insert(
        self, new: NewJob, idempotency: IdempotencyKey | None = None, *, model_sha256: str | None = None
    ) -> Job:
        """Committed when it returns; the job that the client's key made before, if it did.

        `model_sha256`: of the checkpoint whose earlier result would do; what is new is Inserted, with that result.

        Raises Conflict when the key was used for something else, InvalidRequest for text that PostgreSQL cannot hold,
        OutcomeUnknown when the database went away and nobody knows whether the job was stored.
        """
        try:
            return await self._insert(new, idempotency, model_sha256)
        except OutcomeUnknown as error:
            if (job := await self._inserted_after_all(new.id)) is None:
                raise Unavailable(error.message, retry_after_s=error.retry_after_s, code=error.code) from error
            return job
        except (asyncpg.DataError, ValueError) as error:
            raise InvalidRequest(
                "a field has characters that cannot be stored (U+0000, or half a character)"
            ) from error

    async def _insert(self, new: NewJob, idempotency: IdempotencyKey | None, model_sha256: str | None) -> Job:
        key, request_sha256 = (None, None) if idempotency is None else (idempotency.key, idempotency.request_sha256)
        reach(FaultPoint.INSERTING)
        while True:
            row = await self._inserts.write(
                uuid.UUID(new.id),
                new.priority,
                new.client,
                new.options.model_dump_json(),
                new.requested_language,
                new.file_name,
                new.source_url,
                new.file_size_bytes,
                new.file_sha256,
                new.duration_s,
                new.callback_url,
                None if new.metadata is None else json.dumps(new.metadata),
                key,
                request_sha256,
                model_sha256,
            )
            if row is not None:
                reach(FaultPoint.INSERTED)
                return _inserted(new, row)
            async with connection(self._pool) as db:
                before = await db.fetchrow(
                    f"""SELECT {COLUMNS}, request_sha256 FROM jobs
                        WHERE coalesce(client, '') = coalesce($1, '') AND idempotency_key = $2""",
                    new.client,
                    key,
                )
            if before is not None:  # else it was deleted between the two statements
                return _same_request(before, request_sha256)

    async def _inserted_after_all(self, job_id: JobId) -> Job | None:
        """The connection broke: was the job committed? The database may only be restarting, and is given a moment."""
        try:
            async with asyncio.timeout(DOUBT_TIMEOUT_S):
                while True:
                    await asyncio.sleep(DOUBT_PAUSE_S)
                    with contextlib.suppress(Unavailable):
                        return await self.inserted(job_id)
        except TimeoutError:
            raise OutcomeUnknown(
                "the database does not answer; send the request again with the same Idempotency-Key", retry_after_s=5
            ) from None

    async def inserted(self, job_id: JobId) -> Job | None:
        """The job of an insert whose answer was lost; None: it was not made, and will not be.

        The server may still be at it, though nobody listens: to commit takes a while on a disk that is busy.
        """
        async with connection(self._pool) as db:
            transaction = db.transaction()
            await transaction.start()
            try:
                await db.execute(SAME_ID, uuid.UUID(job_id))
            finally:
                await transaction.rollback()
        return await self.get(job_id)

    async def get(self, job_id: JobId) -> Job | None:
        """None as well for what is not a job's id at all."""
        if (key := key_of(job_id)) is None:
            return None
        async with connection(self._pool) as db:
            row = await db.fetchrow(f"SELECT {COLUMNS} FROM jobs WHERE id = $1", key)
        return None if row is None else job_of(row)

    async def newest(
        self,
        *,
        states: Collection[JobState] = (),
        model: str | None = None,
        client: str | None = None,
        limit: int = 50,
        before_seq: int | None = None,
        skip: int = 0,
        search: str | None = None,
    ) -> list[Job]:
        """Newest first, without the first `skip`. `search`: in the file's name, the metadata, or how the id begins."""
        async with connection(self._pool) as db:
            rows = await db.fetch(
                f"""SELECT {COLUMNS} FROM jobs
                    WHERE (cardinality($1::text[]) = 0 OR state = ANY ($1))
                      AND ($2::text IS NULL OR options->>'model' = $2)
                      AND ($3::text IS NULL OR client = $3)
                      AND ($4::bigint IS NULL OR seq < $4)
                      AND ($7::text IS NULL OR strpos(lower(file_name), lower($7)) > 0
                           OR strpos(id::text, lower($7)) = 1 OR strpos(lower(metadata::text), lower($7)) > 0)
                    ORDER BY seq DESC LIMIT $5 OFFSET $6""",
                [state.value for state in states],
                model,
                client,
                before_seq,
                limit,
                skip,
                search,
            )
        return [job_of(row) for row in rows]

    async def queued(self) -> list[Job]:
        """In the order of the queue."""
        async with connection(self._pool) as db:
            rows = await db.fetch(f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY priority DESC, seq")
        return await asyncio.to_thread(lambda: [job_of(row) for row in rows])

    async def counts(self) -> dict[JobState, int]:
        async with connection(self._pool) as db:
            found = dict(await db.fetch("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state.value, 0) for state in JobState}

    async def count(self, *, states: Collection[JobState], client: str | None) -> int:
        """Of one client, or of all; in these states, or in any."""
        async with connection(self._pool) as db:
            return int(
                await db.fetchval(
                    """SELECT count(*) FROM jobs WHERE (cardinality($1::text[]) = 0 OR state = ANY ($1))
                                                   AND ($2::text IS NULL OR client = $2)""",
                    [state.value for state in states],
                    client,
                )
            )

    async def count_reused(self) -> int:
        """Jobs that were answered with the result of an earlier one."""
        async with connection(self._pool) as db:
            return int(await db.fetchval("SELECT count(*) FROM jobs WHERE reused"))

    async def claim(self, job_id: JobId, worker_index: int) -> tuple[Claim, Job] | None:
        """queued → processing; the attempt is counted here. None: somebody else has moved the job."""
        check_move(JobState.QUEUED, JobState.PROCESSING)
        earlier = self._leases.get(job_id)
        key, lease_token = uuid.UUID(job_id), earlier or uuid4()
        move = (key, JobState.PROCESSING, lease_token)
        try:
            reach(FaultPoint.CLAIMING)
            row = await self._claims.write(key, lease_token, worker_index)
            if row is None and earlier is not None:
                async with connection(self._pool) as db:
                    row = await db.fetchrow(f"SELECT {COLUMNS}, {BEFORE} FROM jobs WHERE {MADE}", *move)
            if row is not None:
                reach(FaultPoint.CLAIMED)
        except BaseException:
            self._leases[job_id] = lease_token
            raise
        self._leases.pop(job_id, None)
        if row is None:
            return None
        job = job_of(row)
        claim = Claim(
            job_id=job.id, attempt=job.attempt, lease_token=str(lease_token), before_s=max(0.0, row["before_s"])
        )
        return claim, job

    async def fetched(self, job_id: JobId, file: SourceFile) -> bool:
        """Of a job with a `source_url` that has not ended, whoever owns it: the file is the same for all of them."""
        return await self._write(
            """UPDATE jobs SET file_name = coalesce($2, file_name), file_size_bytes = $3, file_sha256 = $4,
                               duration_s = $5
               WHERE id = $1 AND state IN ('queued', 'processing') AND source_url IS NOT NULL""",
            uuid.UUID(job_id),
            None if file.name is None else storable(file.name),
            file.size_bytes,
            file.sha256,
            file.duration_s,
        )

    async def progress(self, claim: Claim, stage: Stage, progress: float) -> bool:
        return await self._write(
            f"UPDATE jobs SET stage = $4, progress = $5 WHERE {OURS}", *_lease(claim), stage, progress
        )

    async def complete(
        self, claim: Claim, result: bytes, timings: dict[str, float], *, model_sha256: str | None = None
    ) -> bool:
        """processing → completed, with the result as the JSON text that it is."""
        return await self._end(
            JobState.COMPLETED,
            _of_worker(claim),
            result=result.decode(),
            timings=json.dumps(timings),
            model_sha256=model_sha256,
        )

    async def reusable_result(self, job: Job, model_sha256: str) -> str | None:
        """Of the client's latest job that did the same to the same audio with the same checkpoint."""
        async with connection(self._pool) as db:
            text: str | None = await db.fetchval(
                """SELECT result FROM jobs WHERE state = 'completed' AND file_sha256 = $1 AND options = $2::jsonb
                   AND client IS NOT DISTINCT FROM $3 AND model_sha256 = $4 ORDER BY seq DESC LIMIT 1""",
                job.file_sha256,
                job.options.model_dump_json(),
                job.client,
                model_sha256,
            )
        return text

    async def alike(self, new: NewJob) -> Job | None:
        """The client's latest job that does the same to the same uploaded audio, unless it ended a while ago."""
        if new.file_sha256 is None:
            return None
        async with connection(self._pool) as db:
            row = await db.fetchrow(
                f"""SELECT {COLUMNS} FROM jobs
                    WHERE file_sha256 = $1 AND options = $2::jsonb AND client IS NOT DISTINCT FROM $3
                      AND (state IN ('queued', 'processing')
                           OR (state IN ('completed', 'failed') AND finished_at > now() - $4::interval))
                    ORDER BY seq DESC LIMIT 1""",
                new.file_sha256,
                new.options.model_dump_json(),
                new.client,
                SAME_REQUEST,
            )
        return None if row is None else job_of(row)

    async def complete_queued(self, job: Job, result: bytes, *, model_sha256: str) -> bool:
        """queued → completed, with the result of an earlier job."""
        return await self._end(
            JobState.COMPLETED,
            _of_queue(uuid.UUID(job.id)),
            result=result.decode(),
            model_sha256=model_sha256,
            reused=True,
        )

    async def fail(self, claim: Claim, code: str, message: str) -> bool:
        return await self._end(JobState.FAILED, _of_worker(claim), error=(code, message))

    async def cancel(self, claim: Claim) -> bool:
        return await self._end(JobState.CANCELLED, _of_worker(claim), error=CANCELLED)

    async def fail_queued(self, job_id: JobId, code: str, message: str) -> bool:
        if (key := key_of(job_id)) is None:
            return False
        return await self._end(JobState.FAILED, _of_queue(key), error=(code, message))

    async def cancel_queued(self, job_id: JobId) -> bool:
        if (key := key_of(job_id)) is None:
            return False
        return await self._end(JobState.CANCELLED, _of_queue(key), error=CANCELLED)

    async def requeue(self, claim: Claim, *, charge: bool) -> bool:
        """processing → queued; `charge=False` gives the attempt back."""
        check_move(JobState.PROCESSING, JobState.QUEUED)
        key, attempt, lease_token = _lease(claim)
        move = (key, JobState.QUEUED, lease_token)
        reach(FaultPoint.REQUEUING)
        with self._doubts.about(move):
            requeued = await self._write(
                f"""UPDATE jobs SET state = 'queued', stage = NULL, progress = 0, worker_index = NULL,
                                    attempt = attempt - $4 WHERE {OURS}""",
                *(key, attempt, lease_token, 0 if charge else 1),
            ) or await self._was_made(move)
        reach(FaultPoint.REQUEUED)
        return requeued

    async def request_cancel(self, job_id: JobId) -> bool:
        """Noted on a job that runs; it is its worker that stops it."""
        if (key := key_of(job_id)) is None:
            return False
        return await self._write(
            """UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, now())
               WHERE id = $1 AND state = 'processing'""",
            key,
        )

    async def orphans(self, max_attempts: int) -> tuple[list[JobId], list[JobId]]:
        """What a dead daemon left: (queued again, ended). Called at start, under the daemon lock.

        Ended are those that were to be cancelled, and those whose attempts are used up.
        """
        async with connection(self._pool) as db:
            rows = await db.fetch(
                """SELECT id, state, attempt, lease_token, cancel_requested_at IS NOT NULL AS cancel FROM jobs
                   WHERE state = 'processing' OR (state = 'queued' AND cancel_requested_at IS NOT NULL)"""
            )
        requeued: list[JobId] = []
        ended: list[JobId] = []
        for row in rows:
            job_id = JobId(str(row["id"]))
            if row["state"] == JobState.QUEUED:
                await self.cancel_queued(job_id)
                ended.append(job_id)
            else:
                claim = Claim(job_id=job_id, attempt=row["attempt"], lease_token=str(row["lease_token"]))
                again = await self._adopt(claim, cancel=row["cancel"], max_attempts=max_attempts)
                (requeued if again else ended).append(job_id)
            reach(FaultPoint.ORPHAN_ADOPTED)
        return requeued, ended

    async def _adopt(self, claim: Claim, *, cancel: bool, max_attempts: int) -> bool:
        """Queued again?"""
        if cancel:
            await self.cancel(claim)
        elif claim.attempt >= max_attempts:
            message = f"the daemon died in each of {claim.attempt} attempts at this job"
            await self.fail(claim, "runner_crashed", message)
        else:
            return await self.requeue(claim, charge=True)
        return False

    async def result(self, job_id: JobId) -> str | None:
        """JSON text as it was stored."""
        if (key := key_of(job_id)) is None:
            return None
        async with connection(self._pool) as db:
            text: str | None = await db.fetchval("SELECT result FROM jobs WHERE id = $1", key)
        return text

    async def delete(self, job_id: JobId, *, unless_owing: bool = False) -> bool:
        """Only a job that has ended. `unless_owing`: and that owes no callback; otherwise that goes with it."""
        if (key := key_of(job_id)) is None:
            return False
        return await self._write(
            f"DELETE FROM jobs WHERE id = $1 AND state = ANY ($2) AND NOT ($3 AND {OWES})",
            key,
            [state.value for state in TERMINAL],
            unless_owing,
        )

    async def expired(self, ttl_s: int) -> list[JobId]:
        """Ended longer ago, and no callback owed any more."""
        async with connection(self._pool) as db:
            rows = await db.fetch(
                f"SELECT id FROM jobs WHERE finished_at < now() - make_interval(secs => $1) AND NOT {OWES}",
                float(ttl_s),
            )
        return [JobId(str(row["id"])) for row in rows]

    async def known(self, job_ids: Collection[JobId]) -> dict[JobId, JobState]:
        keys = [key for job_id in job_ids if (key := key_of(job_id)) is not None]
        async with connection(self._pool) as db:
            rows = await db.fetch("SELECT id, state FROM jobs WHERE id = ANY ($1)", keys)
        return {JobId(str(row["id"])): JobState(row["state"]) for row in rows}

    async def _write(self, sql: str, *arguments: object) -> bool:
        """Did it change the one row?"""
        async with connection(self._pool) as db:
            status: str = await db.execute(sql, *arguments)
        return status.endswith(" 1")

    async def _end(
        self,
        new: JobState,
        asker: Asker,
        *,
        result: str | None = None,
        timings: str | None = None,
        model_sha256: str | None = None,
        error: tuple[str | None, str | None] = (None, None),
        reused: bool = False,
    ) -> bool:
        """Called again after Unavailable it is True as well if the first call was committed after all."""
        key, old, _, lease_token = asker
        check_move(old, new)
        move = (key, new, lease_token)
        code, message = error
        said = None if message is None else storable(message)
        reach(FaultPoint.ENDING)
        with self._doubts.about(move):
            row = await self._ends.write(*asker, new.value, result, timings, model_sha256, code, said, reused)
            ended = row is not None or await self._was_made(move)
        if ended:
            reach(FaultPoint.ENDED)
        return ended

    async def _was_made(self, move: Move) -> bool:
        """For a move in doubt: was it made the first time?"""
        if move not in self._doubts:
            return False
        async with connection(self._pool) as db:
            return bool(await db.fetchval(f"SELECT EXISTS (SELECT FROM jobs WHERE {MADE})", *move))


def _same_request(row: asyncpg.Record, request_sha256: str | None) -> Job:
    if row["request_sha256"] != request_sha256:
        raise Conflict(
            "this Idempotency-Key was used for another request; a new request needs a new key",
            code="idempotency_conflict",
            param="Idempotency-Key",
        )
    return job_of(row)


def _lease(claim: Claim) -> Lease:
    return uuid.UUID(claim.job_id), claim.attempt, uuid.UUID(claim.lease_token)


def _of_worker(claim: Claim) -> Asker:
    key, attempt, lease_token = _lease(claim)
    return key, JobState.PROCESSING, attempt, lease_token


def _of_queue(key: uuid.UUID) -> Asker:
    return key, JobState.QUEUED, None, None


def _inserted(new: NewJob, row: asyncpg.Record) -> Inserted:
    """As it would be read."""
    return Inserted(
        **{one.name: getattr(new, one.name) for one in fields(new)},
        seq=row["seq"],
        state=JobState.QUEUED,
        stage=None,
        progress=0.0,
        attempt=0,
        worker_index=None,
        cancel_requested_at=None,
        created_at=row["created_at"],
        started_at=None,
        finished_at=None,
        error_code=None,
        error_message=None,
        reused=False,
        timings={},
        earlier_result=row["earlier_result"],
    )
