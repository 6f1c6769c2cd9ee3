"""The results file of bench/gpu.sh: a JSON object in each line, and a summary of tables made of them."""

import argparse
import json
import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import torch


def arguments(description: str | None, *, parts: tuple[str, ...] = ()) -> argparse.Namespace:
    """What all parts take. `--device cpu` is a dry run: tiny dimensions, few rows, and figures that mean nothing."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if parts:
        parser.add_argument("part", choices=parts)
    parser.add_argument("--device", choices=["cuda", "rocm", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--dimensions", nargs="+", help="tiny, base, turbo, large-v3; nano for dry runs")
    parser.add_argument("--files", type=int, nargs="+", help="in flight at once")
    parser.add_argument("--seconds", type=int, help="of each file")
    parser.add_argument("--tokens", type=int, help="in each window of 30 s")
    given = parser.parse_args()
    dry = given.device == "cpu"
    given.dimensions = given.dimensions or (["nano"] if dry else ["turbo", "large-v3"])
    given.files = given.files or ([1, 2] if dry else [1, 8, 32, 64])
    given.seconds = given.seconds or (30 if dry else 240)
    given.tokens = given.tokens or (5 if dry else 100)
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def device_of(given: argparse.Namespace) -> torch.device:
    return torch.device("cpu" if given.device == "cpu" else "cuda:0")


def record(out: Path, part: str, **figures: object) -> None:
    """A row of the table of this part, and of others whose figures have the same names."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps({"part": part, **rounded}) + "\n")
    print(part, rounded, flush=True)


def summary(out: Path) -> str:
    rows: list[dict[str, object]] = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    tables: list[str] = []
    for names, same in groupby(sorted(rows, key=_names), key=_names):
        table: list[Iterable[object]] = [names, ["---"] * len(names), *(row.values() for row in same)]
        tables.append("\n".join(f"| {' | '.join(map(str, row))} |" for row in table))
    return "\n\n".join(tables) + "\n"


def _names(row: dict[str, object]) -> tuple[str, ...]:
    return tuple(row)
