"""The whole error tree. `code` is stable and seen by clients; only api/errors.py turns a class into an HTTP status.

GpuDaemonError
├── InvalidRequest            the client must change something
│   ├── NotFound
│   ├── Conflict              wrong state, or a reused key with another body
│   ├── TooLarge              too many bytes or too many seconds
│   ├── TooSlow               the upload stalled, or would never end
│   ├── NotMedia              ffmpeg finds nothing to decode
│   ├── Unauthorized
│   └── Forbidden             a page of another site asks
├── Unavailable               try again later; `retry_after_s` says when
│   ├── DiskFull
│   ├── RateLimited           too many requests of this client
│   └── OutcomeUnknown        the database went away while it was writing: what was asked may have happened
├── JobError                  ends one job as `failed`; never an HTTP answer
│   ├── JobCancelled          a stop that was asked for
│   ├── UrlBlocked            its url leads where the daemon may not go
│   ├── FetchFailed           its url gives no file
│   ├── NoRoom                its model does not fit beside those in use
│   ├── PipelineUnavailable   what finds out who speaks is not on this machine
│   ├── PipelineGated         the hub gives it to accounts that have accepted its conditions, and to no other
│   ├── PipelineChanged       it is not what it was when it came first, or not what it should be
│   ├── NotANumber            its model, or the device, computes nonsense
│   ├── DeviceLost            the GPU is of no more use to this process: the runner must end
│   └── RunnerCrashed         the child process died or was killed under the job
├── IllegalTransition         a bug: a job was moved where it may not go
└── StartupError              the daemon cannot start; the message says what to change
    └── SettingsError
"""


class GpuDaemonError(Exception):
    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(GpuDaemonError):
    code = "invalid_value"


class NotFound(InvalidRequest):
    code = "not_found"


class Conflict(InvalidRequest):
    code = "conflict"


class TooLarge(InvalidRequest):
    code = "too_large"


class TooSlow(InvalidRequest):
    code = "upload_too_slow"


class NotMedia(InvalidRequest):
    code = "not_media"


class Unauthorized(InvalidRequest):
    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    code = "forbidden"


class Unavailable(GpuDaemonError):
    code = "unavailable"

    def __init__(
        self, message: str, *, retry_after_s: int = 10, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_s = retry_after_s


class DiskFull(Unavailable):
    code = "disk_full"


class RateLimited(Unavailable):
    code = "rate_limited"


class OutcomeUnknown(Unavailable):
    code = "database_unavailable"


class JobError(GpuDaemonError):
    code = "engine_error"
    retryable = False
    """Another attempt may cure it."""

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        if retryable is not None:
            self.retryable = retryable


class JobCancelled(JobError):
    code = "cancelled"


class UrlBlocked(JobError):
    code = "url_blocked"


class FetchFailed(JobError):
    code = "fetch_failed"


class PipelineUnavailable(JobError):
    code = "pipeline_unavailable"


class PipelineGated(JobError):
    code = "pipeline_gated"


class PipelineChanged(JobError):
    code = "pipeline_changed"


class NotANumber(JobError):
    code = "not_a_number"


class NoRoom(JobError):
    code = "gpu_oom"
    retryable = True


class DeviceLost(JobError):
    code = "gpu_error"
    retryable = True


class RunnerCrashed(JobError):
    code = "runner_crashed"
    retryable = True

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr
        """The last the child printed; for logs, it may name files."""


class IllegalTransition(GpuDaemonError):
    code = "illegal_transition"


class StartupError(GpuDaemonError):
    code = "startup_failed"


class SettingsError(StartupError):
    code = "bad_setting"
