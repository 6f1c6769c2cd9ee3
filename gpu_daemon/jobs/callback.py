"""What a callback says (pure)."""

import json

from gpu_daemon.jobs.model import Job, JobId


def webhook_id(job_id: JobId) -> str:
    """The same at every try and every redelivery: by it a receiver knows what it has had."""
    return f"msg_{job_id.replace('-', '')}"


def callback_payload(job: Job, result: str | None) -> str:
    """JSON text for a job that has ended, without its member `callback`; `result` is spliced in as it is."""
    said = {
        "job_id": job.id,
        "status": job.state.value,
        "model": job.options.model,
        "language": job.requested_language,
        "queue_time_s": _rounded(job.queue_time_s),
        "processing_time_s": _rounded(job.processing_time_s),
    }
    after = {"error": job.error_message, "error_code": job.error_code, "metadata": job.metadata}
    return f'{json.dumps(said)[:-1]}, "result": {result or "null"}, {json.dumps(after)[1:]}'


def with_delivery(payload: str, delivered_at_ms: int) -> str:
    """`payload` with what will be true if the receiver answers 2xx."""
    callback = json.dumps({"delivered": True, "delivered_at_ms": delivered_at_ms, "error": None})
    return f'{payload[:-1]}, "callback": {callback}}}'


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
