"""The measure that the services' documents are held against."""

import pytest

from tests.shapes import deviations

EXAMPLE = {"id": 0, "at": 0.5, "name": "a", "on": True, "error": None, "words": [{"word": "a"}], "rest": []}


def test_more_than_the_example_has_is_no_deviation() -> None:
    answer = {"id": 7, "at": 3, "name": "", "on": False, "error": 1, "words": [{"word": "b", "x": 1}] * 2, "rest": [1]}
    assert deviations(answer | {"more": 1}, EXAMPLE) == []


@pytest.mark.parametrize(
    "change",
    [{"id": 0.5}, {"id": True}, {"at": "1"}, {"name": None}, {"on": 1}, {"words": []}, {"words": [{}]}, {"rest": None}],
)
def test_another_type_or_a_missing_member_is_one(change: dict[str, object]) -> None:
    answer = EXAMPLE | change
    assert len(deviations(answer, EXAMPLE)) == 1


def test_a_member_that_is_absent_and_an_answer_that_is_no_object() -> None:
    assert deviations({}, {"a": 1, "b": 2}) == ["answer.a is missing", "answer.b is missing"]
    assert deviations([], {"a": 1}) == ["answer is no object: []"]
