"""How far a transcript is from the truth."""

import re


def word_error_rate(truth: str, heard: str) -> float:
    """Words to insert, delete or replace, over the words of the truth. Case and punctuation do not count."""
    expected, found = _words(truth), _words(heard)
    # Levenshtein distance, a row at a time: distances[j] = edits from the words so far to found[:j].
    distances = list(range(len(found) + 1))
    for row, word in enumerate(expected, start=1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(found, start=1):
            cost = min(distances[column] + 1, distances[column - 1] + 1, diagonal + (word != other))
            diagonal, distances[column] = distances[column], cost
    return distances[-1] / max(len(expected), 1)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())
