"""Train the decoder alone, on windows that the encoder has heard once: each is seen many times, under a new prompt each time.

    python train_decoder.py STAGE.pt OUT.pt --windows 2400 --minutes 35

The encoder's output is kept in memory (0.4 MB a window), so that a step costs a fraction of one of train.py. This is what
taught the model to live with long prompts: 25 minutes on one core took English from WER 0.09 to 0.002 (seed 600000).
"""
import argparse
import math
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from whisper.audio import log_mel_spectrogram

import train
from train import DIMS, IGNORE, TOK, TOKENIZERS, Corpus, build, save, used_tokens

WINDOW_S = 30
MAX_TOKENS = 216  # of a window without its prompt: with the longest prompt it still fits the decoder
SILENT_SHARE = 0.12
SILENT_WEIGHT, FIRST_WEIGHT = 20, 4  # of the one token that says <|nospeech|>, and of the one that says the language
NO_SPEECH_SCALE = 1.3  # of that token's row in the export: silence was at 0.59, and Whisper's threshold is 0.6; speech stays below 0.001


def heard_windows(model, corpus, count, rng):
    """float16[count, 1500, 128] and the (tokens, how many are not learnt) of each"""
    prompts, train.earlier_text = train.earlier_text, lambda *_: []
    features, sequences = np.zeros((count, DIMS["n_audio_ctx"], DIMS["n_audio_state"]), np.float16), []
    while len(sequences) < count:
        audio, sequence, skip, _ = train.make_window(corpus, rng, WINDOW_S)
        if len(sequence) > MAX_TOKENS:
            continue
        mel = log_mel_spectrogram(audio, padding=WINDOW_S * 16_000)[:, :min(3000, len(audio) // 160)]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            features[len(sequences)] = model.encoder(F.pad(mel, (0, 3000 - mel.shape[1]))[None]).float().half().numpy()[0]
        sequences.append((sequence, skip))
    train.earlier_text = prompts
    return features, sequences


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("stage")
    p.add_argument("out")
    p.add_argument("--corpus", default="train.npz")
    p.add_argument("--windows", type=int, default=2400)
    p.add_argument("--batch", type=int, default=12)
    p.add_argument("--lr", type=float, default=8e-4)
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--seed", type=int, default=5)
    a = p.parse_args()
    rng, corpus = random.Random(a.seed), Corpus(a.corpus)
    used = used_tokens(corpus)
    row = {t: i for i, t in enumerate(used)}
    model, ctc = build(len(used)), nn.Linear(DIMS["n_text_state"], len(used) + 1)
    saved = torch.load(a.stage, weights_only=True)
    model.load_state_dict(saved["model"])
    ctc.load_state_dict(saved["ctc"])
    features, sequences = heard_windows(model, corpus, a.windows, rng)
    silent = [i for i, (sequence, _) in enumerate(sequences) if len(sequence) <= 6]
    language_of = {t.to_language_token(code): code for code, t in TOKENIZERS.items()}
    parameters = list(model.decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=a.lr, weight_decay=.01, betas=(.9, .98))
    began, step, mean = time.time(), 0, None
    while (done := (time.time() - began) / (a.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = a.lr * min(1, (step + 1) / 100) * (.5 * (1 + math.cos(math.pi * done)) * .98 + .02)
        chosen = [rng.choice(silent) if rng.random() < SILENT_SHARE else rng.randrange(len(sequences)) for _ in range(a.batch)]
        examples = []
        for i in chosen:
            sequence, skip = sequences[i]
            code = language_of.get(sequence[1]) or rng.choice(list(TOKENIZERS))
            prompt = train.earlier_text(corpus, rng, code) if rng.random() < .85 else []
            if i in silent:
                sequence, skip = [TOK.sot, TOK.no_speech], 0
            examples.append((prompt + sequence, len(prompt) + skip))
        n = max(len(sequence) for sequence, _ in examples) - 1
        inputs, targets = torch.full((a.batch, n), row[TOK.eot]), torch.full((a.batch, n), IGNORE)
        weight = torch.ones(a.batch, n)
        for b, (sequence, skip) in enumerate(examples):
            rows = torch.tensor([row[t] for t in sequence])
            inputs[b, :len(sequence) - 1], targets[b, :len(sequence) - 1] = rows[:-1], rows[1:]
            targets[b, :skip] = IGNORE
            weight[b, skip] = SILENT_WEIGHT if chosen[b] in silent else FIRST_WEIGHT
        weight = weight * (targets != IGNORE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model.decoder(inputs, torch.from_numpy(features[chosen]).float())
        each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), label_smoothing=.02, ignore_index=IGNORE, reduction="none")
        loss = (each.view(a.batch, n) * weight).sum() / weight.sum()
        mean = loss.item() if mean is None else .97 * mean + .03 * loss.item()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}, {time.time() - began:.0f} s, cross-entropy {mean:.3f}", flush=True)
    save(model, ctc, model.encoder.positional_embedding.clone(), used, a.out)
    path = a.out.replace(".pt", ".whisper.pt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model_state_dict"]["decoder.token_embedding.weight"][TOK.no_speech] *= NO_SPEECH_SCALE
    torch.save(checkpoint, path)


if __name__ == "__main__":
    main()
