"""Voices that the client knows: a name, and some seconds of the voice in a data URL, as OpenAI's API has them."""

import binascii
import hashlib
import re
import unicodedata
from asyncio import Semaphore
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gpu_daemon.audio.probe import probe
from gpu_daemon.audio.sink import FileSink
from gpu_daemon.blocking import blocking
from gpu_daemon.errors import InvalidRequest, NotMedia
from gpu_daemon.jobs.model import KnownSpeaker
from gpu_daemon.scheduling.preparation import voice_name
from gpu_daemon.transcript.formats import NUMBERED_SPEAKER

NAMES, REFERENCES = "known_speaker_names", "known_speaker_references"
FIELDS = frozenset({NAMES, f"{NAMES}[]", REFERENCES, f"{REFERENCES}[]"})
REFERENCE_FIELDS = frozenset({REFERENCES, f"{REFERENCES}[]"})
"""Long ones, where the other fields are short."""
MAX_VOICES = 4
LEAST_S, MOST_S = 2.0, 10.0
SLACK_S = 0.1
"""What encoders add or take away."""
MAX_REFERENCE_CHARACTERS = 3 << 20
"""Ten seconds of stereo at 48 kHz, not compressed, in Base64."""
MAX_NAME_CHARACTERS = 64
DATA_URL = re.compile(r"data:[^,;\s]{0,100}(?:;[^,;\s]{1,100})*;base64,", re.IGNORECASE)
BLANKS = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True, slots=True)
class Voice:
    name: str
    reference: str = field(repr=False)
    """Base64."""


def voices(given: Mapping[str, Sequence[str]], *, complete: bool) -> tuple[Voice, ...]:
    """`complete`: no more fields will come. Raises InvalidRequest."""
    names = [_name(said) for said in _listed(given, NAMES)]
    references = [_base64(said, i) for i, said in enumerate(_listed(given, REFERENCES))]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidRequest(f"{NAMES} has {name!r} twice; give each voice a name of its own", param=NAMES)
    if not complete:
        return ()
    if len(names) != len(references):
        raise InvalidRequest(
            f"there are {len(names)} {NAMES} and {len(references)} {REFERENCES}; give one reference for each name",
            param=NAMES,
        )
    return tuple(Voice(name, reference) for name, reference in zip(names, references, strict=True))


async def kept(
    known: Sequence[Voice], directory: Path, *, reserve_bytes: int, probing: Semaphore
) -> tuple[KnownSpeaker, ...]:
    """Their files, synced, in `directory`, which is made where it is missing, and is the caller's to remove.

    Raises InvalidRequest, NotMedia, DiskFull, Unavailable.
    """
    speakers = []
    for i, voice in enumerate(known):
        target = directory / voice_name(i)
        sha256 = await blocking(partial(_written, voice, i, target, reserve_bytes))
        try:
            async with probing:
                info = await probe(target)
        except NotMedia as error:
            raise NotMedia(f"{REFERENCES}: {_which(i)}: {error.message}", param=REFERENCES) from error
        if info.duration_s is None:
            raise InvalidRequest(f"{REFERENCES}: {_which(i)} does not say how long it is; send WAV", param=REFERENCES)
        if not LEAST_S - SLACK_S <= info.duration_s <= MOST_S + SLACK_S:
            raise InvalidRequest(
                f"{REFERENCES}: {_which(i)} lasts {info.duration_s:.1f} s; "
                f"send {LEAST_S:.0f} to {MOST_S:.0f} s of one voice",
                param=REFERENCES,
            )
        speakers.append(KnownSpeaker(name=voice.name, sha256=sha256))
    return tuple(speakers)


def _written(voice: Voice, number: int, target: Path, reserve_bytes: int) -> str:
    """Its hash. Blocks."""
    try:
        audio = binascii.a2b_base64(voice.reference.translate(BLANKS), strict_mode=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{REFERENCES}: {_which(number)} is not Base64", param=REFERENCES) from None
    sink = FileSink(target, reserve_bytes=reserve_bytes)
    try:
        sink.write(audio)
        sink.sync()
    finally:
        sink.close()
    return hashlib.sha256(audio).hexdigest()


def _listed(given: Mapping[str, Sequence[str]], name: str) -> list[str]:
    listed = [*given.get(name, ()), *given.get(f"{name}[]", ())]
    if len(listed) > MAX_VOICES:
        raise InvalidRequest(f"{name} may be {MAX_VOICES} at most, not {len(listed)}", param=name)
    return listed


def _name(said: str) -> str:
    """Without what cannot be seen, and with single blanks."""
    visible = (char if unicodedata.category(char) not in ("Cc", "Cf", "Cs") else " " for char in said)
    name = unicodedata.normalize("NFC", " ".join("".join(visible).split()))
    if not name or len(name) > MAX_NAME_CHARACTERS:
        raise InvalidRequest(f"a name in {NAMES} has 1 to {MAX_NAME_CHARACTERS} characters", param=NAMES)
    if NUMBERED_SPEAKER.fullmatch(name):
        raise InvalidRequest(f"{name!r} is what speakers are called whom nobody knows; choose another", param=NAMES)
    return name


def _base64(said: str, number: int) -> str:
    start = DATA_URL.match(said)
    if start is None:
        raise InvalidRequest(
            f"{REFERENCES}: {_which(number)} is not a data URL such as data:audio/wav;base64,UklGRg…", param=REFERENCES
        )
    if len(said) > MAX_REFERENCE_CHARACTERS:
        raise InvalidRequest(
            f"{REFERENCES}: {_which(number)} is longer than {MAX_REFERENCE_CHARACTERS >> 20} MiB", param=REFERENCES
        )
    return said[start.end() :]


def _which(number: int) -> str:
    return f"number {number + 1}"
