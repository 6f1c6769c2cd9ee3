"""What monitoring counts: Prometheus counters and histograms of what has happened since the daemon started.

What *is* (the queue, the workers, the GPUs) is read when it is asked for, by api/metrics.py. Labels are few and ours:
no job, client or file ever is one.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from gpu_daemon import __version__

PREFIX = "gpu_daemon"
WAIT_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
STAGE_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800)
REALTIME_FACTOR = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 10)
CALLBACK_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)


class Metrics:
    """Counting takes microseconds and never waits."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge("build_info", "Always 1; which daemon this is.", ("version",), PREFIX, registry=self.registry)
        build.labels(__version__).set(1)
        self._jobs = self._counter("jobs", "Jobs that ended.", "outcome")
        self._reused = self._counter("jobs_reused", "Jobs answered with the result of an earlier one.")
        self._retried = self._counter("jobs_retried", "Attempts that failed and were followed by another one.")
        self._wait = self._histogram("job_wait_seconds", "From its arrival to its first attempt.", WAIT_S)
        self._stages = self._histogram("stage_duration_seconds", "Of completed jobs.", STAGE_S, "stage")
        self._audio = self._counter("audio_seconds", "Audio of completed jobs.", "model")
        self._factor = self._histogram(
            "realtime_factor", "Seconds of work for each second of audio, of completed jobs.", REALTIME_FACTOR
        )
        self._quarantines = self._counter("worker_quarantines", "Devices that were given up.", "worker")
        self._callbacks = self._counter("callback_attempts", "Deliveries that were tried.", "outcome")
        self._callback_s = self._histogram("callback_duration_seconds", "Of each try.", CALLBACK_S)
        self._requests = self._counter("http_requests", "Requests that were answered.", "method", "route", "status")
        self._request_s = self._histogram(
            "http_request_duration_seconds", "Until the answer began.", REQUEST_S, "method", "route"
        )
        self._by_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        for outcome in ("completed", "failed", "cancelled"):  # a rate needs the nought that it started from
            self._jobs.labels(outcome)
        for outcome in ("delivered", "retried", "dead"):
            self._callbacks.labels(outcome)

    def job_waited(self, seconds: float) -> None:
        self._wait.observe(seconds)

    def job_ended(self, outcome: str) -> None:
        self._jobs.labels(outcome).inc()

    def job_reused(self) -> None:
        self._reused.inc()

    def job_retried(self) -> None:
        self._retried.inc()

    def job_completed(self, model: str, *, audio_s: float, took_s: float, timings: dict[str, float]) -> None:
        """`took_s`: in this attempt, on the device and off it."""
        for stage, seconds in timings.items():
            self._stages.labels(stage).observe(seconds)
        self._audio.labels(model).inc(audio_s)
        if audio_s > 0:
            self._factor.observe(took_s / audio_s)

    def quarantined(self, worker: int) -> None:
        self._quarantines.labels(str(worker)).inc()

    def called_back(self, outcome: str, seconds: float) -> None:
        """`outcome`: delivered, retried or dead."""
        self._callbacks.labels(outcome).inc()
        self._callback_s.observe(seconds)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` as it is declared, never as it was asked for: there are few of those."""
        known = self._by_request.get((method, route, status))
        if known is None:
            known = (
                self._requests.labels(method, route, str(status)),
                self._request_s.labels(method, route),
            )
            self._by_request[method, route, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, PREFIX, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, PREFIX, buckets=buckets, registry=self.registry)
