"""What processes and their children use of the processor, from /proc: it says more than time on a busy machine."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PARTS = {"runner.child": "runner", "postgres": "PostgreSQL"}
"""Children that are named by what is in their command; the others count as who started them."""
PARENT, OWN_TIMES, TIMES = 1, slice(11, 13), slice(11, 15)
"""Fields of /proc/PID/stat behind the command: user and system time, and those of children that have ended."""


def used_ms(roots: Mapping[int, str]) -> Counter[str]:
    """By part: `roots` are pids and what they are called."""
    stats = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(path)) is not None}
    used: Counter[str] = Counter()
    for pid, (_, _, time_ms) in stats.items():
        if (part := _part(pid, stats, roots)) is not None:
            used[part] += time_ms
    return used


def _part(pid: int, stats: Mapping[int, tuple[int, str, int]], roots: Mapping[int, str]) -> str | None:
    """None: it is none of theirs."""
    if pid in roots:
        return roots[pid]
    if pid not in stats:
        return None
    parent, command, _ = stats[pid]
    part = _part(parent, stats, roots)
    return part and next((name for sign, name in PARTS.items() if sign in command), part)


def _stat(path: Path) -> tuple[int, str, int] | None:
    """Parent, command, time in ms; None: it has ended."""
    try:
        fields = (path / "stat").read_text().rpartition(")")[2].split()
        command = (path / "cmdline").read_text(errors="replace")
    except OSError:
        return None
    return int(fields[PARENT]), command, sum(map(int, fields[TIMES])) * 1000 // TICKS_PER_S


def own_s(pid: int) -> float:
    """Of one process, without its children. Raises OSError when it has ended."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[OWN_TIMES])) / TICKS_PER_S
