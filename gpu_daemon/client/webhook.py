"""Is a callback the daemon's? By Standard Webhooks 1.0, with the CALLBACK_SECRET that both sides know."""

import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from gpu_daemon.callbacks.signing import secret_bytes, signature_header

TOLERANCE_S = 300
"""What is older was perhaps overheard, and sent again by somebody else."""


class BadSignature(Exception):
    """The callback is not to be believed."""


def verify_callback(
    body: bytes, headers: Mapping[str, str], secret: str, *, now_s: float | None = None
) -> dict[str, Any]:
    """What the callback says. `body`: exactly as it came. Raises BadSignature, and ValueError for what is no secret."""
    said = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp, signatures = (said.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not (webhook_id and signatures and timestamp.isascii() and timestamp.isdecimal()):
        raise BadSignature("the headers webhook-id, webhook-timestamp and webhook-signature are missing")
    if abs((time.time() if now_s is None else now_s) - int(timestamp)) > TOLERANCE_S:
        raise BadSignature("the callback is too old, or one of the clocks is wrong")
    ours = signature_header([secret_bytes(secret)], webhook_id=webhook_id, timestamp_s=int(timestamp), body=body)
    if not any([hmac.compare_digest(ours.encode(), theirs.encode()) for theirs in signatures.split(" ")]):
        raise BadSignature("the callback was not signed with this secret")
    payload: dict[str, Any] = json.loads(body)
    return payload
