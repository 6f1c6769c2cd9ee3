from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.errors import InvalidRequest
from gpu_daemon.jobs.languages import ALIASES, LANGUAGES, language_code


def test_the_table_is_whispers() -> None:
    tokenizer: Any = pytest.importorskip("whisper.tokenizer")
    assert [(code, name.lower()) for code, name in LANGUAGES.items()] == list(tokenizer.LANGUAGES.items())
    assert {name: language_code(name) for name in tokenizer.TO_LANGUAGE_CODE} == tokenizer.TO_LANGUAGE_CODE


def test_no_alias_hides_a_language() -> None:
    names = {name.casefold() for name in LANGUAGES.values()}
    assert not set(ALIASES) & (set(LANGUAGES) | names)
    assert set(ALIASES.values()) <= set(LANGUAGES)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Russian", "ru"),
        ("russian", "ru"),
        ("ru", "ru"),
        ("RU", "ru"),
        ("  French ", "fr"),
        ("auto", None),
        ("Auto", None),
        ("pt-BR", "pt"),
        ("zh_Hans_CN", "zh"),
        ("yue", "yue"),
        ("jv", "jw"),
        ("Haitian  Creole", "ht"),
        ("Flemish", "nl"),
    ],
)
def test_names_codes_and_regions(said: str, code: str | None) -> None:
    assert language_code(said) == code


@pytest.mark.parametrize(
    ("said", "hint"),
    [("Rusian", "Russian"), ("germn", "German"), ("Klingon", "/languages"), ("xx", "/languages")],
)
def test_an_unknown_one_is_refused_with_a_hint(said: str, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=hint) as caught:
        language_code(said)
    assert caught.value.param == "language"
    assert said in caught.value.message


@given(st.text(max_size=200))
def test_any_text_is_a_code_or_a_refusal(said: str) -> None:
    try:
        code = language_code(said)
    except InvalidRequest as error:
        code = None
        message = error.message
    else:
        message = ""
    assert code is None or code in LANGUAGES
    assert len(message) < 400
