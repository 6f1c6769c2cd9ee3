"""A daemon's answers that are made up: as many GPUs and jobs as a test wants, told as the real one tells them."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.async_api import Page, Route, WebSocketRoute

NOW = datetime.now(UTC)
STAGES = ("loading", "transcribing", "transcribing", "diarizing")
GPU_MB = 143_771.0
Made = dict[str, Any]


def at(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")


def job_id(number: int) -> str:
    return f"{number:08x}-91ce-46e8-a4fb-846ca362479b"


def gpu(index: int, tick: int) -> Made:
    """One of its readings; they go up and down with `tick`."""
    load = 0.5 + 0.45 * math.sin(tick / 5 + index)
    ours = 20_000 + 9_000.0 * (index % 4)
    return {
        "util_percent": round(100 * load, 1),
        "vram_used_mb": ours + 2_000,
        "vram_ours_mb": ours,
        "vram_others_mb": 2_000.0,
        "vram_free_mb": GPU_MB - ours - 2_000,
        "vram_total_mb": GPU_MB,
        "temperature_c": 40.0 + 30 * load,
        "power_w": 150 + 500 * load,
        "power_limit_w": 700.0,
        "clock_sm_mhz": 1980.0,
        "clock_mem_mhz": 3201.0,
        "throttle": ["power cap"] if index == 3 else [],
        "ecc_errors": 0,
        "processes": 1,
        "read_s_ago": 0.4,
    }


def worker(index: int, tick: int) -> Made:
    busy = index != 5
    return {
        "index": index,
        "device": {"kind": "cuda", "index": index, "name": "NVIDIA H200", "uuid": f"GPU-{index:08x}"},
        "state": "busy" if busy else "quarantined",
        "jobs": [
            {
                "id": job_id(1000 + 10 * index + slot) if slot < 2 else None,
                "model": "large-v3",
                "stage": STAGES[(index + slot) % len(STAGES)],
                "progress": (7 * index + 20 * slot + tick) % 100,
                "started_at": at(40),
                "duration_s": 1800.0,
                "speed": 41.3 + index,
                "left_s": 25.0 - (tick % 25),
            }
            for slot in range(1 + index % 3 if busy else 0)
        ],
        "loaded": {"large-v3": 3087.0, "base": 293.4} if busy else {},
        "pid": 4100 + index if busy else None,
        "answered_s_ago": 0.2 if busy else None,
        "restarts": 0 if busy else 3,
        "error": None if busy else "three runners died in ten minutes: CUDA error: an illegal memory access",
    }


def state(gpus: int = 8, queued: int = 500, tick: int = 0) -> Made:
    """The whole document of GET /dashboard/state."""
    workers = [worker(index, tick) for index in range(gpus)]
    running = [job["id"] for worker in workers for job in worker["jobs"] if job["id"]]
    return {
        "health": {"status": "ready", "reason": None},
        "version": "0.1.0",
        "uptime_s": 93_000.0 + tick,
        "paused_by_drain": False,
        "database": {"answers": True, "latency_ms": 0.8},
        "workers": workers,
        "telemetry": {
            "gpus": {str(index): gpu(index, tick) for index in range(gpus)},
            "host": {
                "cpu_percent": 31.0,
                "memory_used_mb": 61_000.0,
                "memory_total_mb": 257_000.0,
                "disk_free_mb": 812_000.0,
                "disk_total_mb": 1_900_000.0,
            },
        },
        "queue": {
            "queued": queued,
            "running": len(running),
            "completed": 18_204 + tick,
            "failed": 12,
            "cancelled": 31,
            "oldest_queued_s": 212.0 + tick,
            "estimated_wait_s": 340.0,
            "queued_ids": [job_id(number) for number in range(min(200, queued))],
            "running_ids": running,
        },
        "models": [
            model("large-v3", "ready", 3_087_371_615),
            model("turbo", "downloading", 1_617_824_864, done_bytes=620_000_000 + 4_000_000 * tick, rate=48_000_000.0),
            model("base", "ready", 145_262_807),
            model("speaker-diarization-community-1", "ready", 32_000_000, source="pipeline"),
            *(model(name, "disabled", None, enabled=False) for name in ("tiny", "small", "medium")),
        ],
        "callbacks": {"pending": 2, "retrying": 1, "delivered": 18_110, "dead": 1},
        "events": [
            event(4, "error", "worker.quarantined", "GPU 5 is quarantined: three runners died in ten minutes", 30),
            event(3, "warning", "callback.retrying", "A callback was answered 503; the next try is in 30 s", 95),
            event(2, "info", "model.downloading", "turbo is being downloaded", 120),
            event(1, "info", "daemon.started", "The daemon has started with 8 workers", 93_000),
        ],
    }


def event(seq: int, level: str, kind: str, text: str, seconds_ago: float) -> Made:
    return {"seq": seq, "at": at(seconds_ago), "level": level, "kind": kind, "text": text}


def model(
    name: str,
    state: str,
    size_bytes: int | None,
    *,
    done_bytes: int = 0,
    rate: float | None = None,
    enabled: bool = True,
    source: str = "whisper",
) -> Made:
    return {
        "name": name,
        "source": source,
        "enabled": enabled,
        "state": state,
        "size_bytes": size_bytes,
        "done_bytes": done_bytes,
        "rate_bytes_per_s": rate,
        "left_s": None if rate is None or size_bytes is None else (size_bytes - done_bytes) / rate,
        "error": None,
        "retry_at": None,
    }


def job(number: int, **instead: Any) -> Made:
    """As GET /jobs lists it."""
    return {
        "job_id": job_id(number),
        "status": "queued",
        "stage": None,
        "progress": 0.0,
        "attempt": 0,
        "queue_position": number,
        "estimated_wait_s": 1.0 * number,
        "model": "large-v3",
        "language": "auto",
        "task": "transcribe",
        "priority": 0,
        "file_name": f"interview-{number:03}.mp3",
        "source_url": None,
        "file_size_bytes": 14_400_000,
        "duration": 1800.0,
        "created_at": at(600 - number),
        "started_at": None,
        "finished_at": None,
        "queue_time_s": None,
        "processing_time_s": None,
        "timings": {},
        "reused": False,
        "metadata": None,
        "error": None,
    } | instead


def history(window: str) -> Made:
    """24 buckets, some of them empty."""
    bucket_s = {"15m": 30, "1h": 120, "24h": 3600}[window]
    return {"window": window, "bucket_s": bucket_s, "buckets": [bucket(n, bucket_s) for n in range(24)]}


def bucket(number: int, bucket_s: int) -> Made:
    load = 0 if number in (3, 4) else 1 + math.sin(number / 3)
    return {
        "at": at(bucket_s * (24 - number)),
        "completed": round(20 * load),
        "failed": 2 if number == 9 else 0,
        "cancelled": 1 if number == 12 else 0,
        "audio_s": 9000.0 * load,
        "wait_p50_s": 2.0 * load if load else None,
        "wait_p95_s": 6.5 * load if load else None,
        "total_p50_s": 9 + 4 * load if load else None,
        "total_p95_s": 17 + 9 * load if load else None,
        "speed": 240.0 * load if load else None,
    }


class Pretend:
    """In front of the page's own origin: it gets made answers, and `tell` sends it another state."""

    def __init__(self, page: Page, first: Made, jobs: list[Made]) -> None:
        self.page = page
        self.state = first
        self.jobs = jobs
        self.seq = 0
        self.sockets: list[WebSocketRoute] = []
        self.asked: list[Any] = []
        """What the page sent on its WebSocket."""
        self.key: str | None = None
        """Without it everything is refused."""
        self.sockets_blocked = False

    async def start(self) -> None:
        await self.page.route(lambda url: urlsplit(url).path.startswith(("/dashboard/", "/jobs")), self._answer)
        await self.page.route_web_socket(lambda url: urlsplit(url).path == "/ws/dashboard", self._open)

    def tell(self, skip: int = 0, **members: Any) -> None:
        """A delta; with `skip`, as if so many had been lost before it."""
        self.state |= members
        self.seq += 1 + skip
        self._send({"type": "delta", "seq": self.seq, "state": members})

    def _send(self, message: Made) -> None:
        for socket in self.sockets[-1:]:
            socket.send(json.dumps(message))

    async def _open(self, socket: WebSocketRoute) -> None:
        if self.sockets_blocked:
            await socket.close()
            return
        self.sockets.append(socket)
        socket.on_message(self._heard)
        if self.key is None:
            self._snapshot()

    def _heard(self, message: str | bytes) -> None:
        said = json.loads(message)
        self.asked.append(said)
        if said["type"] == "snapshot" or said == {"type": "key", "key": self.key}:
            self._snapshot()

    def _snapshot(self) -> None:
        self._send({"type": "snapshot", "seq": self.seq, "state": self.state})

    async def _answer(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.key is not None and route.request.headers.get("authorization") != f"Bearer {self.key}":
            await route.fulfill(status=401, json={"error": {"message": "send your API key"}})
            return
        answers: dict[str, Callable[[], Made]] = {
            "/dashboard/state": lambda: self.state,
            "/dashboard/callbacks": lambda: {"callbacks": list(callbacks())},
            "/dashboard/history": lambda: history(query["window"]),
            "/jobs": lambda: self._page_of_jobs(query),
        }
        if url.path in answers:
            await route.fulfill(json=answers[url.path]())
        else:
            await route.fulfill(json=next(job for job in self.jobs if url.path == f"/jobs/{job['job_id']}"))

    def _page_of_jobs(self, query: dict[str, str]) -> Made:
        fitting = [
            job
            for job in self.jobs
            if query.get("status", job["status"]) == job["status"] and query.get("search", "") in job["file_name"]
        ]
        first, limit = int(query.get("cursor", 0)), int(query["limit"])
        more = first + limit < len(fitting)
        return {"jobs": fitting[first : first + limit], "next_cursor": str(first + limit) if more else None}


def callbacks() -> Iterator[Made]:
    for number, (state, error) in enumerate(
        (("dead", "gave up after 72 h: answered 500"), ("pending", "answered 503"))
    ):
        yield {
            "job_id": job_id(900 + number),
            "state": state,
            "attempts": 11 - 8 * number,
            "next_attempt_at": None if state == "dead" else at(-30),
            "last_error": error,
            "host": "hooks.example.org",
        }


SAID = (
    ("Anna", "Good morning, shall we begin?"),
    ("Anna", "The red window follows the green mountain."),
    ("Boris", "The horse is small and the friend is fast."),
    ("Anna", "Number nine eight nine two."),
)


def talk(number: int, said: Sequence[tuple[str, str]] = SAID, **instead: Any) -> Made:
    """As GET /jobs/ID: done, with who said what."""
    segments: list[Made] = [
        {
            "id": index,
            "start": 4.0 * index,
            "end": 4.0 * index + 3.5,
            "text": f" {text}",
            "confidence": 0.9,
            "speaker": speaker,
            "avg_logprob": -0.1,
            "no_speech_prob": 0.0,
            "compression_ratio": 1.2,
            "temperature": 0.0,
            "seek": 0,
            "tokens": [],
            "words": [],
        }
        for index, (speaker, text) in enumerate(said)
    ]
    speakers = list(dict.fromkeys(speaker for speaker, _ in said))
    result = {
        "text": "".join(segment["text"] for segment in segments),
        "language": "en",
        "language_probability": 0.99,
        "duration": 16.0,
        "model": "large-v3",
        "mode": "accurate",
        "token_count": 48,
        "segments": segments,
        "transcription_segments": segments,
        "diarization_segments": [],
        "diarization": {
            "model": "speaker-diarization-community-1",
            "device": "cuda",
            "speakers": speakers,
            "fallback": None,
            "error": None,
            "error_code": None,
        },
        "quality": {"vad_dropped_s": 0.0, "low_confidence_segments": [2], "repetition_segments": []},
        "queue_time_s": 0.2,
        "processing_time_s": 3.1,
        "timings": {"preparing": 0.3, "transcribing": 2.4, "diarizing": 1.9, "merging": 0.02},
        "gpu": None,
        "reused": False,
    }
    ended = {
        "status": "completed",
        "progress": 100.0,
        "attempt": 1,
        "queue_position": None,
        "started_at": at(20),
        "finished_at": at(17),
        "queue_time_s": 0.2,
        "processing_time_s": 3.1,
        "timings": result["timings"],
        "callback": None,
        "result": result,
    }
    return job(number, **ended | instead)
