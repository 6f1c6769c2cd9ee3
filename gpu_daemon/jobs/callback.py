"""What a callback says (pure)."""

import json

from gpu_daemon.jobs.model import JobId


def webhook_id(job_id: JobId) -> str:
    """The same at every try and every redelivery: by it a receiver knows what it has had."""
    return f"msg_{job_id.replace('-', '')}"


def with_delivery(payload: str, delivered_at_ms: int) -> str:
    """`payload`, as it was stored when the job ended, with what will be true if the receiver answers 2xx."""
    callback = json.dumps({"delivered": True, "delivered_at_ms": delivered_at_ms, "error": None})
    return f'{payload[:-1]}, "callback": {callback}}}'
