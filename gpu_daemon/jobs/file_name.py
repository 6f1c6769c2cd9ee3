"""What a file is called, for people to read (pure)."""

import re
import unicodedata

MAX_NAME_BYTES = 255
NAMELESS = "audio"
# Control characters, the invisible ones that turn the direction of writing among them, and line ends.
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def display_name(name: str) -> str:
    """What a client called its file, for people to read: never used as a path."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    shown = "".join(char for char in last if unicodedata.category(char) not in UNSEEN).strip()
    if len(shown.encode()) > MAX_NAME_BYTES:
        stem, dot, suffix = shown.rpartition(".")
        kept = f"{dot}{suffix}" if 0 < len(suffix.encode()) <= 10 else ""
        shown = (stem if kept else shown).encode()[: MAX_NAME_BYTES - len(kept.encode())].decode(errors="ignore") + kept
    return shown or NAMELESS
