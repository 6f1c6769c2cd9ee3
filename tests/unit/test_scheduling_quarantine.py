from gpu_daemon.jobs.model import JobId
from gpu_daemon.scheduling.quarantine import WINDOW_S, Deaths


def job(number: int) -> JobId:
    return JobId(f"job-{number}")


def test_the_third_death_in_ten_minutes_is_one_too_many() -> None:
    deaths = Deaths()
    assert [deaths.died(now_s, job(number)) for number, now_s in enumerate((0, 300, 599))] == [False, False, True]


def test_deaths_are_forgotten_in_time() -> None:
    deaths = Deaths()
    assert [deaths.died(number * WINDOW_S / 2, job(number)) for number in range(20)] == [False] * 20


def test_a_job_that_kills_every_runner_is_one_death() -> None:
    deaths = Deaths()
    assert [deaths.died(float(second), job(1)) for second in range(20)] == [False] * 20
    assert not deaths.died(21, job(2))
    assert deaths.died(22, job(3))


def test_deaths_without_a_job_count_each() -> None:
    deaths = Deaths()
    assert [deaths.died(float(second), None) for second in range(3)] == [False, False, True]
    mixed = Deaths()
    assert [mixed.died(0, job(1)), mixed.died(1, None), mixed.died(2, job(1)), mixed.died(3, None)] == [
        False,
        False,
        False,
        True,
    ]


def test_a_completed_job_clears_the_device() -> None:
    deaths = Deaths()
    for number in range(20):
        assert not deaths.died(float(number), job(number))
        if number % 2:
            deaths.forget()
