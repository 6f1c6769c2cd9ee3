from pathlib import Path

import pytest

from gpu_daemon.errors import DiskFull, TooLarge, Unavailable
from gpu_daemon.scheduling.admission import check_disk, check_queue, check_size
from gpu_daemon.settings import Settings

MB = 1024 * 1024


def settings(**changes: object) -> Settings:
    return Settings(_env_file=None, **changes)  # type: ignore[arg-type]


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    check_size(settings(max_file_size_mb=1), None)
    check_size(settings(max_file_size_mb=1), 1 * MB)
    with pytest.raises(TooLarge, match="1 MB"):
        check_size(settings(max_file_size_mb=1), 3 * MB)


def test_a_full_queue_says_when_to_come_back() -> None:
    check_queue(settings(max_queue=2), 1, None)
    with pytest.raises(Unavailable, match="2 jobs") as full:
        check_queue(settings(max_queue=2), 2, 100.0)
    assert full.value.code == "queue_full"
    assert full.value.retry_after_s == 50


def test_the_disk_keeps_its_reserve(tmp_path: Path) -> None:
    check_disk(settings(data_dir=tmp_path, disk_reserve_mb=0), 1)
    with pytest.raises(DiskFull):
        check_disk(settings(data_dir=tmp_path, disk_reserve_mb=10**9), None)
    with pytest.raises(DiskFull):
        check_disk(settings(data_dir=tmp_path, disk_reserve_mb=0), 10**18)
