"""faster-whisper at a task of bench/engine.py, in a process of its own.

`python -m bench.peers.faster sequential|batched TASK`, which prints JSON.
"""

import json
import sys
import time
from pathlib import Path

import ctranslate2
import faster_whisper
import numpy as np

RATE_HZ = 16_000
WINDOW_S = 30


def main() -> None:
    how, task = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    model = faster_whisper.WhisperModel(
        task["converted"], device=task["device"], compute_type=task["compute_type"], cpu_threads=task["threads"]
    )
    with np.load(task["audio"]) as stored:
        files = [stored[name] for name in stored.files]
    options = {
        "language": task["language"],
        "beam_size": 1,
        "best_of": 1,
        "temperature": task["temperature"],
        "condition_on_previous_text": task["condition_on_previous_text"],
    }

    def sequential(audio: np.ndarray) -> list:
        return list(model.transcribe(audio, **options)[0])

    def batched(audio: np.ndarray) -> list:
        # Cut every 30 s: its own cuts by voice activity would give it other windows than the rest have.
        clips = [
            {"start": start_s, "end": min(start_s + WINDOW_S, len(audio) / RATE_HZ)}
            for start_s in range(0, -(-len(audio) // RATE_HZ), WINDOW_S)
        ]
        pipeline = faster_whisper.BatchedInferencePipeline(model)
        segments, _ = pipeline.transcribe(
            audio, **options, vad_filter=False, clip_timestamps=clips, without_timestamps=False, batch_size=8
        )
        return list(segments)

    listen = {"sequential": sequential, "batched": batched}[how]
    listen(files[0][: RATE_HZ * WINDOW_S])
    began_s = time.perf_counter()
    heard = [listen(audio) for audio in files]
    elapsed_s = time.perf_counter() - began_s
    said = {
        "elapsed_s": elapsed_s,
        "tokens": sum(len(segment.tokens) for segments in heard for segment in segments),
        "texts": ["".join(segment.text for segment in segments) for segments in heard],
        "peak_bytes": peak_bytes(),
        "version": f"faster-whisper {faster_whisper.__version__}, CTranslate2 {ctranslate2.__version__}",
    }
    print(json.dumps(said))


def peak_bytes() -> int:
    """Of this process alone: what getrusage says begins with its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
