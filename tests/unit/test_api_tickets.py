from datetime import UTC, datetime, timedelta

import pytest

from gpu_daemon.api.tickets import LIFE, LONGEST_CHARACTERS, Tickets
from gpu_daemon.jobs.model import JobId

NOW = datetime(2026, 11, 22, 1, 2, 3, 456_000, tzinfo=UTC)
JOB = JobId("0b1e1b1e-0000-4000-8000-000000000001")
SECOND = timedelta(seconds=1)


def test_a_ticket_is_good_for_its_job_and_its_time() -> None:
    tickets = Tickets()
    ticket, expires_at = tickets.issue(JOB, NOW)
    assert NOW + LIFE - SECOND < expires_at <= NOW + LIFE
    assert len(ticket) <= LONGEST_CHARACTERS
    assert tickets.admits(ticket, JOB, NOW)
    assert tickets.admits(ticket, JOB, expires_at - SECOND)
    assert not tickets.admits(ticket, JOB, expires_at)
    assert not tickets.admits(ticket, JobId("another"), NOW)
    assert not Tickets().admits(ticket, JOB, NOW), "the daemon was started anew"


@pytest.mark.parametrize("ticket", ["", ".", "1", "99999999999.", "-1.0", "²." + "0" * 64, "9" * 4000, "9.é"])
def test_what_is_no_ticket_is_none(ticket: str) -> None:
    assert not Tickets().admits(ticket, JOB, NOW)


def test_a_longer_life_is_another_ticket() -> None:
    tickets = Tickets()
    ticket, _ = tickets.issue(JOB, NOW)
    expires_s, _, signature = ticket.partition(".")
    assert not tickets.admits(f"{int(expires_s) + 60}.{signature}", JOB, NOW)
