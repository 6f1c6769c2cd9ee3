from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.jobs.model import JobId
from gpu_daemon.scheduling.queue import JobQueue, Waiting


def waiting(seq: int, priority: int = 0, model: str = "demo", client: str | None = None) -> Waiting:
    return Waiting(
        id=JobId(f"job-{seq}"),
        seq=seq,
        priority=priority,
        client=client,
        model=model,
        duration_s=1.0,
        trim_silence=True,
    )


def anything(job: Waiting) -> bool:
    return True


def test_priority_first_then_first_come() -> None:
    queue = JobQueue()
    for job in (waiting(1), waiting(2, priority=5), waiting(3), waiting(4, priority=-1), waiting(5, priority=5)):
        queue.push(job)
    assert [job.seq for job in queue] == [2, 5, 1, 3, 4]
    assert queue.position(JobId("job-1")) == 2
    assert queue.position(JobId("job-9")) is None


def test_a_job_that_cannot_run_yet_keeps_its_place() -> None:
    queue = JobQueue()
    for job in (waiting(1, model="large"), waiting(2), waiting(3)):
        queue.push(job)
    taken = queue.take(lambda job: job.model == "demo")
    assert taken is not None
    assert taken.seq == 2
    assert [job.seq for job in queue] == [1, 3]
    assert queue.take(lambda job: False) is None


def test_pushing_twice_changes_nothing() -> None:
    queue = JobQueue()
    queue.push(waiting(1))
    queue.push(waiting(1))
    assert len(queue) == 1


def test_one_client_s_thousand_jobs_do_not_keep_another_waiting() -> None:
    queue = JobQueue()
    for seq in range(200):
        queue.push(waiting(seq, client="a"))
    for _ in range(50):
        queue.take(anything)
    queue.push(waiting(1000, client="b"))
    assert queue.position(JobId("job-1000")) in (0, 1)
    queue.push(waiting(1001, client="b"))
    order = [job.client for job in queue]
    assert order[:5].count("b") == 2
    assert [job.seq for job in queue if job.client == "a"] == list(range(50, 200))


def test_a_client_that_was_away_does_not_save_up_turns() -> None:
    queue = JobQueue()
    for seq in range(10):
        queue.push(waiting(seq, client="a"))
    for _ in range(5):
        queue.take(anything)
    for seq in range(100, 110):
        queue.push(waiting(seq, client="b"))
    first = [job.client for job in queue][:6]
    assert first.count("a") == 3


def test_a_job_that_was_taken_before_comes_first() -> None:
    queue = JobQueue()
    for seq in range(5):
        queue.push(waiting(seq, client="a"))
    taken = queue.take(anything)
    assert taken is not None
    queue.push(waiting(9, client="b"))
    queue.push_back(taken)
    assert queue.position(taken.id) == 0
    urgent = waiting(10, priority=1)
    queue.push(urgent)
    assert queue.position(urgent.id) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "take", "remove"]),
            st.integers(0, 20),
            st.integers(-1, 1),
            st.sampled_from(["a", "b"]),
        ),
        max_size=80,
    )
)
def test_places_hold_and_priorities_rule(steps: list[tuple[str, int, int, str]]) -> None:
    queue, model = JobQueue(), dict[JobId, Waiting]()
    for step, seq, priority, client in steps:
        before = [job.id for job in queue]
        job = waiting(seq, priority, client=client)
        if step == "push":
            queue.push(job)
            model.setdefault(job.id, job)
        elif step == "remove":
            assert queue.remove(job.id) == model.pop(job.id, None)
        else:
            taken = queue.take(anything)
            assert (taken.id if taken else None) == (before[0] if before else None)
            if taken is not None:
                del model[taken.id]
        order = list(queue)
        assert {job.id: job for job in order} == model
        assert [job.priority for job in order] == sorted((job.priority for job in order), reverse=True)
        assert [queue.position(job.id) for job in order] == list(range(len(order)))
        stayed = [job_id for job_id in before if job_id in model]
        assert [job.id for job in order if job.id in stayed] == stayed
