"""What must be true of jobs after any fault, looked at in the database, on the disk and at the receiver.

A trigger writes down every move of every job, so that a wrong one is seen even if a later one hides it.
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.jobs.state import MOVES, TERMINAL, JobState
from tests.receiver import Received

WATCH = """
CREATE TABLE IF NOT EXISTS watched_moves (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL, old_state text, new_state text, attempt integer
);
CREATE OR REPLACE FUNCTION watch_moves() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO watched_moves (job_id, new_state, attempt) VALUES (NEW.id, NEW.state, NEW.attempt);
    ELSIF NEW.state <> OLD.state OR NEW.lease_token IS DISTINCT FROM OLD.lease_token THEN
        INSERT INTO watched_moves (job_id, old_state, new_state, attempt)
        VALUES (NEW.id, OLD.state, NEW.state, NEW.attempt);
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER watch_moves AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION watch_moves();
"""


async def watch(database: ConnectionParameters) -> None:
    connection = await asyncpg.connect(**database.arguments())
    try:
        await connection.execute(WATCH)
    finally:
        await connection.close()


async def unsettled(database: ConnectionParameters) -> tuple[int, int]:
    """How many jobs have not ended, and how many callbacks are still owed."""
    connection = await asyncpg.connect(**database.arguments())
    try:
        jobs = await connection.fetchval(
            "SELECT count(*) FROM jobs WHERE state = ANY ($1)", list({*JobState} - TERMINAL)
        )
        return jobs, await connection.fetchval("SELECT count(*) FROM callbacks WHERE state = 'pending'")
    finally:
        await connection.close()


async def violations(
    database: ConnectionParameters,
    jobs_dir: Path,
    requests: Sequence[Received],
    *,
    told: Collection[str],
    deleted: Collection[str] = (),
    max_attempts: int = 3,
) -> list[str]:
    """A sentence for each; to be asked when nothing moves any more.

    `told`: jobs whose submission was answered 2xx. `deleted`: those that a client or their age removed since.
    """
    connection = await asyncpg.connect(**database.arguments())
    try:
        rows = {str(row["id"]): row for row in await connection.fetch("SELECT * FROM jobs")}
        owed = {str(row["job_id"]): row for row in await connection.fetch("SELECT * FROM callbacks")}
        moves = await connection.fetch("SELECT * FROM watched_moves ORDER BY id")
    finally:
        await connection.close()
    found = [f"{job_id} was accepted and is gone" for job_id in told if job_id not in rows and job_id not in deleted]
    found += [f"{job_id} was deleted and is still there" for job_id in deleted if job_id in rows]
    found += [f"files are left: {path.name}" for path in jobs_dir.iterdir()]
    found += _wrong_moves(moves, max_attempts)
    calls: dict[str, list[Received]] = defaultdict(list)
    for request in requests:
        calls[str(request.json()["job_id"])].append(request)
    for job_id, row in rows.items():
        found += [f"{job_id}: {what}" for what in _wrong_end(row, owed.get(job_id), calls.pop(job_id, []))]
    found += [f"{job_id}: called back, but there is no such job" for job_id in calls if job_id not in deleted]
    return found


def _wrong_moves(moves: Sequence[asyncpg.Record], max_attempts: int) -> list[str]:
    found: list[str] = []
    states: dict[uuid.UUID, str] = {}
    claims: dict[uuid.UUID, int] = defaultdict(int)
    for move in moves:
        job_id, old, new = move["job_id"], move["old_state"], move["new_state"]
        if states.get(job_id) != old:
            found.append(f"{job_id} went from {old} to {new}, but it was {states.get(job_id)}")
        elif old is not None and JobState(new) not in MOVES[JobState(old)]:
            found.append(f"{job_id} went from {old} to {new}")
        claims[job_id] += new == JobState.PROCESSING
        if not 0 <= move["attempt"] <= min(max_attempts, claims[job_id]):
            found.append(f"{job_id} is at attempt {move['attempt']} after {claims[job_id]} claims")
        states[job_id] = new
    return found


def _wrong_end(row: asyncpg.Record, owed: asyncpg.Record | None, calls: Sequence[Received]) -> list[str]:
    found: list[str] = []
    state = row["state"]
    if state not in TERMINAL:
        found.append(f"is still {state}")
    if (row["result"] is not None) != (state == JobState.COMPLETED):
        found.append(f"is {state} {'without' if row['result'] is None else 'with'} a result")
    if (row["finished_at"] is None) != (state not in TERMINAL):
        found.append(f"is {state} and finished_at is {row['finished_at']}")
    if (owed is not None) != (state in TERMINAL and row["callback_url"] is not None):
        found.append(f"is {state} and its callback is {owed}")
    if owed is not None:
        if owed["state"] != "delivered":
            found.append(f"its callback is {owed['state']}")
        if not calls:
            found.append("its receiver was never called")
        ids = {call.headers.get("webhook-id") for call in calls}
        if not ids <= {f"msg_{row['id'].hex}"}:
            found.append(f"was called back under {ids}")
    for call in calls:
        said: dict[str, Any] = call.json()
        if said["status"] != state or said["result"] != json.loads(row["result"] or "null"):
            found.append(f"is {state}, and its receiver was told {said['status']} with {said['result']}")
    return found
