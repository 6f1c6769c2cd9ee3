"""The engine beside `whisper.transcribe` and faster-whisper: the same weights, files, threads, one process each.

`make bench-engine`, or `python -m bench.engine --model demo --files 1 8 32`. Prints tables for docs/benchmarks.md.

random-tiny, -base and -turbo have the sizes of openai's models and say --tokens tokens in every window of 30 s, which
is a property of their weights (bench/fixed_length.py): temperature 0, no conditioning, the language named. `demo` hears
real words, with every engine's defaults for the ladder of temperatures and conditioning; it has a word error rate.
faster-whisper gets greedy search as the others do; batched, its windows are cut every 30 s.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper

from bench.fixed_length import fixed_length
from gpu_daemon.demo.child import CHECKOUT
from gpu_daemon.engine.base import Audio
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, TEMPERATURE_LADDER
from tests.runners import DEMO
from tests.speech import Spoken, conversation, word_error_rate

PEERS_PYTHON = CHECKOUT / ".cache" / "bench-peers" / "bin" / "python"
WINDOW_S = 30
SEED = 710_000
OURS, REFERENCE = "gpu_daemon", "whisper.transcribe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    name: str
    command: tuple[str, ...]
    compute_type: str = "float32"
    """Of CTranslate2."""
    devices: tuple[str, ...] = ("cpu", "cuda", "rocm")


CONTENDERS = (
    Contender(name=OURS, command=(sys.executable, "-m", "bench.listener", "ours")),
    Contender(name=REFERENCE, command=(sys.executable, "-m", "bench.listener", "whisper")),
    *(
        Contender(
            name=f"faster-whisper {how}, {compute_type}",
            command=(str(PEERS_PYTHON), "-m", "bench.peers.faster", how),
            compute_type=compute_type,
            devices=devices,
        )
        for compute_type, devices in (("float32", ("cpu",)), ("int8", ("cpu",)), ("float16", ("cuda",)))
        for how in ("sequential", "batched")
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    name: str
    elapsed_s: float
    tokens: int
    peak_bytes: int
    error_rate: float | None
    version: str


def spoken(n_files: int, duration_s: float) -> list[Spoken]:
    """Talks that are all different, the last one as long as the first."""
    return [conversation("en", SEED + number, round(duration_s / 3.0) + 3) for number in range(n_files)]


def export(checkpoint: Path, directory: Path) -> None:
    """What bench/peers/convert.py needs, which has neither torch nor whisper."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    dims = content["dims"]
    tokenizer = whisper.tokenizer.get_tokenizer(True, num_languages=dims["n_vocab"] - 51765 - 1)
    encoding = tokenizer.encoding
    n_special = len(encoding.special_tokens_set)
    specials = [encoding.decode([number]) for number in range(dims["n_vocab"] - n_special, dims["n_vocab"])]
    about = {
        "dims": dims,
        "tokens": [encoding.decode_single_token_bytes(number).hex() for number in range(tokenizer.eot)],
        "special_tokens": specials,
        "config": {
            "suppress_ids": sorted(
                {*tokenizer.non_speech_tokens, tokenizer.transcribe, tokenizer.translate, tokenizer.sot}
                | {tokenizer.sot_prev, tokenizer.sot_lm, tokenizer.no_speech}
            ),
            "suppress_ids_begin": [*tokenizer.encode(" "), tokenizer.eot],
            "lang_ids": list(tokenizer.all_language_tokens),
            "alignment_heads": [
                [layer, head]
                for layer in range(dims["n_text_layer"] // 2, dims["n_text_layer"])
                for head in range(dims["n_text_head"])
            ],
        },
    }
    (directory / "about.json").write_text(json.dumps(about))
    weights = {name: values.float().numpy() for name, values in content["model_state_dict"].items()}
    np.savez(directory / "weights.npz", **weights)


def measured(contender: Contender, task: dict[str, Any], said: list[str] | None, directory: Path) -> Figures:
    path = directory / "task.json"
    path.write_text(json.dumps(task | {"compute_type": contender.compute_type}))
    threads = {name: str(task["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    ran = subprocess.run(
        [*contender.command, str(path)],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)} | threads,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    figures = json.loads(ran.stdout.splitlines()[-1])
    texts = figures.pop("texts")
    error_rate = None if said is None else word_error_rate(" ".join(said), " ".join(texts))
    return Figures(name=contender.name, error_rate=error_rate, **figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", choices=["random-tiny", "random-base", "random-turbo", "demo"], default="random-base"
    )
    parser.add_argument("--files", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=int, default=60, help="of each file")
    parser.add_argument("--tokens", type=int, default=100, help="in each window; not of demo")
    parser.add_argument("--device", choices=["cpu", "cuda", "rocm"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="contenders whose name has this in it")
    arguments = parser.parse_args()
    if not PEERS_PYTHON.exists():
        print("the peers' packages are missing: make bench-engine installs them", file=sys.stderr)
        return 2
    contenders = [each for each in CONTENDERS if arguments.device in each.devices and arguments.only in each.name]
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-bench-", dir=CHECKOUT / ".cache") as name:
        return _bench(arguments, contenders, Path(name))


def _bench(arguments: argparse.Namespace, contenders: list[Contender], directory: Path) -> int:
    is_demo = arguments.model == "demo"
    checkpoint = DEMO if is_demo else directory / "checkpoint.pt"
    if not is_demo:
        fixed_length(arguments.model, arguments.tokens, checkpoint)
    export(checkpoint, directory)
    subprocess.run(
        [PEERS_PYTHON, "-m", "bench.peers.convert", directory, directory / "converted"],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        check=True,
    )
    n_samples = arguments.seconds * SAMPLE_RATE_HZ
    print(_machine(arguments))
    for n_files in arguments.files:
        talks = spoken(n_files, arguments.seconds)
        # Only whole windows say so many tokens; what is real is heard to its end.
        audios = [talk.samples if is_demo else _of_length(talk.samples, n_samples) for talk in talks]
        np.savez(directory / "audio.npz", *audios)
        task = {
            "checkpoint": str(checkpoint),
            "converted": str(directory / "converted"),
            "audio": str(directory / "audio.npz"),
            "device": arguments.device,
            "threads": arguments.threads,
            "language": "en",
            "temperature": TEMPERATURE_LADDER if is_demo else (0.0,),
            "condition_on_previous_text": is_demo,
        }
        said = [talk.text for talk in talks] if is_demo else None
        audio_s = sum(map(len, audios)) / SAMPLE_RATE_HZ
        figures = [measured(contender, task, said, directory) for contender in contenders]
        _say(n_files, audio_s, figures)
        n_windows = n_files * -(-arguments.seconds // WINDOW_S)
        for each in figures:
            if not is_demo and each.tokens != n_windows * arguments.tokens:
                print(f"{each.name} said {each.tokens} tokens, not {n_windows * arguments.tokens}", file=sys.stderr)
                return 1
    return 0


def _of_length(samples: Audio, n_samples: int) -> Audio:
    whole: Audio = np.zeros(n_samples, np.float32)
    whole[: min(n_samples, len(samples))] = samples[:n_samples]
    return whole


def _machine(arguments: argparse.Namespace) -> str:
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(": ")[2]
            break
    device = cpu if arguments.device == "cpu" else torch.cuda.get_device_name()
    tokens = "" if arguments.model == "demo" else f", {arguments.tokens} tokens in each window"
    return (
        f"{device}, {arguments.threads} threads, Python {platform.python_version()}; model {arguments.model}, "
        f"files of {arguments.seconds} s{tokens}\n`python -m bench.engine {' '.join(sys.argv[1:])}`"
    )


def _say(n_files: int, audio_s: float, figures: list[Figures]) -> None:
    """Ratios: how many times longer than ours, and how many times faster than the reference."""
    elapsed_s = {each.name: each.elapsed_s for each in figures}
    print(f"\n{n_files} file{'s' if n_files > 1 else ''}, {audio_s:.0f} s:\n")
    print("| | s | real-time factor | windows/s | tokens/s | peak MiB | × reference | gpu_daemon is | WER |")
    print("|---|---|---|---|---|---|---|---|---|")
    for each in figures:
        reference_s, our_s = (elapsed_s.get(name) for name in (REFERENCE, OURS))
        columns = (
            each.name,
            f"{each.elapsed_s:.1f}",
            f"{audio_s / each.elapsed_s:.1f}",
            f"{audio_s / WINDOW_S / each.elapsed_s:.2f}",
            f"{each.tokens / each.elapsed_s:.0f}",
            f"{each.peak_bytes / 2**20:.0f}",
            "" if reference_s is None else f"{reference_s / each.elapsed_s:.2f}",
            "" if our_s is None or each.name == OURS else f"{each.elapsed_s / our_s:.2f} × as fast",
            "" if each.error_rate is None else f"{each.error_rate:.3f}",
        )
        print(f"| {' | '.join(columns)} |")
    print("\n" + "; ".join(sorted({each.version for each in figures})), flush=True)


if __name__ == "__main__":
    sys.exit(main())
