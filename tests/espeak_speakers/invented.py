"""Voices that espeak-ng does not have, to train on: each lies somewhere between two variants that are trained on."""

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

Setting = list[float]
SHIFT = 0.06
"""Of the frequency of a formant, at most."""


def data_of_espeak() -> Path:
    said = subprocess.run(["espeak-ng", "--version"], capture_output=True, check=True, text=True).stdout
    return Path(said.split("Data at:")[1].strip())


def settings_of(variant: Path) -> dict[str, Setting]:
    """What is not a number is left out; `formant 1` and `formant 2` are two settings."""
    found: dict[str, Setting] = {}
    for line in variant.read_text(errors="replace").splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "formant" and values:
            keyword, values = f"formant {values[0]}", values[1:]
        try:
            numbers = [float(each) for each in values]
        except ValueError:
            continue
        if numbers and keyword.isascii() and not keyword.startswith(("/", "#", "fast")):
            found[keyword] = numbers
    return found


def between(rng: random.Random, one: dict[str, Setting], other: dict[str, Setting]) -> dict[str, Setting]:
    invented: dict[str, Setting] = {}
    for keyword in sorted({*one, *other}):
        mine, theirs = one.get(keyword), other.get(keyword)
        if mine is None or theirs is None or keyword == "klatt":
            if chosen := rng.choice((mine, theirs)):
                invented[keyword] = chosen
        else:
            share = rng.random()
            invented[keyword] = [share * a + (1 - share) * b for a, b in zip(mine, theirs, strict=False)]
    for n in range(1, 6):
        formant = invented.setdefault(f"formant {n}", [100.0, 100.0, 100.0])
        formant[:] = [formant[0] * rng.uniform(1 - SHIFT, 1 + SHIFT), *formant[1:]]
    return invented


def invent(directory: Path, parents: Sequence[str], n: int, rng: random.Random) -> list[str]:
    """`n` new variants, as voices are named: espeak-ng has them and `parents` when ESPEAK_DATA_PATH is `directory`."""
    data = data_of_espeak()
    copy = directory / "espeak-ng-data"
    variants = copy / "voices" / "!v"
    variants.mkdir(parents=True)
    for each in data.iterdir():
        if each.name != "voices":
            (copy / each.name).symlink_to(each)
    for name in parents:
        (variants / name).symlink_to(data / "voices" / "!v" / name)
    known = {name: settings_of(variants / name) for name in parents}
    (copy / "new").mkdir()  # not among the others: espeak-ng lists no more than 350
    for i in range(n):
        one, other = rng.sample(parents, 2)
        lines = ["language variant", f"name new{i}"]
        for keyword, values in between(rng, known[one], known[other]).items():
            lines.append(" ".join([keyword, *(str(round(value)) for value in values)]))
        (copy / "new" / str(i)).write_text("\n".join(lines) + "\n")
    return [f"../../new/{i}" for i in range(n)]
