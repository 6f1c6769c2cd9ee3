from gpu_daemon.jobs.model import JobId
from gpu_daemon.scheduling.quarantine import WINDOW_S, Deaths


def job(number: int) -> set[JobId]:
    return {JobId(f"job-{number}")}


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
    assert [deaths.died(float(second), set()) for second in range(3)] == [False, False, True]
    mixed = Deaths()
    assert [mixed.died(0, job(1)), mixed.died(1, set()), mixed.died(2, job(1)), mixed.died(3, set())] == [
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


def test_a_death_among_others_is_that_of_the_job_which_kills_alone_too() -> None:
    deaths = Deaths()
    assert not deaths.died(0, job(1) | job(2) | job(3))
    assert [deaths.died(float(second), job(2)) for second in range(1, 20)] == [False] * 19
    assert not deaths.died(20, job(4))
    assert deaths.died(21, job(5))


def test_deaths_among_several_jobs_count_each_while_nobody_is_known_to_be_guilty() -> None:
    deaths = Deaths()
    assert [deaths.died(float(n), job(2 * n) | job(2 * n + 1)) for n in range(3)] == [False, False, True]
