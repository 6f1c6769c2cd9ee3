"""The diarizer beside pyannote.audio as it is, on the same weights: time, memory, errors, and whether they agree; and
what a long file takes beside the networks.

`python -m bench.diarize` (options: `--help`); Linux only: reads /proc. Each side has a process of its own. Seconds are
those of processors, of all threads and children, which say more than the clock on a busy machine.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from math import log
from pathlib import Path
from typing import Any

import numpy as np

import gpu_daemon
from gpu_daemon.engine.base import Pcm
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import SpeakerTurn
from tests.espeak_speakers.conversations import Conversation, conversation
from tests.espeak_speakers.evaluate import FIRST_SEED
from tests.made_pipeline import spec_of

PIPELINE = Path(gpu_daemon.__file__).parent / "demo" / "pipeline"
SIDES = ("unmodified", "ours")
N_SPEAKERS, N_LOCAL, N_DIMENSIONS = 12, 3, 256
"""Of a long file; of a chunk in pyannote's own pipelines."""
STEPS = (
    "get_segmentations",
    "speaker_count",
    "get_embeddings",
    "clustering",
    "_linkage",
    "reconstruct",
    "to_annotation",
)
"""What `Speakers` does one after the other; the linkage is part of the clustering."""
SAMPLE_S = 0.01


