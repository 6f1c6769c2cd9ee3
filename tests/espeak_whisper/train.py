"""Train a small Whisper on speech made by espeak-ng, and export it as an openai-whisper checkpoint.

    python corpus.py 9000 train.npz 1000
    python train.py --window 4  --batch 24 --lr 1.5e-3 --minutes 35                  --out stage1.pt
    python train.py --window 10 --batch 16 --lr 1e-3   --minutes 25 --init stage1.pt --out stage2.pt
    python train.py --window 30 --batch 6  --lr 8e-4   --minutes 90 --init stage2.pt --out stage3.pt

Then train_decoder.py. The checkpoint in the project came of more rounds, the last of them on one core from an earlier
resume.pt: corpus.py 16000 train.npz 20000; --window 10 --batch 12 --lr 6e-4 --minutes 12; --window 30 --batch 6 --lr 5e-4
--minutes 18; train_decoder.py --windows 4000 --minutes 30. It brought the telephone: WER 0.48 before, 0.00 after.

Then train_decoder.py. The checkpoint in the project came of more rounds, the last of them on one core from an earlier
resume.pt: corpus.py 16000 train.npz 20000; --window 10 --batch 12 --lr 6e-4 --minutes 12; --window 30 --batch 6 --lr 5e-4
--minutes 18; train_decoder.py --windows 4000 --minutes 30, and once more with --windows 2800 --minutes 13 --lr 5e-4. They
brought the telephone: WER 0.48 before, 0.00 after.

Minutes are for two CPU cores. Each stage writes OUT (to go on from) and OUT with the suffix .whisper.pt (the checkpoint).
Windows grow from 4 to 30 s because cross-attention learns to follow the speech far faster on short ones; a CTC loss on the
encoder, used in training only, helps it along. Only the tokens that the corpus uses are trained; in the export every other
row of the embedding is one shared vector that never wins.
"""
import argparse
import math
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import resample_poly
from torch import nn
from whisper.audio import log_mel_spectrogram
from whisper.model import ModelDimensions, Whisper, sinusoids
from whisper.tokenizer import get_tokenizer

SAMPLE_RATE = 16_000
FRAMES_PER_S = 100
DIMS = dict(n_mels=80, n_audio_ctx=1500, n_audio_state=128, n_audio_head=4, n_audio_layer=4,
            n_vocab=51865, n_text_ctx=448, n_text_state=128, n_text_head=4, n_text_layer=3)
TOKENIZERS = {code: get_tokenizer(True, language=code, task="transcribe") for code in ("en", "fr", "ru")}
TOK = TOKENIZERS["en"]
N_TIMESTAMPS = 1501
IGNORE = -100
MAX_INITIAL_S = 1.0  # max_initial_timestamp of whisper: of a speech that starts later this is the nearest time it lets be said


class Corpus:
    """Utterances from corpus.py: int16 audio end to end, with language and text of each."""

    def __init__(self, path):
        z = np.load(path)
        self.audio, self.offset = z["audio"], np.concatenate([[0], np.cumsum(z["lens"])])
        self.tokens = [TOK.encode(" " + t) for t in z["text"]]
        self.of_language = {code: [i for i, x in enumerate(z["lang"]) if x == code] for code in TOKENIZERS}

    def utterance(self, i):
        """float32[n_samples] in -1..1"""
        return self.audio[self.offset[i]:self.offset[i + 1]].astype(np.float32) / 32768


def used_tokens(corpus):
    used = {t for ids in corpus.tokens for t in ids}
    used |= {TOK.eot, TOK.sot, TOK.transcribe, TOK.sot_prev, TOK.no_speech, TOK.no_timestamps}
    used |= {t.to_language_token(code) for code, t in TOKENIZERS.items()}
    return sorted(used | set(range(TOK.timestamp_begin, TOK.timestamp_begin + N_TIMESTAMPS)))


def stamp(t):
    return TOK.timestamp_begin + min(N_TIMESTAMPS - 1, round(t / 0.02))


def earlier_text(corpus, rng, code):
    """A prompt as whisper.transcribe hands it on: earlier segments with their timestamps (plain text one time in five), 223 tokens at most."""
    timed, t, tokens = rng.random() < .8, rng.uniform(0, 1), []
    for _ in range(rng.choice([rng.randint(1, 14), 24, 24])):  # from the third window on a real prompt is always cut at 223 tokens
        i = rng.choice(corpus.of_language[code])
        duration = (corpus.offset[i + 1] - corpus.offset[i]) / SAMPLE_RATE
        t = rng.uniform(0, 1) if t + duration > 30 else t
        tokens += [stamp(t), *corpus.tokens[i], stamp(t + duration)] if timed else corpus.tokens[i]
        t += duration + rng.uniform(.1, 1.2)
    return [TOK.sot_prev] + tokens[-223:]


