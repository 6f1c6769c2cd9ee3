"""`make parity`: all of the corpus through the engine, 1, 8 and 32 files at once, and checkpoints of openai's shapes.

Ends with 1 when anything but the exceptions listed in exceptions.toml differs.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence

import torch

from gpu_daemon.engine.transcribe import create
from tests.parity.case import CASES, RANDOM_CASES, Case
from tests.parity.compare import MEAN_ERROR_TOLERANCE
from tests.parity.corpus import recording
from tests.parity.hear import hear
from tests.parity.judge import Verdict, judge

AT_ONCE = (1, 8, 32)
SEED = 6
COLUMNS = (
    *("at once", "hearings", "windows", "compared exactly", "tokens"),
    *("error rate by chance: theirs, ours", "exceptions", "differences", "CPU s"),
)


def sweep(cases: Sequence[Case], at_once: int, seed: int) -> list[Verdict]:
    """In an order by chance, so that any files, languages and options share a batch."""
    shuffled = random.Random(seed).sample(cases, len(cases))
    engine = create("cpu", 0)
    transcripts = hear(
        engine, [(case.spec, recording(case.recording).samples, case.options) for case in shuffled], at_once
    )
    return [judge(case, transcript) for case, transcript in zip(shuffled, transcripts, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, nargs="+", default=AT_ONCE)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--without-turbo", action="store_true", help="its checkpoint takes 1.6 GB of disk, 7 of memory")
    arguments = parser.parse_args()
    cases = [
        case
        for case in (*CASES, *RANDOM_CASES)
        if arguments.only in str(case) and not (arguments.without_turbo and case.model == "random-turbo")
    ]
    rows, failed = [], False
    by_chance: list[tuple[float, float]] = []
    for at_once in arguments.at_once:
        began_s = time.process_time()
        verdicts = sweep(cases, at_once, SEED + at_once)
        rows.append(_row(at_once, verdicts, time.process_time() - began_s))
        by_chance += [verdict.errors for verdict in verdicts if verdict.errors is not None]
        for verdict in verdicts:
            if verdict.failure is not None:
                print(f"DIFFERENT at {at_once:2} {verdict.case}: {verdict.failure}")
                failed = True
            elif said := verdict.exception or verdict.note:
                print(f"          at {at_once:2} {verdict.case}: {said}")
        sys.stdout.flush()
    print(f"\n{_machine()}\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    print("\n".join(rows))
    theirs, ours = _mean(by_chance)
    if ours > theirs + MEAN_ERROR_TOLERANCE:
        print(f"\nWhere chance has a part, the error rate is {ours:.3f}, the reference's {theirs:.3f}")
        failed = True
    return 1 if failed else 0


def _mean(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    theirs, ours = (sum(pair[index] for pair in errors) / max(1, len(errors)) for index in (0, 1))
    return theirs, ours


def _row(at_once: int, verdicts: Sequence[Verdict], cpu_s: float) -> str:
    errors = [verdict.errors for verdict in verdicts if verdict.errors is not None]
    theirs, ours = _mean(errors)
    counts = [
        at_once,
        len(verdicts),
        sum(verdict.windows for verdict in verdicts),
        sum(verdict.certain_windows for verdict in verdicts),
        sum(verdict.tokens for verdict in verdicts),
        f"{theirs:.3f}, {ours:.3f} ({len(errors)} files)",
        sum(verdict.exception is not None for verdict in verdicts),
        sum(verdict.failure is not None for verdict in verdicts),
        f"{cpu_s:.0f}",
    ]
    return f"| {' | '.join(map(str, counts))} |"


def _machine() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
