"""`make demo`: a real daemon, a real conversation, a real callback, and the time of each stage."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from gpu_daemon import clock
from gpu_daemon.client import JobView, WhisperClient
from gpu_daemon.demo.child import CHECKOUT, DaemonChild
from gpu_daemon.demo.error_rate import word_error_rate
from gpu_daemon.demo.receiver import CallbackReceiver
from gpu_daemon.terminal import JobDisplay

MODEL = "demo"
TRUTH = Path(__file__).with_name("sample.txt")
"""A line for each turn: two people, one after the other."""
CALLBACK_TIMEOUT_S = 30.0
SHOWN_SEGMENTS = 1

out = Console(highlight=False, soft_wrap=True, markup=False)


def sample_audio() -> Path:
    """Synthetic speech that the demo model knows; TRUTH is what it says."""
    [path] = [path for path in TRUTH.parent.glob("sample.*") if path != TRUTH]
    return path


def show(data_dir: Path | None = None) -> bool:
    """True only if every word and speaker is right and the callback came. Raises StartupError, GpuDaemonClientError."""
    begun = clock.monotonic()
    with _usual_data_dir() if data_dir is None else nullcontext(data_dir.absolute()) as directory:
        good = _tour(directory)
    out.print(f"\nThe daemon has stopped; all of it took {clock.monotonic() - begun:.1f} s.")
    return good


def _tour(data_dir: Path) -> bool:
    sample = sample_audio()
    out.print(f"Starting a daemon; its data is in {data_dir}")
    begun = clock.monotonic()
    with (
        DaemonChild(
            data_dir, DEFAULT_MODEL=MODEL, DIARIZATION_MODEL=MODEL, CALLBACK_ALLOWED_NETWORKS="loopback"
        ) as daemon,
        CallbackReceiver() as receiver,
    ):
        start_s = clock.monotonic() - begun
        _introduce(daemon.started)
        with WhisperClient(daemon.url) as client:
            _only_demo(client)
            sent = clock.monotonic()
            job, accepted_s = _watch(client, sample, receiver.url)
            payload = receiver.next(CALLBACK_TIMEOUT_S) if job.status == "completed" else None
            client_s = clock.monotonic() - sent
        if payload is None:
            reason = job.error_message or f"no callback came within {CALLBACK_TIMEOUT_S:.0f} s"
            out.print(f"\nThe job is {job.status}: {reason}. The daemon's last lines:\n{daemon.last_words()}")
            return False
    return _report(payload, {"start of the daemon": start_s, "upload, until accepted": accepted_s}, client_s)


def _introduce(started: Mapping[str, Any]) -> None:
    out.print(f"It listens at {started['url']}, works on {', '.join(started['devices'])}")
    out.print(f"and keeps its jobs in the {started['database']} PostgreSQL.\n")


def _only_demo(client: WhisperClient) -> None:
    """A new daemon begins to download `base`; the demo needs only the model that comes with the checkout."""
    for model in client.models():
        if model.enabled and model.name != MODEL:
            client.enable_model(model.name, False)


def _watch(client: WhisperClient, sample: Path, callback_url: str) -> tuple[JobView, float]:
    """The job when it has ended, and the seconds until it was accepted."""
    begun = clock.monotonic()
    with JobDisplay(out) as display:
        job_id = client.submit(
            sample,
            model=MODEL,
            diarize=True,
            callback_url=callback_url,
            metadata={"sent_by": "make demo"},
            reuse_result=False,  # of the demo before this one
            on_upload_progress=lambda sent, size: display.upload(sample.name, sent, size),
        )
        accepted_s = clock.monotonic() - begun
        return client.wait(job_id, lambda job: display.job(sample.name, job)), accepted_s


def _report(payload: Mapping[str, Any], times: dict[str, float], client_s: float) -> bool:
    result = payload["result"]
    error_rate = word_error_rate(TRUTH.read_text(encoding="utf-8"), result["text"])
    out.print(f"\nTranscript ({result['duration']:.1f} s of speech, language {result['language']}):")
    turns = _turns(result)
    for speaker, said in turns:
        out.print(f"{speaker}: {said}", style="bold")
    out.print(f"Word error rate against {TRUTH.name}: {error_rate:.3f}")
    wrong = _wrong_turns(turns, TRUTH.read_text(encoding="utf-8").splitlines())
    out.print(f"Turns with the wrong speaker: {wrong} of {len(turns)}")
    out.print("\nThe callback as it was received, with most segments left out:")
    out.print_json(json.dumps(_shortened(payload), ensure_ascii=False))
    out.print("\nSeconds:")
    stages = {"waiting for a worker": result["queue_time_s"], **result["timings"]}
    for name, seconds in (times | stages | {"from sending the file to its callback": client_s}).items():
        out.print(f"{seconds:8.2f}  {name}")
    return error_rate == 0 and wrong == 0


def _turns(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who says what, until somebody else does."""
    by_speaker = groupby(result["segments"], key=lambda segment: segment["speaker"])
    return [(speaker, "".join(segment["text"] for segment in said).strip()) for speaker, said in by_speaker]


def _wrong_turns(turns: Sequence[tuple[str | None, str]], truth: Sequence[str]) -> int:
    """Of turns that should be those of `truth`, said by two in turn."""
    expected = zip(cycle(dict.fromkeys(speaker for speaker, _ in turns)), truth, strict=False)
    right = sum(turn == should for turn, should in zip(turns, expected, strict=False))
    return max(len(turns), len(truth)) - right


def _shortened(payload: Mapping[str, Any]) -> dict[str, Any]:
    result = payload["result"]
    shown = {name: _first(result[name]) for name in ("segments", "transcription_segments", "diarization_segments")}
    return {**payload, "result": result | shown}


def _first(segments: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Without the long lists in them."""
    first = [
        {name: f"… {len(value)} of them" if isinstance(value, list) else value for name, value in segment.items()}
        for segment in segments[:SHOWN_SEGMENTS]
    ]
    more = len(segments) - len(first)
    return [*first, f"… and {more} more"] if more else first


@contextmanager
def _usual_data_dir() -> Iterator[Path]:
    """In the checkout, so that the second demo starts warm; where it cannot be written, a temporary one."""
    if os.access(CHECKOUT, os.W_OK):
        yield CHECKOUT / "demo-data"
    else:
        with tempfile.TemporaryDirectory(prefix="gpu_daemon-demo-") as directory:
            yield Path(directory)
