from collections.abc import Iterable

import pytest

from gpu_daemon.jobs.model import JobId
from gpu_daemon.scheduling.estimate import DeviceTime, FreeS, Paces, Waits, starts_s
from gpu_daemon.scheduling.queue import Waiting


def waiting(duration_s: float | None, model: str = "demo") -> Waiting:
    return Waiting(
        id=JobId("job"),
        seq=0,
        priority=0,
        client=None,
        model=model,
        duration_s=duration_s,
        trim_silence=True,
        split_channels=False,
        source_url=None,
        attempt=0,
    )


def paces(*measured: tuple[int, str, float, float]) -> Paces:
    made = Paces()
    for worker, model, duration_s, took_s in measured:
        made.measured(worker, model, duration_s=duration_s, took_s=took_s)
    return made


def starts(paces: Paces, free_s: dict[int, float | None], jobs: Iterable[Waiting]) -> list[float | None]:
    """Where each worker takes one job at a time."""
    return list(starts_s(paces, {worker: (at_s,) for worker, at_s in free_s.items()}, jobs))


def test_before_anything_was_measured_only_idle_workers_can_promise() -> None:
    jobs = [waiting(60)] * 3
    assert starts(Paces(), {0: 0.0, 1: None, 2: 0.0}, jobs) == [0, 0, None, None]
    assert starts(Paces(), {0: None}, jobs[:1]) == [None, None]


def test_without_a_worker_nothing_starts() -> None:
    assert starts(paces((0, "demo", 10, 1)), {}, [waiting(60)]) == [None, None]


def test_jobs_follow_each_other_at_the_measured_pace() -> None:
    ten_times_as_fast = paces((0, "demo", 100, 10))
    assert starts(ten_times_as_fast, {0: 0.0}, [waiting(100), waiting(50), waiting(10)]) == [0, 10, 15, 16]
    assert starts(ten_times_as_fast, {0: 4.0}, [waiting(100)]) == [4, 14]


def test_two_workers_share_the_queue() -> None:
    made = paces((0, "demo", 100, 10), (1, "demo", 100, 20))
    # Worker 0 is free at 10 and 20, worker 1, half as fast, at 20.
    assert starts(made, {0: 0.0, 1: 0.0}, [waiting(100)] * 4) == [0, 0, 10, 20, 20]


def test_a_large_model_is_slower() -> None:
    made = paces((0, "demo", 100, 1), (0, "large", 100, 50))
    assert starts(made, {0: 0.0}, [waiting(100, "large"), waiting(100), waiting(100)]) == [0, 50, 51, 52]


def test_what_was_not_measured_is_taken_from_what_is_nearest() -> None:
    made = paces((0, "demo", 100, 10), (0, "large", 100, 40), (1, "demo", 100, 30))
    large_elsewhere = made.of(1, "large")
    assert large_elsewhere is not None
    assert large_elsewhere.expected_s(100) == pytest.approx(40)
    other_model = made.of(1, "base")
    assert other_model is not None
    assert other_model.expected_s(100) == pytest.approx(30)
    other_worker = made.of(2, "base")
    assert other_worker is not None
    assert 10 < other_worker.expected_s(100) < 40


def test_a_mean_follows_what_is_measured() -> None:
    made = paces(*[(0, "demo", 100.0, 10.0)] * 3, *[(0, "demo", 100.0, 50.0)] * 20)
    pace = made.of(0, "demo")
    assert pace is not None
    assert pace.expected_s(100) == pytest.approx(50, rel=0.01)


def test_audio_of_unknown_length_takes_as_long_as_jobs_do() -> None:
    assert starts(paces((0, "demo", 100, 10)), {0: 0.0}, [waiting(None), waiting(20)]) == [0, 10, 12]


def test_a_long_queue_is_worked_out_now_and_then() -> None:
    waits, asked = Waits(paces((0, "demo", 100, 10))), 0

    def free_s() -> FreeS:
        nonlocal asked
        asked += 1
        return {0: (0.0,)}

    queue = [waiting(10)] * 1000
    assert [waits.behind(position, queue, free_s, now_s=50) for position in (0, 7, 1000, 2000)] == [0, 7, 1000, 1000]
    assert waits.behind(3, queue[:2], free_s, now_s=50.1) == 3
    assert asked == 1
    assert waits.behind(3, queue[:2], free_s, now_s=50.2) == 2
    assert asked == 2


def test_a_job_without_audio_says_nothing_about_speed() -> None:
    assert paces((0, "demo", 0, 3)).of(0, "demo") is None


def test_jobs_that_share_a_device_take_as_much_longer() -> None:
    made = paces((0, "demo", 100, 10))
    assert list(starts_s(made, {0: (0.0, 0.0)}, [waiting(100)] * 4)) == [0, 0, 20, 20, 40]
    assert list(starts_s(made, {0: (5.0, 15.0)}, [waiting(100)] * 2)) == [5, 15, 25]
    assert list(starts_s(made, {0: (), 1: (3.0,)}, [waiting(100)])) == [3, 13]
    assert list(starts_s(made, {0: ()}, [waiting(100)])) == [None, None]


def test_a_job_takes_its_share_of_the_time_of_the_device() -> None:
    time = DeviceTime()
    began = time.at(100, load=0)
    second = time.at(110, load=1)  # for ten seconds the first had it to itself
    assert time.at(130, load=2) - began == 20
    assert time.at(134, load=1) - second == 14
    assert time.at(200, load=0) == time.at(134, load=0)
