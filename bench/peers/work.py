"""What the workers of Celery and RQ do: as little as our engine that does nothing."""

import os
import time
from pathlib import Path

from celery import Celery

REDIS = os.environ["PEERS_REDIS"]
app = Celery("peers", broker=REDIS, backend=REDIS)
app.conf.result_backend_thread_safe = True  # the front waits for results in threads
app.conf.broker_connection_retry_on_startup = True


@app.task
def transcribe(path: str) -> dict[str, object]:
    return work(path)


def work(path: str) -> dict[str, object]:
    return {"started_at": time.time(), "size_bytes": Path(path).stat().st_size, "text": "hello"}