def telephone(audio, rng):
    """As it comes out of a telephone: 8 kHz, eight bits by the mu-law (ITU-T G.711) in two of three."""
    narrow = resample_poly(audio, 1, 2).clip(-1, 1)
    if rng.random() < .67:
        compressed = np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256)
        compressed = np.round(compressed * 127) / 127
        narrow = np.sign(compressed) * np.expm1(np.abs(compressed) * np.log(256)) / 255
    return resample_poly(narrow, 2, 1).astype(np.float32)[:len(audio)]


def make_window(corpus, rng, window_s):
    """One training example as Whisper sees it.

    Returns audio float32[n <= window_s * 16000] (shorter: the file ended there), the token sequence, how many of its first
    tokens are prompt (not learnt), and the text tokens for CTC (None where the audio holds speech without text).
    """
    n = int(window_s * SAMPLE_RATE)
    audio, segments, cut_start = np.zeros(n, np.float32), [], None
    code = rng.choice(["en", "en", "fr", "ru"])
    if rng.random() > 0.05:
        t = rng.choice([0.0, rng.uniform(0, .4), rng.uniform(0, 1.5)])
        if rng.random() < .1:  # silence before the first word
            t = rng.uniform(1.5, window_s * .7)
        left = rng.choice([1, 2, 3, 99]) if window_s <= 10 else rng.choice([1, 2, 99, 99, 99, 99, 99])
        while left > 0:
            i = rng.choice(corpus.of_language[code])
            speech = corpus.utterance(i)
            start, end = int(t * SAMPLE_RATE), int(t * SAMPLE_RATE) + len(speech)
            if end > n:  # runs over the window's end: only its start time is said, as in Whisper's training
                if start + 1600 < n and (segments or window_s >= 30):
                    audio[start:n] += speech[:n - start]
                    cut_start = t
                break
            audio[start:end] += speech * rng.uniform(.5, 1.0)
            segments.append((t, end / SAMPLE_RATE, i))
            left -= 1
            t = end / SAMPLE_RATE + rng.choice([rng.uniform(.1, .5), rng.uniform(.3, 1.2), rng.uniform(1, 4 if window_s >= 30 else 1.5), rng.uniform(.1, .5)])
    end = n
    if cut_start is None and rng.random() > .3:
        last = segments[-1][1] if segments else rng.uniform(.5, 20)
        end = min(n, int((last + rng.choice([0, .1, rng.uniform(0, 3)])) * SAMPLE_RATE))
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(n).astype(np.float32)
    audio = (audio * rng.uniform(.2, 1.0) + noise * rng.choice([0, 0, 1e-4, 1e-3, 3e-3]))[:end]
    if rng.random() < .3:
        audio = telephone(audio, rng)

    prompt = earlier_text(corpus, rng, code) if rng.random() < .85 else []
    head = [TOK.sot, TOKENIZERS[code].to_language_token(code), TOK.transcribe]
    text = [t for *_, i in segments for t in corpus.tokens[i]]
    if not segments and cut_start is None:
        if rng.random() < .5:
            return audio, prompt + [TOK.sot, TOK.no_speech], len(prompt), []
        return audio, prompt + head + [TOK.no_timestamps, TOK.eot], len(prompt) + 2, []
    if cut_start is None and rng.random() < .3:
        body = [TOK.no_timestamps] + text
    else:
        body = [t for a, b, i in segments for t in (stamp(a), *corpus.tokens[i], stamp(b))]
        body += [] if cut_start is None else [stamp(cut_start)]
        body[0] = min(body[0], stamp(MAX_INITIAL_S))
    return audio, prompt + head + body + [TOK.eot], len(prompt), None if cut_start is not None else text


