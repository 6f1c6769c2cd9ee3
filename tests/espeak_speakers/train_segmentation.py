"""Trains PyanNet to say who of three speaks when within five seconds, two at once at most.

    python -m tests.espeak_speakers.train_segmentation TRAINED.npz DEVELOPMENT.npz OUT.pt MINUTES N_WORKERS [FROM.pt]

With FROM.pt the SincNet, which takes nine tenths of the time, stays as it is there; what it says of a chunk is kept.

The learning rate goes by the clock, so that a busy machine ends in time with fewer steps.
"""

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it would send telemetry

import random
import sys
import time
from collections import deque
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.segmentation import PyanNet
from pyannote.audio.utils.powerset import Powerset
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_speakers.conversations import Conversation
from tests.espeak_speakers.corpus import Corpus

CHUNK_S = 5.0
CONVERSATION_S = 45.0
N_SPEAKERS = 3
BATCH = 32
BATCH_FROZEN = 64
KEPT_CHUNKS = 4000
PEAK_RATE = 1.5e-3
SPECIFICATIONS = Specifications(
    problem=Problem.MONO_LABEL_CLASSIFICATION,
    resolution=Resolution.FRAME,
    duration=CHUNK_S,
    classes=[f"speaker#{i + 1}" for i in range(N_SPEAKERS)],
    powerset_max_classes=2,
    permutation_invariant=True,
)
POWERSET = Powerset(N_SPEAKERS, 2)

Chunk = tuple[Tensor, Tensor]
"""float16[n_samples], and float32[n_frames, N_SPEAKERS]: 1 where one speaks"""


def new_model() -> PyanNet:
    torch.manual_seed(1)
    model = PyanNet(
        lstm={"hidden_size": 96, "num_layers": 2, "dropout": 0.0}, linear={"hidden_size": 64, "num_layers": 2}
    )
    model.specifications = SPECIFICATIONS
    model.build()
    return model


def chunks_of(model: PyanNet, corpus: Corpus, rng: random.Random) -> list[Chunk]:
    """Of one conversation, some."""
    who = rng.sample(range(corpus.n_speakers), rng.choice((1, 2, 2, 3, 3, 4)))
    heard = corpus.new_voices(rng, who, CONVERSATION_S)
    found = (chunk_of(model, heard, rng.uniform(0, CONVERSATION_S - CHUNK_S)) for _ in range(3))
    return [each for each in found if each is not None]


def chunk_of(model: PyanNet, heard: Conversation, start_s: float) -> Chunk | None:
    """None when more than N_SPEAKERS are in it."""
    start = round(start_s * SAMPLE_RATE_HZ)
    samples = heard.samples[start : start + round(CHUNK_S * SAMPLE_RATE_HZ)]
    frames = model.receptive_field
    middle_s = start_s + np.array([frames[i].middle for i in range(model.num_frames(len(samples)))])
    speakers = sorted(
        {each.speaker for each in heard.turns if each.end_s > start_s and each.start_s < start_s + CHUNK_S}
    )
    if len(speakers) > N_SPEAKERS:
        return None
    active = torch.zeros(len(middle_s), N_SPEAKERS)
    for turn in heard.turns:
        if turn.speaker in speakers:
            active[(middle_s >= turn.start_s) & (middle_s < turn.end_s), speakers.index(turn.speaker)] = 1
    return torch.tensor(samples).half(), active


def scores_of(model: PyanNet, outputs: Tensor) -> Tensor:
    """Log-probabilities float32[n, n_frames, n_classes] of what SincNet says, float[n, n_features, n_frames]; as the
    model's own `forward`."""
    outputs, _ = model.lstm(outputs.transpose(1, 2))
    for linear in model.linear:
        outputs = F.leaky_relu(linear(outputs))
    scores: Tensor = model.activation(model.classifier(outputs))
    return scores.float()


def loss_of(scores: Tensor, active: Tensor) -> Tensor:
    """Cross-entropy of the best order of the speakers, of log-probabilities float32[n, n_frames, n_classes]."""
    orders = [active[..., list(order)] for order in permutations(range(N_SPEAKERS))]
    classes = torch.stack([POWERSET.to_powerset(each).argmax(-1) for each in orders], dim=-1)
    missed: Tensor = -scores.gather(-1, classes).mean(1)  # [n, n_orders]
    return missed.min(-1).values.mean()


@torch.no_grad()
def error_rate(model: PyanNet, chunks: list[Chunk]) -> float:
    """Missed, falsely heard and confused frames for each frame of speech, the speakers in their best order."""
    model.eval()
    wrong = spoken = 0.0
    for samples, active in chunks:
        said = POWERSET.to_multilabel(model(samples.float()[None, None]))[0]
        n_active, n_said = active.sum(-1), said.sum(-1)
        right = max(float((said[:, list(order)] * active).sum()) for order in permutations(range(N_SPEAKERS)))
        wrong += float(torch.maximum(n_active, n_said).sum()) - right
        spoken += float(n_active.sum())
    model.train()
    return wrong / spoken


def train(worker: int, shared: dict[str, Tensor], paths: tuple[str, str, str], minutes: float, frozen: bool) -> None:
    """One of several processes that change the same parameters without waiting for each other (Hogwild)."""
    torch.set_num_threads(1)
    torch.manual_seed(worker)
    rng = random.Random(worker)
    trained, development, out = map(Path, paths)
    corpus = Corpus(trained)
    model = new_model()
    model.load_state_dict(shared, assign=True)
    model.sincnet.requires_grad_(not frozen)
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], lr=PEAK_RATE, weight_decay=0.01
    )
    unknown = Corpus(development)
    examined = [each for i in range(12) for each in chunks_of(model, unknown, random.Random(i))]
    chunks: deque[Chunk] = deque(maxlen=KEPT_CHUNKS)

    def add_conversation() -> None:
        for samples, active in chunks_of(model, corpus, rng):
            if frozen:
                with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                    chunks.append((model.sincnet(samples.float()[None, None])[0].half(), active))
            else:
                chunks.append((samples, active))

    batch = BATCH_FROZEN if frozen else BATCH
    while len(chunks) < 3 * batch:
        add_conversation()
    started_at, step, spent = time.monotonic(), 0, 0.0
    while spent < 1:
        spent = (time.monotonic() - started_at) / (minutes * 60)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 40) * max(0.005, min(1.0, (1 - spent) * 1.5))
        for _ in range(3):
            add_conversation()
        inputs, active = zip(*(chunks[rng.randrange(len(chunks))] for _ in range(batch)), strict=True)
        stacked = torch.stack(inputs).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = scores_of(model, stacked if frozen else model.sincnet(stacked[:, None]))
        loss = loss_of(scores, torch.stack(active))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if worker == 0 and step % 10 == 0:
            print(f"{time.monotonic() - started_at:6.0f} s  step {step}  loss {loss:.3f}", flush=True)
        if worker == 0 and (step % 60 == 59 or spent >= 1):
            torch.save(shared, out)
            print(f"error rate {error_rate(model, examined):.4f}", flush=True)
        step += 1


def main() -> None:
    trained, development, out, minutes, n_workers, *before = sys.argv[1:]
    model = new_model()
    if before:
        model.load_state_dict(torch.load(before[0], weights_only=True))
    shared = dict(model.state_dict())
    for tensor in shared.values():
        tensor.share_memory_()
    arguments = (shared, (trained, development, out), float(minutes), bool(before))
    spawn(train, arguments, nprocs=int(n_workers))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
