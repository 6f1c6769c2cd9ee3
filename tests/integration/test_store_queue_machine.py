"""Random histories of jobs: the store on a real PostgreSQL and the queue do what a plain model does, step by step.

HISTORIES=5000 in the environment runs that many; each is up to STEPS steps long.
"""

import asyncio
import itertools
import os
import shutil
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from gpu_daemon import clock
from gpu_daemon.database.pool import ConnectionParameters, Pool, open_pool
from gpu_daemon.jobs.model import Claim, JobId
from gpu_daemon.jobs.state import TERMINAL, JobState, Stage
from gpu_daemon.scheduling.queue import JobQueue, Waiting
from gpu_daemon.scheduling.recovery import recover
from gpu_daemon.settings import Settings
from gpu_daemon.store.callbacks import CallbackStore, Try
from gpu_daemon.store.jobs import JobStore
from tests.new_jobs import new_job, store_audio

HISTORIES = int(os.environ.get("HISTORIES", "40"))
STEPS = 40
T = TypeVar("T")


class World:
    """What outlives a history: an event loop, a pool, directories."""

    def __init__(self, parameters: ConnectionParameters, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.settings = Settings(_env_file=None, data_dir=directory, max_attempts=3)
        self.settings.jobs_dir.mkdir(parents=True)
        self.pool: Pool = self.do(open_pool(parameters))
        self.histories = self.steps = 0

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def empty(self) -> None:
        self.do(self.pool.execute("DELETE FROM jobs"))
        for directory in self.settings.jobs_dir.iterdir():
            shutil.rmtree(directory)

    def close(self) -> None:
        self.do(self.pool.close())
        self.loop.close()


@dataclass
class Model:
    """One job, as it must be."""

    number: int
    priority: int
    client: str | None
    callback: bool
    state: JobState = JobState.QUEUED
    attempt: int = 0
    claim: Claim | None = None
    """The one that may write."""
    cancel_requested: bool = False
    called_back: bool = False

    def end(self, state: JobState) -> None:
        self.state, self.claim = state, None


@dataclass
class PlainQueue:
    """Priorities first, then rounds, then arrival, by sorting everything anew each time."""

    rounds: dict[JobId, int] = field(default_factory=dict)
    served: dict[int, int] = field(default_factory=dict)
    last: dict[tuple[int, str | None], int] = field(default_factory=dict)

    def push(self, job_id: JobId, job: Model) -> None:
        turn = 1 + max(self.served.get(job.priority, 0), self.last.get((job.priority, job.client), 0))
        self.rounds[job_id] = self.last[job.priority, job.client] = turn

    def push_back(self, job_id: JobId, job: Model) -> None:
        self.rounds[job_id] = self.served.get(job.priority, 0)

    def order(self, jobs: dict[JobId, Model]) -> list[JobId]:
        return sorted(
            self.rounds, key=lambda job_id: (-jobs[job_id].priority, self.rounds[job_id], jobs[job_id].number)
        )

    def take(self, job_id: JobId, job: Model) -> None:
        self.served[job.priority] = max(self.rounds[job_id], self.served.get(job.priority, 0))
        self.remove(job_id)

    def remove(self, job_id: JobId) -> None:
        self.rounds.pop(job_id, None)
        if not self.rounds:
            self.served.clear()
            self.last.clear()


class Histories(RuleBasedStateMachine):
    world: World
    jobs = Bundle("jobs")
    claims = Bundle("claims")
    """Every one that was ever given out: most are of no more use."""

    def __init__(self) -> None:
        super().__init__()
        self.world.empty()
        self.world.histories += 1
        self.store, self.callbacks = JobStore(self.world.pool), CallbackStore(self.world.pool)
        self.queue, self.plain = JobQueue(), PlainQueue()
        self.models: dict[JobId, Model] = {}
        self.numbers = itertools.count()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.world.do(work)

    @rule(
        target=jobs,
        priority=st.integers(-1, 1),
        client=st.sampled_from([None, "a", "b"]),
        callback=st.booleans(),
    )
    def submit(self, priority: int, client: str | None, callback: bool) -> JobId:
        url = "http://receiver.example/" if callback else None
        new = new_job(priority=priority, client=client, callback_url=url)
        store_audio(self.world.settings.jobs_dir, new.id)
        job = self.do(self.store.insert(new))
        self.queue.push(Waiting.of(job))
        self.models[job.id] = Model(next(self.numbers), priority, client, callback)
        self.plain.push(job.id, self.models[job.id])
        return job.id

    @rule(target=claims)
    def claim_next(self) -> Claim | None:
        order = self.plain.order(self.models)
        taken = self.queue.take(lambda _: True)
        assert (None if taken is None else taken.id) == (order[0] if order else None)
        if taken is None:
            return None
        model = self.models[taken.id]
        self.plain.take(taken.id, model)
        claimed = self.do(self.store.claim(taken.id, 0))
        assert claimed is not None
        model.state, model.attempt, model.claim = JobState.PROCESSING, model.attempt + 1, claimed[0]
        assert claimed[0].attempt == model.attempt
        return claimed[0]

    @rule(job_id=jobs)
    def claim_twice(self, job_id: JobId) -> None:
        """What does not wait is not given out."""
        model = self.models.get(job_id)
        if model is None or model.state is not JobState.QUEUED:
            assert self.do(self.store.claim(job_id, 1)) is None

    def _live(self, claim: Claim | None, owner: bool) -> Claim | None:
        """One that may still write, if there is one and `owner` asks for it: drawn blindly, most are too late."""
        live = [model.claim for model in self.models.values() if model.claim is not None]
        return live[-1] if owner and live else claim

    def _owner(self, claim: Claim | None) -> Model | None:
        """The job that this claim may write to."""
        model = None if claim is None else self.models.get(claim.job_id)
        return model if model is not None and model.claim == claim else None

    @rule(claim=claims)
    def progress(self, claim: Claim | None) -> None:
        if claim is not None:
            written = self.do(self.store.progress(claim, Stage.TRANSCRIBING, 50))
            assert written is (self._owner(claim) is not None)

    @rule(claim=claims, how=st.sampled_from([JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED]))
    def end(self, claim: Claim | None, how: JobState) -> None:
        """The owner's write counts; an old owner's late one, or the second, changes nothing."""
        if claim is None:
            return
        model = self._owner(claim)
        if how is JobState.COMPLETED:
            written = self.do(self.store.complete(claim, b'{"text": "alpha"}', {}))
        elif how is JobState.FAILED:
            written = self.do(self.store.fail(claim, "engine_error", "no"))
        else:
            written = self.do(self.store.cancel(claim))
        assert written is (model is not None)
        if model is not None:
            model.end(how)

    @rule(claim=claims, charge=st.booleans(), owner=st.booleans())
    def requeue(self, claim: Claim | None, charge: bool, owner: bool) -> None:
        claim = self._live(claim, owner)
        if claim is None:
            return
        model = self._owner(claim)
        assert self.do(self.store.requeue(claim, charge=charge)) is (model is not None)
        if model is not None:
            model.state, model.claim = JobState.QUEUED, None
            model.attempt -= not charge
            job = self.do(self.store.get(claim.job_id))
            assert job is not None
            self.queue.push_back(Waiting.of(job))
            self.plain.push_back(claim.job_id, model)

    @rule(job_id=jobs)
    def request_cancel(self, job_id: JobId) -> None:
        model = self.models.get(job_id)
        runs = model is not None and model.state is JobState.PROCESSING
        assert self.do(self.store.request_cancel(job_id)) is runs
        if model is not None and runs:
            model.cancel_requested = True

    @rule(job_id=jobs, how=st.sampled_from([JobState.CANCELLED, JobState.FAILED]))
    def end_queued(self, job_id: JobId, how: JobState) -> None:
        model = self.models.get(job_id)
        waits = model is not None and model.state is JobState.QUEUED
        assert (self.queue.remove(job_id) is not None) is waits
        self.plain.remove(job_id)
        if how is JobState.CANCELLED:
            written = self.do(self.store.cancel_queued(job_id))
        else:
            written = self.do(self.store.fail_queued(job_id, "model_unavailable", "gone"))
        assert written is waits
        if model is not None and waits:
            model.end(how)

    @rule(job_id=consumes(jobs))
    def delete(self, job_id: JobId) -> None:
        model = self.models.get(job_id)
        ended = model is not None and model.state in TERMINAL
        assert self.do(self.store.delete(job_id)) is ended
        if ended:
            del self.models[job_id]

    @rule(job_id=jobs)
    def call_back(self, job_id: JobId) -> None:
        model = self.models.get(job_id)
        owed = {delivery.job_id: delivery for delivery in self.do(self.callbacks.due(1000)).deliveries}
        if model is not None and job_id in owed:
            tried = Try(at=clock.now(), duration_s=0.1, status=200, error=None)
            assert self.do(self.callbacks.delivered(owed[job_id], tried))
            model.called_back = True

    @rule(job_id=jobs)
    def call_back_again(self, job_id: JobId) -> None:
        model = self.models.get(job_id)
        owes = model is not None and model.callback and model.state in TERMINAL
        assert self.do(self.callbacks.redeliver(job_id)) is owes
        if model is not None and owes:
            model.called_back = False

    @rule()
    def restart(self) -> None:
        """kill -9 and a start: what was in memory is gone."""
        self.store, self.callbacks = JobStore(self.world.pool), CallbackStore(self.world.pool)
        self.queue, self.plain = JobQueue(), PlainQueue()
        for job in self.do(recover(self.store, self.world.settings)):
            self.queue.push(Waiting.of(job))
        for model in self.models.values():
            if model.state in TERMINAL:
                continue
            if model.cancel_requested:
                model.end(JobState.CANCELLED)
            elif model.state is JobState.PROCESSING and model.attempt >= self.world.settings.max_attempts:
                model.end(JobState.FAILED)
            else:
                model.state, model.claim = JobState.QUEUED, None
        waiting = [(job_id, model) for job_id, model in self.models.items() if model.state is JobState.QUEUED]
        for job_id, model in sorted(waiting, key=lambda each: (-each[1].priority, each[1].number)):
            self.plain.push(job_id, model)
        left = {directory.name for directory in self.world.settings.jobs_dir.iterdir()}
        assert left == {job_id for job_id, _ in waiting}

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        self.world.steps += 1
        rows = self.do(self.world.pool.fetch("SELECT * FROM jobs"))
        assert {str(row["id"]) for row in rows} == set(self.models)
        for row in rows:
            model = self.models[JobId(str(row["id"]))]
            assert (row["state"], row["attempt"]) == (model.state, model.attempt)
            assert (row["cancel_requested_at"] is not None) is model.cancel_requested
            assert (row["result"] is not None) is (model.state is JobState.COMPLETED)
            assert (row["finished_at"] is not None) is (model.state in TERMINAL)

    @invariant()
    def the_queue_is_in_its_order(self) -> None:
        order = self.plain.order(self.models)
        assert [job.id for job in self.queue] == order
        assert {job.id for job in self.do(self.store.queued())} == set(order)

    @invariant()
    def each_end_owes_one_callback(self) -> None:
        owed = [delivery.job_id for delivery in self.do(self.callbacks.due(1000)).deliveries]
        ended = {job_id for job_id, model in self.models.items() if model.callback and model.state in TERMINAL}
        assert sorted(owed) == sorted(job_id for job_id in ended if not self.models[job_id].called_back)


@pytest.fixture
def world(postgres: ConnectionParameters, tmp_path: Path) -> Iterator[World]:
    async def execute(sql: str) -> None:
        connection = await asyncpg.connect(**postgres.arguments())
        await connection.execute(sql)
        await connection.close()

    asyncio.run(execute("CREATE DATABASE histories TEMPLATE migrated"))
    world = World(replace(postgres, database="histories"), tmp_path / "data")
    yield world
    world.close()
    asyncio.run(execute("DROP DATABASE histories WITH (FORCE)"))


@pytest.mark.timeout(120 + HISTORIES)
def test_store_and_queue_do_what_the_model_does(world: World) -> None:
    Histories.world = world
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{world.histories} histories, {world.steps} steps")
    assert world.histories >= HISTORIES
