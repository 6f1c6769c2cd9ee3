"""Is a transcript what the reference heard?"""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean

from gpu_daemon.transcript.model import Transcript
from tests.parity import reference
from tests.parity.case import Case
from tests.parity.compare import ERROR_TOLERANCE, Difference, difference
from tests.parity.corpus import recording
from tests.parity.golden import error_rate, golden
from tests.parity.margin import margin
from tests.parity.reference import Attempt, Heard

EXCEPTIONS = Path(__file__).with_name("exceptions.toml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    case: Case
    certain_windows: int
    """Those of the reference before chance has a part, or before what differs: each of their tokens was compared."""
    windows: int
    tokens: int
    errors: tuple[float, float] | None
    """Where chance has a part: the reference's error rate, on average, and ours."""
    failure: str | None = None
    exception: str | None = None
    """What differs, and may."""
    note: str | None = None


def judge(case: Case, ours: Transcript) -> Verdict:
    expected = golden(case)
    samples, said = recording(case.recording).samples, recording(case.recording).text
    verdict = _verdict(case, expected.heard, expected.heard.random_from)
    if difference(expected.heard, ours) is not None:
        # Another machine's arithmetic may have made the golden: this machine's reference has the last word.
        heard, attempts = reference.listen(reference.load(case.spec.path), samples, case.options)
        found = difference(heard, ours)
        if found is not None:
            return _differing(case, heard, attempts, found)
        verdict = replace(verdict, note="not as in golden.json.gz, but the reference hears the same on this machine")
    if expected.errors:
        worst, error = max(expected.errors), error_rate(said, ours.text)
        verdict = replace(verdict, errors=(mean(expected.errors), error))
        if error > worst + ERROR_TOLERANCE:
            failure = f"an error rate of {error:.2f}; the reference's at its worst is {worst:.2f}"
            return replace(verdict, failure=failure)
    return verdict


def _verdict(case: Case, heard: Heard, until: int | None) -> Verdict:
    def is_certain(seek: int) -> bool:
        return until is None or seek < until

    return Verdict(
        case=case,
        windows=len(heard.windows),
        certain_windows=sum(is_certain(window.seek) for window in heard.windows),
        tokens=sum(len(segment.tokens) for segment in heard.segments if is_certain(segment.seek)),
        errors=None,
    )


def _differing(case: Case, heard: Heard, attempts: list[Attempt], found: Difference) -> Verdict:
    verdict = _verdict(case, heard, -1 if found.seek is None else found.seek)
    close = _margin(case, attempts, found)
    said = f"{found}" if close is None else f"{found}; the reference prefers its own by {close:.2g}"
    admitted = _exceptions().get((str(case), found.seek))
    if admitted is not None and close is not None and close <= admitted:
        return replace(verdict, exception=said)
    return replace(verdict, failure=said)


def _margin(case: Case, attempts: list[Attempt], found: Difference) -> float | None:
    """None: it is no token that differs, or the search was for more than the next best one."""
    ours = found.ours
    if found.prefix is None or not isinstance(ours, int) or case.options.beam_size is not None:
        return None
    attempt = next(each for each in attempts if each.seek == found.seek)
    n_same = len(found.prefix)
    if tuple(attempt.result.tokens[:n_same]) != found.prefix or len(attempt.result.tokens) <= n_same:
        return None  # a segment that was emptied is among them
    return margin(reference.load(case.spec.path), attempt, n_same, ours)


@cache
def _exceptions() -> dict[tuple[str, int | None], float]:
    listed = tomllib.loads(EXCEPTIONS.read_text())["exception"]
    return {(each["case"], each["seek"]): each["margin"] for each in listed}
