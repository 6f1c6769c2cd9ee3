"""How close a decision of the reference was."""

import math
from typing import Any

import torch
from whisper.decoding import DecodingTask

from tests.parity.reference import Attempt


@torch.no_grad()
def margin(model: Any, attempt: Attempt, n_same: int, ours: int) -> float:
    """By how much the reference prefers its next token to ours, after the first `n_same`, in logits.

    Where a rule forbids one of the two, it is how far the rule was from deciding otherwise: the log probability of all
    timestamps against that of the best word.
    """
    task = DecodingTask(model, attempt.options)
    theirs = attempt.result.tokens[n_same]
    said = [*task.initial_tokens, *attempt.result.tokens[:n_same]]
    tokens = torch.tensor([said], device=attempt.mel.device)  # int64[1, n_tokens]
    logits = model.decoder(tokens, model.encoder(attempt.mel[None]))[:, -1]  # float32[1, n_vocab]
    before_rules = logits.clone()
    for rule in task.logit_filters:
        rule.apply(logits, tokens)
    difference = float(logits[0, theirs] - logits[0, ours])
    if math.isfinite(difference):
        return difference
    log_probabilities = before_rules.log_softmax(dim=-1)[0]
    begin = task.tokenizer.timestamp_begin
    return float((log_probabilities[begin:].logsumexp(dim=-1) - log_probabilities[:begin].max()).abs())
