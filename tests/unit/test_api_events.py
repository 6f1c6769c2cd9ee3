"""What one reader is told, and is not told again."""

import json
from typing import Any

from gpu_daemon.api.events import AT_ONCE, PER_ATTEMPT, Teller
from gpu_daemon.api.sse import message
from gpu_daemon.transcript.model import Segment


def segments(n: int, text: str = " x") -> tuple[Segment, ...]:
    return tuple(
        Segment(
            id=number,
            start=float(number),
            end=number + 1.0,
            text=text,
            confidence=1.0,
            avg_logprob=0.0,
            no_speech_prob=0.0,
            compression_ratio=1.0,
            temperature=0.0,
            seek=0,
            tokens=(),
        )
        for number in range(n)
    )


def told(teller: Teller, attempt: int, heard: tuple[Segment, ...]) -> list[tuple[int, dict[str, Any]]]:
    """Number and data of each event."""
    said = []
    for event in teller.segments(attempt, heard, teller.known(attempt, heard)):
        number, kind, data = event.decode().rstrip().split("\n")
        assert kind == "event: segments"
        said.append((int(number.removeprefix("id: ")), json.loads(data.removeprefix("data: "))))
    return said


def spans(said: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, int, int]]:
    return [(number, data["first"], len(data["segments"])) for number, data in said]


def test_what_is_new_is_told_in_pieces() -> None:
    teller = Teller()
    assert spans(told(teller, 1, segments(3))) == [(PER_ATTEMPT + 3, 0, 3)]
    assert told(teller, 1, segments(3)) == []
    more = segments(3 + AT_ONCE + 1)
    assert spans(told(teller, 1, more)) == [
        (PER_ATTEMPT + 3 + AT_ONCE, 3, AT_ONCE),
        (PER_ATTEMPT + 4 + AT_ONCE, 3 + AT_ONCE, 1),
    ]


def test_what_has_changed_is_told_again() -> None:
    teller = Teller()
    told(teller, 1, segments(4))
    changed = segments(2) + segments(4, " other")[2:]
    assert spans(told(teller, 1, changed)) == [(PER_ATTEMPT + 4, 2, 2)]
    assert spans(told(teller, 1, changed[:3])) == [(PER_ATTEMPT + 3, 3, 0)], "one less"
    assert told(teller, 1, changed[:3]) == []


def test_another_attempt_is_told_from_its_start() -> None:
    teller = Teller()
    told(teller, 1, segments(4))
    assert spans(told(teller, 2, segments(1))) == [(2 * PER_ATTEMPT + 1, 0, 1)]


def test_who_comes_back_is_told_the_rest() -> None:
    assert spans(told(Teller.after(PER_ATTEMPT + 3), 1, segments(5))) == [(PER_ATTEMPT + 5, 3, 2)]
    assert spans(told(Teller.after(PER_ATTEMPT + 3), 2, segments(5))) == [(2 * PER_ATTEMPT + 5, 0, 5)]
    assert spans(told(Teller.after(PER_ATTEMPT + 9), 1, segments(5))) == [(PER_ATTEMPT + 5, 5, 0)]
    assert spans(told(Teller.after(None), 0, segments(1))) == [(1, 0, 1)]
    ended = Teller.after(2 * PER_ATTEMPT - 1)
    assert spans(told(ended, 1, segments(2))) == [(PER_ATTEMPT + 2, 0, 2)]


def test_a_state_is_told_once() -> None:
    teller = Teller()
    state = {"status": "queued", "stage": None, "progress": 0.0, "attempt": 0, "queue_position": 1, "priority": 3}
    first = teller.state(state)
    assert first is not None
    assert first.startswith(b"id: 0\nevent: state\ndata: {")
    assert teller.state(state | {"estimated_wait_s": 5.0}) is None
    assert teller.state(state | {"queue_position": 0}) is not None


def test_an_event_is_one_line_to_clients_that_know_more_ends_of_lines_than_the_standard() -> None:
    said = {"text": "one\x85two\u2028three\u2029four\n\r\x0b\x0c\x1c\x1d\x1e"}
    kind, data, *blank = message(said, event="state").decode().splitlines()
    assert (kind, blank) == ("event: state", [""])
    assert json.loads(data.removeprefix("data: ")) == said
