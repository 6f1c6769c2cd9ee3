"""What the doctor says of one thing."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    GOOD = "good"
    NOTE = "note"
    """The daemon works, but not as well as it might, or not as somebody may expect."""
    BAD = "bad"
    """The daemon will not start, or no job will complete."""


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    verdict: Verdict
    message: str
    fix: str | None = None


def good(subject: str, message: str) -> Finding:
    return Finding(subject, Verdict.GOOD, message)


def note(subject: str, message: str, fix: str | None = None) -> Finding:
    return Finding(subject, Verdict.NOTE, message, fix)


def bad(subject: str, message: str, fix: str) -> Finding:
    return Finding(subject, Verdict.BAD, message, fix)
