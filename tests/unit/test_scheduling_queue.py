from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.audio.decode import Decoded
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
        split_channels=False,
        source_url=None,
        attempt=0,
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


def test_whether_a_file_is_still_to_be_fetched_is_known() -> None:
    queue, by_url = JobQueue(), replace(waiting(1), source_url="https://example.org/a.mp3")
    known = [queue.has_urls]
    for job in (by_url, by_url, waiting(2)):
        queue.push(job)
    known.append(queue.has_urls)
    assert queue.take(anything) == by_url
    known.append(queue.has_urls)
    queue.push_back(by_url)
    known.append(queue.has_urls)
    assert queue.remove(by_url.id) == by_url
    assert [*known, queue.has_urls] == [False, True, False, True, False]


def test_whether_there_is_audio_to_prepare_is_known() -> None:
    queue, ready = JobQueue(), replace(waiting(1), audio=Decoded(Path("source"), 44, 1, 16_000, 0))
    known = [queue.has_unprepared]
    queue.push(ready)
    known.append(queue.has_unprepared)
    queue.push(waiting(2))
    known.append(queue.has_unprepared)
    assert queue.take(anything) == ready
    known.append(queue.has_unprepared)
    assert queue.take(anything) == waiting(2)
    assert [*known, queue.has_unprepared] == [False, False, True, True, False]


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


def alternating(queue: JobQueue, count: int) -> None:
    """Jobs of `large` and `demo` in turn, `large` first."""
    for seq in range(count):
        queue.push(waiting(seq, model="demo" if seq % 2 else "large"))


def taken(queue: JobQueue, loaded: str, now_s: float) -> int:
    job = queue.take(anything, loaded={loaded}, now_s=now_s)
    assert job is not None
    return job.seq


def test_a_job_whose_model_is_loaded_goes_before_others() -> None:
    queue = JobQueue(affinity_wait_s=30)
    alternating(queue, 6)
    assert [taken(queue, "demo", now_s=0) for _ in range(4)] == [1, 3, 5, 0]
    assert [taken(queue, "large", now_s=0) for _ in range(2)] == [2, 4]


def test_without_a_loaded_model_or_with_no_wait_allowed_the_order_holds() -> None:
    for wait_s, loaded in ((30.0, "nobody's"), (0.0, "demo")):
        queue = JobQueue(affinity_wait_s=wait_s)
        alternating(queue, 6)
        assert [taken(queue, loaded, now_s=0) for _ in range(6)] == list(range(6))


def test_a_job_is_passed_over_for_a_limited_time_only() -> None:
    queue = JobQueue(affinity_wait_s=30)
    alternating(queue, 20)
    assert [taken(queue, "demo", now_s=now_s) for now_s in (100, 110, 129.9)] == [1, 3, 5]
    # 0, 2 and 4 were passed over by then, 0 and 2 at 110 already.
    assert [taken(queue, "demo", now_s=130) for _ in range(2)] == [0, 7]
    assert [taken(queue, "demo", now_s=140) for _ in range(2)] == [2, 9]
    assert taken(queue, "demo", now_s=159.9) == 4
    assert taken(queue, "demo", now_s=170) == 6


def test_what_will_be_taken_first_is_known_ahead() -> None:
    queue = JobQueue(affinity_wait_s=30)
    alternating(queue, 6)
    queue.push(waiting(9, priority=-1, model="demo"))
    assert [job.seq for job in queue.ahead({"demo"})] == [1, 3, 5, 0, 2, 4, 9]
    assert list(queue.ahead(set())) == list(queue)
    strict = JobQueue(affinity_wait_s=0)
    alternating(strict, 6)
    assert [job.seq for job in strict.ahead({"demo"})] == list(range(6))


def test_no_job_is_passed_over_for_one_of_less_priority() -> None:
    queue = JobQueue(affinity_wait_s=30)
    queue.push(waiting(1, priority=1, model="large"))
    queue.push(waiting(2, priority=0, model="demo"))
    assert taken(queue, "demo", now_s=0) == 1


def test_what_cannot_run_is_not_passed_over() -> None:
    queue = JobQueue(affinity_wait_s=30)
    for seq, model in enumerate(("coming", "large", "demo", "demo")):
        queue.push(waiting(seq, model=model))
    there = {"large", "demo"}
    job = queue.take(lambda job: job.model in there, loaded={"demo"}, now_s=0)
    assert job is not None
    assert job.seq == 2
    there.add("coming")
    # `large` has been passed over for as long as it may be; `coming` never was.
    assert taken(queue, "demo", now_s=29) == 3
    assert taken(queue, "demo", now_s=30) == 0


def test_affinity_keeps_another_client_waiting_for_a_limited_time_only() -> None:
    queue = JobQueue(affinity_wait_s=30)
    for seq in range(200):
        queue.push(waiting(seq, client="a", model="demo"))
    for second in range(50):
        taken(queue, "demo", now_s=second)
    queue.push(waiting(1000, client="b", model="large"))
    assert queue.position(JobId("job-1000")) in (0, 1)
    order = [taken(queue, "demo", now_s=50 + second) for second in range(40)]
    assert 29 <= order.index(1000) <= 32


def test_a_job_taken_from_behind_does_not_push_newcomers_back() -> None:
    queue = JobQueue(affinity_wait_s=30)
    for seq in range(100):
        queue.push(waiting(seq, client="a", model="demo" if seq == 99 else "large"))
    assert taken(queue, "demo", now_s=0) == 99
    queue.push(waiting(1000, client="b", model="large"))
    assert queue.position(JobId("job-1000")) in (0, 1)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ABC"), st.sampled_from("xy")), max_size=60),
    st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 9)), max_size=60),
)
def test_nobody_is_passed_over_for_longer_than_the_limit(
    jobs: list[tuple[int, str, str]], takes: list[tuple[str, int]]
) -> None:
    """Against a slow reference: of each job, since when it has seen others of its priority from behind go first."""
    queue, now_s, since_s = JobQueue(affinity_wait_s=10), 0, dict[JobId, int]()
    for seq, (priority, model, client) in enumerate(jobs):
        queue.push(waiting(seq, priority, model, client))
    for loaded, later_s in takes:
        now_s += later_s
        order = list(queue)
        job = queue.take(anything, loaded={loaded}, now_s=now_s)
        if job is None:
            assert order == []
            return
        before = order[: order.index(job)]
        assert job == order[0] or job.model == loaded
        for other in before:
            assert other.priority == job.priority
            assert other.model != loaded
            assert now_s - since_s.setdefault(other.id, now_s) < 10


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