def make_batch(corpus, rng, size, window_s, row):
    """mel float32[size, 80, frames], inputs int64[size, n], targets int64[size, n], CTC targets"""
    examples = []
    while len(examples) < size:
        example = make_window(corpus, rng, window_s)
        if len(example[1]) <= 440:
            examples.append(example)
    frames = int(window_s * FRAMES_PER_S)
    mels = []
    for audio, *_ in examples:  # as whisper.transcribe does: silence after the file for the transform, then 0.0 in log-mel space up to the window
        mel = log_mel_spectrogram(audio, padding=int(window_s * SAMPLE_RATE))[:, :min(frames, len(audio) // 160)]
        mels.append(F.pad(mel, (0, frames - mel.shape[1])))
    n = max(len(seq) for _, seq, *_ in examples) - 1
    inputs, targets = torch.full((size, n), row[TOK.eot]), torch.full((size, n), IGNORE)
    for b, (_, seq, skip, _) in enumerate(examples):
        rows = torch.tensor([row[t] for t in seq])
        inputs[b, :len(seq) - 1], targets[b, :len(seq) - 1] = rows[:-1], rows[1:]
        targets[b, :skip] = IGNORE
    return torch.stack(mels), inputs, targets, [None if c is None else [row[t] for t in c] for *_, c in examples]


class TokenTable(nn.Module):
    """The decoder's embedding in training: float32[n_text + N_TIMESTAMPS + 1, n_state].

    A timestamp's row is a learnt mix of the encoder's own positional code for that frame (both tick every 20 ms), so the 1501 rows
    share what they learn, and saying a time is copying a position. The last row stands for every token the corpus does not use.
    """

    def __init__(self, n_text, n_state):
        super().__init__()
        self.text = nn.Parameter(torch.randn(n_text, n_state) * .05)
        self.mix = nn.Parameter(torch.eye(n_state) * .1)
        self.unused = nn.Parameter(torch.randn(1, n_state) * .05)
        self.register_buffer("code", sinusoids(N_TIMESTAMPS, n_state), persistent=False)

    @property
    def weight(self):
        return torch.cat([self.text, self.code @ self.mix, self.unused])

    def forward(self, rows):
        return F.embedding(rows, self.weight)


def build(n_used):
    model, state = Whisper(ModelDimensions(**DIMS)), DIMS["n_text_state"]
    nn.init.normal_(model.decoder.positional_embedding, std=.02)
    model.decoder.token_embedding = TokenTable(n_used - N_TIMESTAMPS, state)  # timestamps have the highest ids
    return model


def save(model, ctc, positions, used, out):
    cut, model.encoder.positional_embedding = model.encoder.positional_embedding, positions.clone()
    torch.save({"model": model.state_dict(), "ctc": ctc.state_dict()}, out)
    weights = {k: v.detach().cpu().half() for k, v in model.state_dict().items() if "token_embedding" not in k}
    small = model.decoder.token_embedding.weight.detach().cpu().half()
    full = small[-1:].repeat(DIMS["n_vocab"], 1)
    full[used] = small[:-1]
    weights["decoder.token_embedding.weight"] = full
    torch.save({"dims": DIMS, "model_state_dict": weights}, out.replace(".pt", ".whisper.pt"))
    model.encoder.positional_embedding = cut


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--corpus", default="train.npz")
    p.add_argument("--window", type=float, required=True, help="seconds")
    p.add_argument("--batch", type=int, required=True)
    p.add_argument("--lr", type=float, required=True)
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--init")
    p.add_argument("--out", required=True)
    p.add_argument("--device", default="cpu")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    rng, corpus = random.Random(a.seed), Corpus(a.corpus)
    used = used_tokens(corpus)
    row, blank = {t: i for i, t in enumerate(used)}, len(used)
    model, ctc = build(len(used)), nn.Linear(DIMS["n_text_state"], len(used) + 1)
    if a.init:
        saved = torch.load(a.init, weights_only=True)
        model.load_state_dict(saved["model"])
        ctc.load_state_dict(saved["ctc"])
    model.to(a.device), ctc.to(a.device)
    positions = model.encoder.positional_embedding.clone()
    model.encoder.positional_embedding = positions[:int(a.window * 50)].clone()
    parameters = [*model.parameters(), *ctc.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=a.lr, weight_decay=.01, betas=(.9, .98))
    began, step, mean = time.time(), 0, None
    while (done := (time.time() - began) / (a.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = a.lr * min(1, (step + 1) / 200) * (.5 * (1 + math.cos(math.pi * done)) * .97 + .03)
        mel, inputs, targets, texts = make_batch(corpus, rng, a.batch, a.window, row)
        with torch.autocast(a.device, dtype=torch.bfloat16):
            heard = model.encoder(mel.to(a.device))
            logits = model.decoder(inputs.to(a.device), heard)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.to(a.device).flatten(), label_smoothing=.02, ignore_index=IGNORE)
        mean = loss.item() if mean is None else .95 * mean + .05 * loss.item()
        if rows := [i for i, t in enumerate(texts) if t]:
            log_probs = F.log_softmax(ctc(heard[rows].float()), -1).transpose(0, 1)
            loss = loss + .3 * F.ctc_loss(log_probs, torch.tensor([t for i in rows for t in texts[i]], device=a.device), torch.full((len(rows),), log_probs.shape[0]),
                                          torch.tensor([len(texts[i]) for i in rows]), blank=blank, zero_infinity=True)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}, {time.time() - began:.0f} s, cross-entropy {mean:.3f}", flush=True)
        if step % 500 == 0:
            save(model, ctc, positions, used, a.out)
    save(model, ctc, positions, used, a.out)


if __name__ == "__main__":
    main()
