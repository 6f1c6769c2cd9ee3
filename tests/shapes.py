"""Is an answer shaped as its service's document shows it? The document's own example is the shape."""

from typing import Any


def deviations(answer: Any, example: Any, at: str = "answer") -> list[str]:
    """What of the example `answer` lacks, or has in another type. It may have more members, and longer lists.

    A whole number in the example asks for one; 5.0 for any number; null for anything; an empty list for any list, and
    one with an item for a list whose items are all like it, and which has one.
    """
    match example:
        case None:
            return []
        case dict():
            if not isinstance(answer, dict):
                return [f"{at} is no object: {answer!r}"]
            missing = [f"{at}.{name} is missing" for name in example if name not in answer]
            inner = (deviations(answer[name], example[name], f"{at}.{name}") for name in example if name in answer)
            return missing + [each for found in inner for each in found]
        case list():
            if not isinstance(answer, list) or (example and not answer):
                return [f"{at} is no list like {example!r}: {answer!r}"]
            return [
                each for i, item in enumerate(answer) if example for each in deviations(item, example[0], f"{at}[{i}]")
            ]
        case bool() | int() | str():
            fits = type(answer) is type(example)
        case float():
            fits = type(answer) in (int, float)
        case _:
            raise TypeError(f"JSON has no {example!r}")
    return [] if fits else [f"{at} is not like {example!r}: {answer!r}"]
