import pytest

from gpu_daemon.gpu.reading import GpuReading, summarise

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
