import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gpu_daemon import faultpoints
from gpu_daemon.errors import SettingsError
from gpu_daemon.faultpoints import EXIT_STATUS, FaultPoint, FaultReached, arm, reach

SCRIPT = """
import sys
import time
from gpu_daemon.faultpoints import FaultPoint, arm, reach
arm(sys.argv[1])
reach(FaultPoint.CLAIMED)
reach(FaultPoint.ENDED)
print("went on", flush=True)
reach(FaultPoint.CLAIMED)
print("to the end", flush=True)
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm(None)


@pytest.mark.parametrize("text", [None, ""])
def test_off_unless_it_is_said(text: str | None) -> None:
    arm(text)
    for point in FaultPoint:
        reach(point)


def test_only_the_point_that_is_named_and_only_once() -> None:
    arm("job.claimed:raise:2")
    reach(FaultPoint.ENDED)
    reach(FaultPoint.CLAIMED)
    with pytest.raises(FaultReached, match=r"job\.claimed"):
        reach(FaultPoint.CLAIMED)
    reach(FaultPoint.CLAIMED)


def test_sleep_holds_whoever_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    arm("job.claimed:sleep")
    reach(FaultPoint.CLAIMED)
    assert slept == [faultpoints.SLEEP_S]


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("job.claimed:kill9", -signal.SIGKILL, ""),
        ("job.claimed:kill9:2", -signal.SIGKILL, "went on\n"),
        ("job.claimed:exit:2", EXIT_STATUS, "went on\n"),
        ("job.claimed:kill9:3", 0, "went on\nto the end\n"),
    ],
)
def test_the_process_ends_there(text: str, status: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, text], stdout=subprocess.PIPE, text=True, env=os.environ, check=False
    )
    assert (ended.returncode, ended.stdout) == (status, said)


@pytest.mark.parametrize("text", ["job.claimed", "nonesuch:raise", "job.claimed:explode", "job.claimed:raise:0", ":"])
def test_what_cannot_be_read_is_refused_with_what_can(text: str) -> None:
    with pytest.raises(SettingsError, match=r"GPU_DAEMON_FAULTPOINT: .*kill9.*job\.claimed"):
        arm(text)
