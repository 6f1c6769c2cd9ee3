"""Trains the trunk of WeSpeakerResNet34 to tell the speakers of a corpus apart, in five seconds of conversation.

    python -m tests.espeak_speakers.train_embedding TRAINED.npz DEVELOPMENT.npz OUT.pt MINUTES [FROM.pt]

The loss is that of an additive angular margin (AAM-softmax). The learning rate and the margin go by the clock, so that
a busy machine ends in time with fewer steps.
"""

import os

os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it would send telemetry

import random
import sys
import time
from collections import deque
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.espeak_speakers import embedding
from tests.espeak_speakers.chunks import Features, chunk_of, conversation_of
from tests.espeak_speakers.corpus import Corpus

BATCH = 32
N_EXAMINED = 300
KEPT_CONVERSATIONS = 5000
PEAK_RATE = 2e-3
SCALE, MARGIN = 30.0, 0.2


def batch_of(kept: deque[Features], rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chunks float32[BATCH, n_frames, MEL_BINS], and of those heard in them float32[n, n_frames], where they are alone,
    int64[n], in which chunk, and int64[n], who."""
    chunks = [chunk_of(kept[rng.randrange(len(kept))], rng) for _ in range(BATCH)]
    chunk = torch.cat([torch.full_like(each.who, i) for i, each in enumerate(chunks)])
    alone = torch.cat([each.alone for each in chunks]).float()
    return torch.stack([each.fbank for each in chunks]), alone, chunk, torch.cat([each.who for each in chunks])


def pooled(frames: Tensor, masks: Tensor) -> Tensor:
    """As the model's own pooling, but for a deviation that has a gradient at 0: of float32[n, c, bins, n_frames] and
    float32[n, n_frames of 10 ms], float32[n, 2 c bins]."""
    sequences = frames.flatten(1, 2)
    weights = F.interpolate(masks[:, None], size=sequences.shape[-1], mode="nearest")
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    mean = (sequences * weights).sum(-1)
    variance = ((sequences - mean[..., None]).square() * weights).sum(-1)
    return torch.cat([mean, (variance + 1e-4).sqrt()], -1)


class Margin(nn.Module):
    def __init__(self, dimension: int, n_speakers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_speakers, dimension))

    def forward(self, embeddings: Tensor, who: Tensor, margin: float) -> Tensor:
        """The mean cross-entropy of float32[n, dimension]."""
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight)).clamp(-0.9999, 0.9999)
        own = cosines.gather(1, who[:, None])
        harder = (own.acos() + margin).cos()
        return F.cross_entropy(SCALE * cosines.scatter(1, who[:, None], harder), who)


def main() -> None:
    trained, development, out, minutes, *before = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = embedding.new_model()
    if before:
        model.load_state_dict(torch.load(before[0], weights_only=True))
    corpus, unknown = Corpus(Path(trained)), Corpus(Path(development))
    rng = random.Random(1)
    kept = deque((conversation_of(model, corpus, rng) for _ in range(10 * BATCH)), maxlen=KEPT_CONVERSATIONS)
    norm = nn.BatchNorm1d(model.resnet.embed_dim, affine=False)
    margin = Margin(model.resnet.embed_dim, corpus.n_speakers)
    learnt = [*embedding.without_idle_blocks(model).parameters(), *margin.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=PEAK_RATE, weight_decay=0.05)
    started_at, step, spent, mean_loss = time.monotonic(), 0, 0.0, 0.0
    resnet = embedding.without_idle_blocks(model).to(memory_format=torch.channels_last)
    resnet.train()
    while spent < 1:
        spent = (time.monotonic() - started_at) / (float(minutes) * 60)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 100) * max(0.005, min(1.0, (1 - spent) * 1.4))
        kept.append(conversation_of(model, corpus, rng))
        fbank, alone, chunk, who = batch_of(kept, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            frames = resnet.forward_frames(fbank)
        embedded = norm(resnet.seg_1(pooled(frames.float()[chunk], alone)))
        loss = margin(embedded, who, MARGIN * min(1.0, spent / 0.4))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 5.0)
        optimizer.step()
        mean_loss += 0.02 * (loss.item() - mean_loss)
        if step % 50 == 0:
            print(f"{time.monotonic() - started_at:6.0f} s  step {step}  loss {mean_loss:.3f}", flush=True)
        if step % 500 == 499 or spent >= 1:
            resnet.eval()
            torch.save(model.state_dict(), out)
            heard = embedding.centred(embedding.embeddings(model, unknown, N_EXAMINED, seed=4))
            print(f"equal error rate {embedding.equal_error_rate(heard):.1%}", flush=True)
            resnet.train()
        step += 1


if __name__ == "__main__":
    main()
