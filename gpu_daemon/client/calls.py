"""What is asked of the daemon, how often, and what is made of its answers; without any I/O (pure).

A call is a generator of steps: whoever runs it sends what came of an `Ask`, and sleeps for a `Pause`. So the two
clients differ in how they wait, and in nothing else.
"""

import json
import random
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from gpu_daemon.client.views import (
    GpuDaemonClientError,
    JobEvent,
    JobView,
    ModelView,
    job_of,
    members,
    models_of,
    refusal,
    unreachable,
)
from gpu_daemon.jobs.retry import backoff_s

WORTH_RETRYING = frozenset({429, 502, 503, 504, 507})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0

OnUpload = Callable[[int, int], None]
"""Told bytes sent, and bytes in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, list[str]] | None = None
    file: Path | None = None
    """Of the form."""
    voices: Mapping[str, Path] = field(default_factory=dict)
    """Of the form: files with some seconds of speakers whose names are known."""
    on_upload: OnUpload | None = None
    once: bool = False
    """A second time it would do something else."""
    following: bool = False
    """Of a job that the daemon will not lose."""


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Outcome = httpx2.Response | httpx2.HTTPError | None
"""None: of a pause."""
Value = TypeVar("Value")
Call = Generator[Ask | Pause, Outcome, Value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    most: int = 3
    most_following: int = 80
    """Of who follows an accepted job: it outlives a restart of the daemon and of its machine. Ten minutes."""
    longest_wait_s: float = 60.0
    """A daemon that says `Retry-After` with more than this is not waited for."""
    told: Callable[[GpuDaemonClientError, float], None] | None = None
    """Before each pause: why, and for how many seconds."""


class Calls:
    """Every method raises GpuDaemonClientError."""

    def __init__(self, base_url: str, retries: Retries) -> None:
        self._base_url = base_url
        self._retries = retries
        self.answered = False
        """The daemon has, to anything so far."""
        self._rng = random.Random()  # noqa: S311 - jitter

    def submit(
        self,
        source: Path | str,
        fields: Mapping[str, object],
        on_upload: OnUpload | None,
        known_speakers: Mapping[str, Path | str] | None = None,
    ) -> Call[str]:
        """One key for all tries: the second finds the job of the first."""
        voices = {name: Path(path) for name, path in (known_speakers or {}).items()}
        form = _form({"diarize": True, **fields} if voices else fields)
        file = None if is_url(source) else Path(source)
        if file is None:
            form["url"] = [str(source)]
        ask = Ask(
            method="POST",
            path="/transcribe",
            form=form,
            file=file,
            voices=voices,
            on_upload=on_upload,
            headers={"Idempotency-Key": str(uuid.uuid4())},
        )
        return str(members((yield from self.asked(ask)), "job_id")["job_id"])

    def job(self, job_id: str, *, following: bool = False) -> Call[JobView]:
        return job_of((yield from self.asked(Ask(method="GET", path=f"/jobs/{job_id}", following=following))))

    def result(self, job_id: str, format: str, options: Mapping[str, object]) -> Call[str]:
        params = {"format": format} | {name: _text(value) for name, value in options.items() if value is not None}
        return (yield from self.asked(Ask(method="GET", path=f"/jobs/{job_id}/result", params=params))).text

    def cancel(self, job_id: str) -> Call[JobView]:
        return job_of((yield from self.asked(Ask(method="POST", path=f"/jobs/{job_id}/cancel", once=True))))

    def models(self) -> Call[list[ModelView]]:
        return models_of((yield from self.asked(Ask(method="GET", path="/models"))))

    def enable_model(self, name: str, enabled: bool) -> Call[None]:
        yield from self.asked(Ask(method="PATCH", path=f"/models/{name}", json={"enabled": enabled}))

    def health(self) -> Call[Mapping[str, Any]]:
        return members((yield from self.asked(Ask(method="GET", path="/health"))), "status")

    def asked(self, ask: Ask) -> Call[httpx2.Response]:
        failures = 0
        while True:
            outcome = yield ask
            assert outcome is not None
            self.answered = self.answered or isinstance(outcome, httpx2.Response)
            if isinstance(outcome, httpx2.Response) and outcome.is_success:
                return outcome
            failures += 1
            pause_s = self.pause_s(outcome, failures, once=ask.once, following=ask.following)
            if pause_s is None:
                raise self.error_of(outcome)
            yield Pause(pause_s)

    def error_of(self, outcome: httpx2.Response | httpx2.HTTPError) -> GpuDaemonClientError:
        if isinstance(outcome, httpx2.Response):
            return refusal(outcome)
        error = unreachable(self._base_url, outcome)
        error.__cause__ = outcome
        return error

    def pause_s(
        self,
        outcome: httpx2.Response | httpx2.HTTPError,
        failures: int,
        *,
        once: bool = False,
        following: bool = False,
    ) -> float | None:
        """Before it is tried again after the `failures`-th failure; None: it is not."""
        pause_s = self._pause_s(outcome, failures, once=once, following=following)
        if pause_s is not None and self._retries.told is not None:
            self._retries.told(self.error_of(outcome), pause_s)
        return pause_s

    def _pause_s(
        self, outcome: httpx2.Response | httpx2.HTTPError, failures: int, *, once: bool, following: bool
    ) -> float | None:
        if failures > (self._retries.most_following if following else self._retries.most):
            return None
        if isinstance(outcome, httpx2.Response):
            if outcome.status_code not in WORTH_RETRYING:
                return None
            asked_s = retry_after_s(outcome.headers.get("retry-after"), datetime.now(UTC))
            if asked_s is not None:
                return asked_s if asked_s <= self._retries.longest_wait_s else None
        elif (once and not isinstance(outcome, httpx2.ConnectError)) or not self.answered:
            return None  # a daemon that has answered before may be restarting; one that never has is not there
        return backoff_s(failures, first_s=FIRST_PAUSE_S, most_s=LONGEST_PAUSE_S, rng=self._rng)


class EventReader:
    """Server-Sent Events, line by line."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def read(self, line: str) -> JobEvent | None:
        if line:
            name, _, value = line.partition(":")
            self._fields[name] = value.removeprefix(" ")
            return None
        said, self._fields = self._fields, {}
        if "data" not in said:
            return None
        return JobEvent(kind=said.get("event", ""), id=int(said.get("id", "0")), json=json.loads(said["data"]))


def is_url(source: Path | str) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def retry_after_s(said: str | None, now: datetime) -> float | None:
    """Seconds, or a date."""
    if said is None:
        return None
    try:
        return float(max(0, int(said)))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - now).total_seconds())
    except (ValueError, TypeError):  # no date, or one without its zone
        return None


def _form(fields: Mapping[str, object]) -> dict[str, list[str]]:
    return {
        name: [_text(each) for each in value] if isinstance(value, list | tuple) else [_text(value)]
        for name, value in fields.items()
        if value is not None
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
