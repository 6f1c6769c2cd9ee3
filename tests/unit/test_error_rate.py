import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.demo.error_rate import word_error_rate

SENTENCE = st.lists(st.sampled_from(["the", "train", "leaves", "at", "noon"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("truth", "heard", "expected"),
    [
        ("the train leaves", "The train, leaves.", 0.0),
        ("the train leaves", "the train", 1 / 3),
        ("the train leaves", "the old train leaves", 1 / 3),
        ("the train leaves", "the plane leaves", 1 / 3),
        ("the train leaves", "", 1.0),
        ("", "", 0.0),
        ("Поезд уходит в полдень", "поезд уходит в полдень!", 0.0),
        ("l'été dernier", "L'été dernier", 0.0),
    ],
)
def test_words_to_change_over_words_of_the_truth(truth: str, heard: str, expected: float) -> None:
    assert word_error_rate(truth, heard) == pytest.approx(expected)


@given(SENTENCE.filter(bool), SENTENCE)
def test_agrees_with_jiwer(truth: str, heard: str) -> None:
    assert word_error_rate(truth, heard) == pytest.approx(jiwer.wer(truth, heard))
