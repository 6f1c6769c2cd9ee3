"""`Prefer: wait=N` (RFC 7240)."""

import re

from fastapi import Request

MAX_WAIT_S = 24 * 3600.0
PREFERENCE = re.compile(r'(?:^|,)\s*wait\s*=\s*(?:(\d{1,6})|"(\d{1,6})")\s*(?=[;,]|$)', re.IGNORECASE)
"""The parameters of a preference come after semicolons; those of others may be called anything."""


def preferred_wait_s(request: Request) -> float | None:
    """The first that is said; what cannot be read is ignored."""
    found = PREFERENCE.search(",".join(request.headers.getlist("prefer")))
    return None if found is None else min(MAX_WAIT_S, float(found[1] or found[2]))


def applied(wait_s: float) -> dict[str, str]:
    return {"Preference-Applied": f"wait={wait_s:.0f}"}
