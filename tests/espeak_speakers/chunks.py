"""What the embedding network sees of a conversation: five seconds, and where in them each speaker is alone."""

import random
from typing import NamedTuple

import torch
from pyannote.audio.models.embedding import WeSpeakerResNet34
from torch import Tensor

from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_speakers.conversations import Conversation
from tests.espeak_speakers.corpus import Corpus

CONVERSATION_S = 20.0
CHUNK_FRAMES = 498
"""Of 10 ms and 25 ms wide: what there is in 5 s."""
SHORTEST_FRAMES = 70
"""Who is alone for less is not taken."""


class Features(NamedTuple):
    """Of a conversation, or a chunk of one."""

    fbank: Tensor
    """float[n_frames, n_mel_bins]"""
    alone: Tensor
    """bool[n_speakers, n_frames]"""
    who: Tensor
    """int64[n_speakers]"""


def conversation_of(model: WeSpeakerResNet34, corpus: Corpus, rng: random.Random) -> Features:
    """Of some speakers; float16 and not centred."""
    who = rng.sample(range(corpus.n_speakers), rng.choice((2, 3, 4)))
    heard = corpus.conversation(rng, who, CONVERSATION_S)
    fbank = model._fbank(torch.tensor(heard.samples)[None] * (1 << 15)).half()
    alone = torch.stack([alone_in(heard, each) for each in range(len(who))])
    return Features(fbank, alone[:, : len(fbank)], torch.tensor(who))


def alone_in(heard: Conversation, speaker: int) -> Tensor:
    """bool[n_frames of 10 ms]: where that one speaks and nobody else."""
    active = torch.zeros(2, len(heard.samples) * 100 // SAMPLE_RATE_HZ, dtype=torch.bool)
    for turn in heard.turns:
        active[int(turn.speaker == speaker), round(turn.start_s * 100) : round(turn.end_s * 100)] = True
    return active[1] & ~active[0]


def chunk_of(conversation: Features, rng: random.Random) -> Features:
    """float32, centred as `compute_fbank` does it, and those who are alone for long enough; maybe nobody."""
    start = rng.randrange(len(conversation.fbank) - CHUNK_FRAMES)
    fbank = conversation.fbank[start : start + CHUNK_FRAMES].float()
    alone = conversation.alone[:, start : start + CHUNK_FRAMES]
    heard = alone.sum(1) > SHORTEST_FRAMES
    return Features(fbank - fbank.mean(0), alone[heard], conversation.who[heard])
