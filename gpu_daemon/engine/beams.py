"""Beam search over one window (pure): whisper.decoding.BeamSearchDecoder, patience 1."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    sources: list[int]
    """For each beam, the one that it goes on from."""
    tokens: list[int]
    scores: list[float]
    """Sums of logprobs."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Something that may have been said in a window."""

    tokens: list[int]
    """Without the prompt; the end of text is the last one, if it was reached."""
    sum_logprob: float
    logprobs: list[float]
    """Of each token, or none."""


class Beams:
    def __init__(self, n_beams: int, prompt: tuple[int, ...], eot: int, limit: int) -> None:
        """`limit`: the search ends when its sequences are so long, prompt included."""
        self._n = n_beams
        self._n_prompt = len(prompt)
        self._eot = eot
        self._limit = limit
        self._alive: list[tuple[int, ...]] = [prompt] * n_beams
        self._scores = [0.0] * n_beams
        self._logprobs: list[tuple[float, ...]] = [()] * n_beams
        self._finished: dict[tuple[int, ...], tuple[float, tuple[float, ...]]] = {}
        self.done = False

    def advance(self, candidates: list[list[int]], scores: list[list[float]], logprobs: list[list[float]]) -> Step:
        """For each beam its `n_beams + 1` likeliest next tokens with their logprobs, and the scores of the beam with
        each of them."""
        if self.done:
            return Step(list(range(self._n)), [self._eot] * self._n, self._scores)
        found: dict[tuple[int, ...], tuple[float, int, float]] = {}
        for beam, prefix in enumerate(self._alive):
            for token, score, logprob in zip(candidates[beam], scores[beam], logprobs[beam], strict=True):
                found[(*prefix, token)] = score, beam, logprob  # at first all beams are the same
        ranked = sorted(found.items(), key=lambda item: item[1][0], reverse=True)
        alive = []
        for sequence, (score, beam, logprob) in ranked:
            if sequence[-1] != self._eot:
                alive.append((sequence, score, beam, logprob))
                if len(alive) == self._n:
                    break
            elif len(self._finished) < self._n:
                self._finished[sequence] = score, (*self._logprobs[beam], logprob)
        self._alive = [sequence for sequence, _, _, _ in alive]
        self._scores = [score for _, score, _, _ in alive]
        self._logprobs = [(*self._logprobs[beam], logprob) for _, _, beam, logprob in alive]
        self.done = len(self._finished) >= self._n or len(self._alive[0]) >= self._limit
        return Step([beam for _, _, beam, _ in alive], [sequence[-1] for sequence in self._alive], self._scores)

    def hypotheses(self) -> list[Hypothesis]:
        """The finished ones and, where they are too few, the best of the others."""
        result = dict(self._finished)
        alive = zip(self._scores, self._alive, self._logprobs, strict=True)
        for score, sequence, logprobs in sorted(alive, reverse=True):
            if len(result) >= self._n:
                break
            result[sequence] = score, logprobs
        return [
            Hypothesis(list(sequence[self._n_prompt :]), score, list(logprobs))
            for sequence, (score, logprobs) in result.items()
        ]
