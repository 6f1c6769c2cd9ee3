"""How long /health takes while five minutes of speech are transcribed, beside the idle daemon in the same run.

`python -m bench.health_latency`; ends with 1 when the 99th percentile under load is not below PROMISED_P99_MS.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import httpx2

from gpu_daemon.client import WhisperClient
from gpu_daemon.demo.child import DaemonChild
from gpu_daemon.demo.tour import sample_audio
from tests.speech import conversation, write

PROMISED_P99_MS = 50.0
SEED, N_SENTENCES = 500_900, 100
EVERY_S = 0.05
IDLE_REQUESTS = 400


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as directory:
        speech = write(conversation("en", SEED, N_SENTENCES), Path(directory) / "speech.wav", "wav")
        with DaemonChild(Path(directory) / "data", DEFAULT_MODEL="demo") as daemon, WhisperClient(daemon.url) as client:
            client.enable_model("base", False)
            client.wait(client.submit(sample_audio(), model="demo"))  # the runner is up, the model loaded
            left = iter(range(IDLE_REQUESTS))
            idle_p99_ms = say("idle", latencies_ms(daemon.url, lambda: next(left, None) is None))

            ended = threading.Event()
            job_id = client.submit(speech, model="demo")
            watching = threading.Thread(target=_wait, args=(daemon.url, job_id, ended))
            begun = time.monotonic()
            watching.start()
            loaded_p99_ms = say("transcribing", latencies_ms(daemon.url, ended.is_set))
            watching.join()
            job = client.job(job_id)
    speech_s, took_s, devices = job.json["duration"], time.monotonic() - begun, ", ".join(daemon.started["devices"])
    print(f"p99 under load over p99 idle: {loaded_p99_ms / idle_p99_ms:.1f}")
    print(f"{speech_s:.0f} s of speech on {devices}: {job.status} in {took_s:.1f} s")
    return 0 if job.status == "completed" and loaded_p99_ms < PROMISED_P99_MS else 1


def latencies_ms(url: str, enough: Callable[[], bool]) -> list[float]:
    """Asked every EVERY_S, whatever the answers take: one that comes late makes those due meanwhile late as well."""
    latencies_ms = []
    with httpx2.Client(base_url=url, trust_env=False) as http:
        due = time.monotonic()
        while not enough():
            time.sleep(max(0.0, due - time.monotonic()))
            http.get("/health").raise_for_status()
            latencies_ms.append((time.monotonic() - due) * 1000)
            due += EVERY_S
    return latencies_ms


def say(what: str, latencies_ms: list[float]) -> float:
    """The 99th percentile."""
    percentiles = quantiles(latencies_ms, n=100)
    print(
        f"/health, {what:13} p50 {percentiles[49]:6.2f} ms   p99 {percentiles[98]:6.2f} ms"
        f"   worst {max(latencies_ms):6.2f} ms   {len(latencies_ms)} requests"
    )
    return percentiles[98]


def _wait(url: str, job_id: str, ended: threading.Event) -> None:
    try:
        with WhisperClient(url) as client:
            client.wait(job_id)
    finally:
        ended.set()


if __name__ == "__main__":
    sys.exit(main())
