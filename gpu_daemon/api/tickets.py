"""Who may follow a job without a key: a browser's EventSource can send none, and a key in an address ends up in logs.

A ticket may be there: it is good for one job's events, and not for long.
"""

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta

from gpu_daemon.jobs.model import JobId

LIFE = timedelta(hours=1)
LONGEST_CHARACTERS = 100


class Tickets:
    """Signed with a secret that nobody else knows, and that is another after a restart."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(self, job_id: JobId, now: datetime) -> tuple[str, datetime]:
        """The ticket, and until when it is good."""
        expires_s = int((now + LIFE).timestamp())
        return f"{expires_s}.{self._signature(job_id, expires_s)}", datetime.fromtimestamp(expires_s, now.tzinfo)

    def admits(self, ticket: str, job_id: JobId, now: datetime) -> bool:
        said_s, _, signature = ticket.partition(".")
        if len(ticket) > LONGEST_CHARACTERS or not (ticket.isascii() and said_s.isdecimal()):
            return False
        return hmac.compare_digest(signature, self._signature(job_id, int(said_s))) and now.timestamp() < int(said_s)

    def _signature(self, job_id: JobId, expires_s: int) -> str:
        return hmac.new(self._secret, f"{job_id} {expires_s}".encode(), hashlib.sha256).hexdigest()
