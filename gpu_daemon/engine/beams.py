"""Beam search over one window (pure): whisper.decoding.BeamSearchDecoder, patience 1."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    sources: list[int]
    """For each beam, the one that it goes on from."""
    tokens: list[int]
    scores: list[float]
    """Sums of logprobs."""


class Beams:
    def __init__(self, n_beams: int, prompt: tuple[int, ...], eot: int, limit: int) -> None:
        """`limit`: the search ends when its sequences are so long, prompt included."""
        self._n = n_beams
        self._eot = eot
        self._limit = limit
        self._alive: list[tuple[int, ...]] = [prompt] * n_beams
        self._scores = [0.0] * n_beams
        self._finished: dict[tuple[int, ...], float] = {}
        self.done = False

    def advance(self, candidates: list[list[int]], scores: list[list[float]]) -> Step:
        """For each beam its `n_beams + 1` likeliest next tokens, and the scores of the beam with each of them."""
        if self.done:
            return Step(list(range(self._n)), [self._eot] * self._n, self._scores)
        found: dict[tuple[int, ...], tuple[float, int]] = {}
        for beam, prefix in enumerate(self._alive):
            for token, score in zip(candidates[beam], scores[beam], strict=True):
                found[(*prefix, token)] = score, beam  # at first all beams are the same
        ranked = sorted(found.items(), key=lambda item: item[1][0], reverse=True)
        alive = []
        for sequence, (score, beam) in ranked:
            if sequence[-1] != self._eot:
                alive.append((sequence, score, beam))
                if len(alive) == self._n:
                    break
            elif len(self._finished) < self._n:
                self._finished[sequence] = score
        self._alive = [sequence for sequence, _, _ in alive]
        self._scores = [score for _, score, _ in alive]
        self.done = len(self._finished) >= self._n or len(self._alive[0]) >= self._limit
        return Step([beam for _, _, beam in alive], [sequence[-1] for sequence in self._alive], self._scores)

    def hypotheses(self) -> list[tuple[list[int], float]]:
        """The finished ones and, where they are too few, the best of the others; with the prompt."""
        result = dict(self._finished)
        for score, sequence in sorted(zip(self._scores, self._alive, strict=True), reverse=True):
            if len(result) >= self._n:
                break
            result[sequence] = score
        return [(list(sequence), score) for sequence, score in result.items()]
