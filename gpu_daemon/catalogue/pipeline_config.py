"""What a pipeline's config.yaml names, and the same with every name leading into its own directory (pure).

Only the lines that name models are read, and only they change: the rest stays as its makers wrote it.
"""

import re
from pathlib import PurePosixPath

CONFIG = "config.yaml"
MODEL = "pytorch_model.bin"
OWN = "$model/"
SUFFIXES = frozenset({".yaml", ".bin", ".npz"})
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SECTION = re.compile(r"^pipeline[ \t]*:[^\n]*\n(?:(?:[ \t][^\n]*)?(?:\n|\Z))*", re.MULTILINE)
NAMING = re.compile(r"^(?P<head>[ \t]+(?P<part>segmentation|embedding|plda)[ \t]*:[ \t]+)(?P<said>\S[^\n]*)$", re.M)


class Unreadable(Exception):
    """It names a model in a way that is not known here; the message says how."""


def belongs(path: PurePosixPath) -> bool:
    """Whether a file is one of those that a pipeline is made of; the others are there to be read by people."""
    return path.suffix in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def references(config: str) -> dict[str, str]:
    """The repository by part, of the parts that are elsewhere on the hub. Raises Unreadable."""
    found = {}
    section = SECTION.search(config)
    for line in NAMING.finditer(section[0] if section else ""):
        said = _said(line)
        if said.startswith(OWN):
            continue
        if HUB_NAME.fullmatch(said) is None:
            raise Unreadable(f"its {line['part']} is {said[:80]!r}, which is neither below it nor the name of a model")
        found[line["part"]] = said
    return found


def with_own_parts(config: str) -> str:
    """Every part that `references` gives is looked for in the pipeline's own directory."""
    elsewhere = references(config)

    def own(line: re.Match[str]) -> str:
        return f"{line['head']}{OWN}{line['part']}" if _said(line) == elsewhere.get(line["part"]) else line[0]

    return SECTION.sub(lambda section: NAMING.sub(own, section[0]), config, count=1)


def _said(line: re.Match[str]) -> str:
    return line["said"].split(" #")[0].strip().strip("'\"")