@dataclass
class Measured:
    """Of one side."""

    turns: list[list[SpeakerTurn]]
    total_s: float
    segmentation_s: float
    embedding_s: float
    peak_mb: float
    """More than when the pipeline had just been loaded; mapped files do not count."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each conversation")
    parser.add_argument(
        "--speakers",
        type=int,
        nargs="+",
        default=[2, 3, 4],
        help="one held-out conversation for each number, those that `evaluate` has",
    )
    parser.add_argument(
        "--long", type=int, nargs="*", default=[15, 30, 60, 120], help="minutes of files without networks"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--without-networks", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(_side(given.side, given.pipeline, given.files)))
        return 0
    if given.without_networks:
        print(json.dumps(_without_networks(given.pipeline, given.without_networks)))
        return 0
    same = _compare(given.pipeline, given.speakers, given.minutes)
    if given.long:
        _show_long(given.pipeline, given.long)
    return 0 if same else 1


def _compare(pipeline: Path, speakers: list[int], minutes: float) -> bool:
    before: Counter[int] = Counter()
    talks = []
    for n in speakers:
        talks.append(conversation(FIRST_SEED + 100 * n + before[n], n, minutes * 60))
        before[n] += 1
    audio_s = sum(talk.duration_s for talk in talks)
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-") as directory:
        files = []
        for number, talk in enumerate(talks):
            files.append(Path(directory) / f"{number}.s16")
            files[-1].write_bytes((talk.samples * 32767).astype("<i2").tobytes())
        for side in SIDES:
            said = _child(pipeline, "--side", side, "--files", *map(str, files))
            turns = [[SpeakerTurn.model_validate(turn) for turn in each] for each in said.pop("turns")]
            measured[side] = Measured(turns=turns, **said)
    print(f"{len(talks)} conversations of {minutes:g} min, {', '.join(map(str, speakers))} speakers\n")
    print(f"{'':12}{'CPU s':>9}{'× real time':>13}{'segment':>9}{'embed':>9}{'rest':>9}{'memory MB':>11}{'DER %':>8}")
    for side, it in measured.items():
        rest_s = it.total_s - it.segmentation_s - it.embedding_s
        print(
            f"{side:12}{it.total_s:9.1f}{audio_s / it.total_s:13.1f}{it.segmentation_s:9.1f}{it.embedding_s:9.1f}"
            f"{rest_s:9.1f}{it.peak_mb:11.0f}{100 * _error_rate(talks, it.turns):8.1f}"
        )
    theirs, ours = (measured[side] for side in SIDES)
    print(f"\nembedding: {theirs.embedding_s / ours.embedding_s:.1f} times as fast")
    alike = [_plain(one) == _plain(two) for one, two in zip(theirs.turns, ours.turns, strict=True)]
    print(f"the same turns in {sum(alike)} of {len(alike)} conversations")
    return all(alike)


def _show_long(pipeline: Path, lengths_min: list[int]) -> None:
    print(f"\nFiles of {N_SPEAKERS} speakers, both networks replaced by chance: all that is done beside them, CPU s")
    names = [name.strip("_").removeprefix("get_") for name in STEPS]
    print(
        f"{'minutes':>8}{'embedded':>10}",
        *(f"{name:>{len(name) + 2}}" for name in names),
        f"{'all':>7}{'MB':>6}",
        sep="",
    )
    found = []
    for minutes in lengths_min:
        it = _child(pipeline, "--without-networks", str(minutes))
        found.append([it["embedded"], *(it["steps_s"][step] for step in STEPS), it["total_s"], it["peak_mb"]])
        _show_row(f"{minutes:8}", names, found[-1])
    if len(lengths_min) > 1:
        ratio = log(lengths_min[-1] / lengths_min[0])
        _show_row(
            "growth ^",
            names,
            [log(max(last, 1e-3) / max(first, 1e-3)) / ratio for first, last in zip(found[0], found[-1], strict=True)],
        )


def _show_row(head: str, names: list[str], values: list[float]) -> None:
    embedded, *seconds, total_s, peak_mb = values
    cells = "".join(f"{value:{len(name) + 2}.2f}" for name, value in zip(names, seconds, strict=True))
    print(f"{head}{embedded:10.5g}{cells}{total_s:7.2f}{peak_mb:6.3g}")


def _child(pipeline: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "bench.diarize", "--pipeline", str(pipeline), *arguments]
    said: dict[str, Any] = json.loads(subprocess.check_output(command).splitlines()[-1])
    return said


def _side(side: str, directory: Path, files: list[Path]) -> dict[str, Any]:
    """In the child: all files, one after the other, in one pipeline."""
    from gpu_daemon.engine.diarize import turns_of
    from gpu_daemon.engine.known_voices import in_order

    pipeline, run = _pipeline(side, directory)
    taken = {"get_segmentations": [0.0], "get_embeddings": [0.0]}
    for name, seconds in taken.items():
        pipeline.__dict__[name] = _timed(getattr(pipeline, name), seconds)
    run(np.fromfile(files[0], "<i2", 5 * SAMPLE_RATE_HZ))  # what is made once is made
    for seconds in taken.values():
        seconds[0] = 0.0
    turns, total_s = [], 0.0
    with _peak() as peak_mb:
        for file in files:
            pcm: Pcm = np.memmap(file, "<i2", mode="r")
            began_s = _cpu_s()
            output = run(pcm)
            total_s += _cpu_s() - began_s
            found = turns_of(output.speaker_diarization, len(pcm) / SAMPLE_RATE_HZ)
            called = in_order(found, {})
            turns.append([{**turn.model_dump(), "speaker": called[turn.speaker]} for turn in found])
    return {
        "turns": turns,
        "total_s": total_s,
        "segmentation_s": taken["get_segmentations"][0],
        "embedding_s": taken["get_embeddings"][0],
        "peak_mb": peak_mb[0],
    }


def _pipeline(side: str, directory: Path) -> tuple[Any, Callable[[Pcm], Any]]:
    from gpu_daemon.engine.pipeline_files import PipelineFiles
    from gpu_daemon.engine.speaker_models import SpeakerModels, imported

    imported()
    if side == "ours":
        from gpu_daemon.engine.speakers import Speakers

        ours = Speakers(SpeakerModels(PipelineFiles(spec_of(directory))), "cpu")
        return ours, lambda pcm: ours.find(pcm, lambda fraction: None)
    import torch
    from pyannote.audio import Pipeline

    theirs = Pipeline.from_pretrained(directory)
    assert theirs is not None

    def run(pcm: Pcm) -> Any:
        waveform = torch.from_numpy(pcm.astype(np.float32) / 32768)[None]
        return theirs({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ})

    return theirs, run


def _without_networks(directory: Path, minutes: int) -> dict[str, Any]:
    """In the child."""
    pipeline, run = _pipeline("ours", directory)
    replace_networks(pipeline)
    taken: dict[str, list[float]] = {step: [0.0] for step in STEPS}
    embedded = []
    link = pipeline._linkage

    def counted(embeddings: Any, method: str, metric: str) -> Any:
        embedded.append(len(embeddings))
        return link(embeddings, method, metric)

    pipeline.__dict__["_linkage"] = counted
    for step in STEPS:
        pipeline.__dict__[step] = _timed(getattr(pipeline, step), taken[step])
    with tempfile.TemporaryFile() as file:
        file.truncate(2 * minutes * 60 * SAMPLE_RATE_HZ)
        pcm: Pcm = np.memmap(file, "<i2", mode="r")
        before_s = _cpu_s()
        with _peak() as peak_mb:
            run(pcm)
        total_s = _cpu_s() - before_s
    return {
        "steps_s": {step: seconds for step, (seconds,) in taken.items()},
        "total_s": total_s,
        "peak_mb": peak_mb[0],
        "embedded": max(embedded),
    }


def replace_networks(pipeline: Any) -> None:
    """Who speaks is a matter of chance: two of N_SPEAKERS in each chunk, who stay for some ten chunks. What a voice is
    like changes as it goes on, a little from chunk to chunk, and now and then somebody else is heard in it."""
    import torch

    chance = np.random.default_rng(1)
    voices = chance.standard_normal((N_SPEAKERS, N_DIMENSIONS))
    drift = np.zeros_like(voices)
    who = chance.choice(N_SPEAKERS, N_LOCAL, replace=False)

    def segment(chunks: Pcm) -> torch.Tensor:
        n_frames = pipeline._segmentation.model.num_frames(chunks.shape[1])
        active = np.zeros((len(chunks), n_frames, N_LOCAL), np.float32)
        for chunk in active:
            cut = int(chance.integers(100, n_frames - 100))
            chunk[:cut, 0] = chunk[cut - 20 :, 1] = 1.0
        return torch.from_numpy(active)

    def embed(chunks: Pcm, masks: torch.Tensor) -> torch.Tensor:
        nonlocal who
        embeddings = np.empty((len(chunks), masks.shape[1], N_DIMENSIONS), np.float32)
        for chunk in embeddings:
            if chance.random() < 0.1:
                who = chance.choice(N_SPEAKERS, N_LOCAL, replace=False)
            for local, speaker in enumerate(who):
                drift[speaker] = 0.9 * drift[speaker] + 0.2 * chance.standard_normal(N_DIMENSIONS)
                other = max(0.0, chance.uniform(-10.0, 0.4)) * voices[chance.integers(N_SPEAKERS)]
                chunk[local] = voices[speaker] + drift[speaker] + other + 0.1 * chance.standard_normal(N_DIMENSIONS)
        return torch.from_numpy(embeddings)

    pipeline.__dict__["_segment"], pipeline.__dict__["_embed"] = segment, embed
    pipeline._nobody = voices[0].astype(np.float32)


def _timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    @wraps(work)
    def timed(*given: Any, **more: Any) -> Any:
        began_s = time.process_time()
        try:
            return work(*given, **more)
        finally:
            seconds[0] += time.process_time() - began_s

    return timed


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def _peak() -> Iterator[list[float]]:
    """In it, afterwards: by how many MB the memory that is no file's was more than before, here and in children."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no room for what comes
    ended, before_mb, peak_mb = threading.Event(), _memory_mb(), [0.0]

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            peak_mb[0] = max(peak_mb[0], _memory_mb() - before_mb)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak_mb
    finally:
        ended.set()
        watching.join()


