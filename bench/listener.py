"""Our engine or openai-whisper at a task of bench/engine.py, in a process of its own.

`python -m bench.listener ours|whisper TASK`, which prints JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper

from gpu_daemon.engine.base import Audio, ModelSpec
from gpu_daemon.engine.transcribe import create
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from tests.parity.hear import hear

Heard = list[tuple[str, int]]
"""Text and number of tokens of each file."""


def ours(task: dict[str, Any]) -> Callable[[list[Audio]], Heard]:
    engine = create(task["device"], 0)
    torch.set_num_threads(task["threads"])
    spec = ModelSpec(name="bench", path=Path(task["checkpoint"]), sha256="0" * 64, official=None)
    options = JobOptions(
        model="bench",
        language=task["language"],
        temperature=tuple(task["temperature"]),
        condition_on_previous_text=task["condition_on_previous_text"],
    )

    def listen(audios: list[Audio]) -> Heard:
        transcripts = hear(engine, [(spec, audio, options) for audio in audios], at_once=len(audios))
        return [(transcript.text, transcript.token_count) for transcript in transcripts]

    return listen


def theirs(task: dict[str, Any]) -> Callable[[list[Audio]], Heard]:
    device = "cpu" if task["device"] == "cpu" else "cuda"
    torch.set_num_threads(task["threads"])
    model = whisper.load_model(task["checkpoint"], device=device)

    def listen(audios: list[Audio]) -> Heard:
        heard = []
        for audio in audios:
            result = whisper.transcribe(
                model,
                audio,
                language=task["language"],
                temperature=tuple(task["temperature"]),
                condition_on_previous_text=task["condition_on_previous_text"],
                fp16=device != "cpu",
            )
            heard.append((result["text"], sum(len(segment["tokens"]) for segment in result["segments"])))
        return heard

    return listen


def peak_rss_bytes() -> int:
    """Of this process alone: what getrusage says begins with its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    which, task = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    with np.load(task["audio"]) as stored:
        files = [stored[name] for name in stored.files]
    listen = {"ours": ours, "whisper": theirs}[which](task)
    on_gpu = task["device"] != "cpu"
    listen([files[0][: whisper.audio.CHUNK_LENGTH * SAMPLE_RATE_HZ]])  # what is done only once, is done before
    began_s = time.perf_counter()
    heard = listen(files)
    if on_gpu:
        torch.cuda.synchronize()
    said = {
        "elapsed_s": time.perf_counter() - began_s,
        "tokens": sum(n_tokens for _, n_tokens in heard),
        "texts": [text for text, _ in heard],
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_rss_bytes(),
        "version": f"openai-whisper {whisper.__version__}, torch {torch.__version__}",
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
