"""The daemon seen over its wire: `with WhisperClient("http://localhost:8000") as client: client.transcribe_file(path)`.

`AsyncWhisperClient` is the same with `await`.
"""

from gpu_daemon.client.asynchronous import AsyncWhisperClient
from gpu_daemon.client.calls import Retries
from gpu_daemon.client.sync import WhisperClient
from gpu_daemon.client.views import NO_ANSWER, GpuDaemonClientError, JobEvent, JobView, ModelView
from gpu_daemon.client.webhook import BadSignature, verify_callback

__all__ = [
    "NO_ANSWER",
    "AsyncWhisperClient",
    "BadSignature",
    "GpuDaemonClientError",
    "JobEvent",
    "JobView",
    "ModelView",
    "Retries",
    "WhisperClient",
    "verify_callback",
]
