"""How much a runner's memory grows over 500 short jobs, eight at a time, with the demo model.

`python -m bench.runner_memory`; ends with 1 when it grows by ALLOWED_MB or more. Linux only: reads /proc.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from gpu_daemon.runner.process import Runner
from gpu_daemon.runner.protocol import Run
from tests.runners import CPU, ignore, pcm, run_of, spoken_at

WARM_UP, JOBS, AT_ONCE = 100, 500, 8
ALLOWED_MB = 40.0
"""Were only the samples of each job kept (about 3 s of 64 kB), it would be 60 MB after 300 jobs."""
LAST = 3
"""Of so many readings at the end the least counts: the allocator's come and go by 40 MB, a leak stays."""
LIMIT_S = 60.0


async def main() -> int:
    runner = Runner(CPU, model_idle_s=300, vram_reserve_mb=0)
    await runner.start()
    await runner.wait_ready(LIMIT_S)
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as directory:
        files = []
        for tenths in range(10):
            files.append(Path(directory) / f"{tenths}.s16")
            files[-1].write_bytes(pcm(spoken_at(tenths / 10)))
        begun = time.monotonic()
        try:
            memory_mb = []
            for first in range(0, WARM_UP + JOBS, WARM_UP):
                await _do(runner, files, range(first, first + WARM_UP))
                memory_mb.append(_memory_mb(runner))
        finally:
            await runner.stop()
    growth_mb = min(memory_mb[-LAST:]) - memory_mb[0]
    print(f"{WARM_UP} + {JOBS} jobs, {AT_ONCE} at a time, in {time.monotonic() - begun:.0f} s")
    print(f"memory of the runner, MB after each {WARM_UP}: {', '.join(f'{at_mb:.1f}' for at_mb in memory_mb)}")
    print(f"growth after the first {WARM_UP}: {growth_mb:.1f} MB")
    return 0 if growth_mb < ALLOWED_MB else 1


async def _do(runner: Runner, files: list[Path], numbers: range) -> None:
    chance, left = random.Random(numbers.start), iter(numbers)

    async def one_after_the_other() -> None:
        for number in left:
            await runner.run(_request(chance.choice(files), number), ignore)

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


def _request(audio: Path, number: int) -> Run:
    return run_of(audio, f"job-{number}", word_timestamps=number % 4 == 0, language="en" if number % 2 else None)


def _memory_mb(runner: Runner) -> float:
    pages = int(Path(f"/proc/{runner.pid}/statm").read_text().split()[1])  # resident
    return pages * os.sysconf("SC_PAGE_SIZE") / (1024 * 1024)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
