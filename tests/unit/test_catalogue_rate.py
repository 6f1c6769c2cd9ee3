import pytest

from gpu_daemon.catalogue.rate import WINDOW_S, Rate


def test_one_mark_is_too_few() -> None:
    rate = Rate()
    assert rate.bytes_per_s(0.0) is None
    rate.mark(0.0, 5_000_000)
    assert rate.bytes_per_s(1.0) is None


def test_bytes_that_were_there_before_do_not_count() -> None:
    rate = Rate()
    rate.mark(10.0, 5_000_000)
    rate.mark(12.0, 7_000_000)
    assert rate.bytes_per_s(12.0) == 1_000_000


def test_it_follows_the_last_seconds() -> None:
    rate = Rate()
    for second in range(60):
        rate.mark(second, second * 1000)
    for second in range(60, 70):
        rate.mark(second, 60_000 + (second - 60) * 9000)
    assert rate.bytes_per_s(69.0) == pytest.approx(9000)


def test_a_stall_shows() -> None:
    rate = Rate()
    rate.mark(0.0, 0)
    rate.mark(1.0, 1_000_000)
    assert rate.bytes_per_s(4.0) == 250_000
    assert rate.bytes_per_s(1.0 + WINDOW_S + 0.1) == 0.0


def test_marks_seldom_come_on_a_slow_line() -> None:
    rate = Rate()
    for second in range(0, 100, 20):
        rate.mark(second, second * 50_000)
    assert rate.bytes_per_s(80.0) == 50_000