def _memory_mb() -> float:
    own = Path("/proc/self")
    children = "".join((task / "children").read_text() for task in (own / "task").iterdir()).split()
    return sum(map(_anonymous_mb, [own, *(Path("/proc") / pid for pid in children)]))


def _anonymous_mb(process: Path) -> float:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return 0.0  # it has ended
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(fields.get("RssAnon", "0 kB").split()[0]) / 1024


def _plain(turns: list[SpeakerTurn]) -> list[tuple[float, float, str]]:
    return [(turn.start, turn.end, turn.speaker) for turn in turns]


def _error_rate(talks: list[Conversation], found: list[list[SpeakerTurn]]) -> float:
    """Missed, false and confused speech over all speech, without a collar, overlaps included."""
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    rate = DiarizationErrorRate()
    for talk, turns in zip(talks, found, strict=True):
        truth, said = Annotation(), Annotation()
        for number, (start_s, end_s, who, _) in enumerate(talk.turns):
            truth[Segment(start_s, end_s), number] = who
        for number, turn in enumerate(turns):
            said[Segment(turn.start, turn.end), number] = turn.speaker
        rate(truth, said, uem=Timeline([Segment(0, talk.duration_s)]))
    return float(abs(rate))


if __name__ == "__main__":
    sys.exit(main())
