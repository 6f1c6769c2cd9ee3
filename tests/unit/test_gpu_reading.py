import pytest

from gpu_daemon.gpu.reading import GpuReading, divided, summarise

API_KEYS = {
    "index",
    "util_avg_percent",
    "util_max_percent",
    "vram_total_mb",
    "vram_used_avg_mb",
    "vram_used_max_mb",
    "vram_used_percent",
    "vram_used_percent_max",
}


def test_averages_and_maxima() -> None:
    readings = [
        GpuReading(util_percent=30.0, vram_used_mb=2300.0, vram_total_mb=24576.0),
        GpuReading(util_percent=97.0, vram_used_mb=6100.0, vram_total_mb=24576.0),
    ]
    assert summarise(1, readings) == {
        "index": 1,
        "util_avg_percent": 63.5,
        "util_max_percent": 97.0,
        "vram_total_mb": 24576.0,
        "vram_used_avg_mb": 4200.0,
        "vram_used_max_mb": 6100.0,
        "vram_used_percent": 17.1,
        "vram_used_percent_max": 24.8,
    }


@pytest.mark.parametrize("readings", [[], [GpuReading()]])
def test_what_nobody_knows_is_none(readings: list[GpuReading]) -> None:
    summary = summarise(0, readings)
    assert set(summary) == API_KEYS
    assert {value for key, value in summary.items() if key != "index"} == {None}


def test_a_reading_without_figures_pulls_no_average_down() -> None:
    readings = [GpuReading(util_percent=80.0, vram_used_mb=100.0, vram_total_mb=1000.0), GpuReading()]
    summary = summarise(0, readings)
    assert summary["util_avg_percent"] == 80.0
    assert summary["vram_used_percent"] == 10.0


def test_nought_is_a_figure() -> None:
    summary = summarise(0, [GpuReading(util_percent=0.0, vram_used_mb=0.0, vram_total_mb=1000.0)])
    assert summary["util_avg_percent"] == 0.0
    assert summary["vram_used_percent"] == 0.0


def test_memory_is_told_apart_by_whose_it_is() -> None:
    reading = GpuReading(vram_used_mb=1000.0, by_process={10: 600.0, 20: 300.0})
    shared = divided(reading, {10, 11}, sees_all=True)
    assert (shared.vram_ours_mb, shared.vram_others_mb) == (600.0, 400.0)


@pytest.mark.parametrize(
    ("by_process", "ours", "sees_all", "ours_mb"),
    [
        (None, {10}, True, None),
        ({10: None}, {10}, True, None),  # WSL
        ({77: 600.0}, {10}, True, 0.0),
        ({77: 600.0}, {10}, False, None),  # a container: 77 may be our 10
        ({77: 600.0}, set(), False, 0.0),
        ({10: 600.0}, {10}, False, 600.0),
    ],
)
def test_what_is_ours_is_not_guessed(
    by_process: dict[int, float | None] | None, ours: set[int], sees_all: bool, ours_mb: float | None
) -> None:
    reading = divided(GpuReading(vram_used_mb=1000.0, by_process=by_process), ours, sees_all=sees_all)
    assert reading.vram_ours_mb == ours_mb
    assert reading.vram_others_mb == (None if ours_mb is None else 1000.0 - ours_mb)
