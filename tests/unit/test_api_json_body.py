import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.api.documents import FORM_PROPERTIES, JSON_PROPERTIES
from gpu_daemon.api.fields import KNOWN, Submission, parse_fields
from gpu_daemon.api.form import FILE_FIELD
from gpu_daemon.api.json_body import ARRAYS, BOOLEANS, MAX_JSON_BYTES, NUMBERS, OBJECTS, STRINGS, json_fields
from gpu_daemon.errors import InvalidRequest, TooLarge

URL = "https://example.org/a.mp3"


def parse(body: bytes) -> Submission:
    return parse_fields(json_fields(body), default_model=lambda: "base", default_language="auto")


def test_json_says_what_the_form_says() -> None:
    body = {
        "url": URL,
        "model": "demo",
        "language": "Russian",
        "timestamp_granularities": ["segment", "word"],
        "trim_silence": False,
        "temperature": [0, 0.2],
        "prompt": "Anna, Борис",
        "beam_size": 5.0,
        "logprob_threshold": -0.5,
        "condition_on_previous_text": True,
        "priority": -10,
        "metadata": {"order": {"n": 7, "text": "№"}},
        "hotwords": None,
        "callback_url": "",
        "wait": True,
    }
    form = {
        "url": [URL],
        "model": ["demo"],
        "language": ["Russian"],
        "timestamp_granularities[]": ["segment", "word"],
        "trim_silence": ["false"],
        "temperature": ["0,0.2"],
        "prompt": ["Anna, Борис"],
        "beam_size": ["5"],
        "logprob_threshold": ["-0.5"],
        "priority": ["-10"],
        "metadata": ['{"order": {"n": 7, "text": "№"}}'],
        "wait": ["true"],
    }
    expected = parse_fields(form, default_model=lambda: "base", default_language="auto")
    assert parse(json.dumps(body).encode()) == expected
    assert parse(json.dumps(body, ensure_ascii=False).encode()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wait", "true"),
        ("wait", 1),
        ("beam_size", "5"),
        ("beam_size", True),
        ("beam_size", 5.5),
        ("beam_size", [5]),
        ("beam_size", 1e300),
        ("temperature", "0"),
        ("temperature", [0, True]),
        ("temperature", ["0"]),
        ("temperature", 1.5),
        ("metadata", '{"order": 7}'),
        ("metadata", [1]),
        ("timestamp_granularities", [1]),
        ("timestamp_granularities[]", ["letter"]),
        ("prompt", 5),
        ("prompt", {"text": "x"}),
        ("url", ["https://example.org/"]),
        ("model", False),
        ("langauge", "en"),
        ("file", "RIFF"),
    ],
)
def test_a_wrong_member_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps({"url": URL} | {name: value}).encode())
    assert caught.value.param == name
    assert "\n" not in caught.value.message


def test_voices_may_be_longer_than_all_else() -> None:
    reference = "data:audio/wav;base64," + "A" * 200_000
    body = {"url": URL, "diarize": True, "num_speakers": 2, "known_speaker_names": ["Ada"]}
    submission = parse(json.dumps(body | {"known_speaker_references": [reference]}).encode())
    assert [(voice.name, len(voice.reference)) for voice in submission.voices] == [("Ada", 200_000)]
    with pytest.raises(TooLarge):
        json_fields(json.dumps({"url": URL, "prompt": "x" * MAX_JSON_BYTES}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"{", b"\xff{}", b'{"url": NaN}', b'{"a": Infinity}', b'{"a": 1, "a": 2}',
        b'{"prompt": "\\ud800"}', b'{"\\ud800": 1}', b"[" * 60_000,
        b'{"metadata":' * 5000, b'{"a": ' + b"9" * 5000 + b"}",
        b"{}{}", b"\0",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        json_fields(body)
    assert caught.value.code == "invalid_json"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(KNOWN)) | st.text(max_size=5), ANYTHING, max_size=4))
def test_anything_is_read_or_refused(members: dict[str, Any]) -> None:
    try:
        parse(json.dumps(members).encode())
    except InvalidRequest as error:
        error.message.encode()


def test_the_documents_say_the_same_types() -> None:
    assert set(JSON_PROPERTIES) == set(FORM_PROPERTIES) - {FILE_FIELD}
    for name, said in JSON_PROPERTIES.items():
        kinds = {kind["type"] for kind in said.get("anyOf", [said])}
        expected = {
            "boolean": name in BOOLEANS,
            "number": name in NUMBERS,
            "string": name in STRINGS,
            "object": name in OBJECTS,
            "array": name in ARRAYS,
        }
        assert {"number" if kind == "integer" else kind for kind in kinds} == {
            kind for kind, is_one in expected.items() if is_one
        }, name
