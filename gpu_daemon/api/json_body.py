"""A submission as JSON: the fields of the form, in JSON's types (pure)."""

import json
from typing import Any

from gpu_daemon.api.fields import KNOWN, THRESHOLDS
from gpu_daemon.api.form import FILE_FIELD
from gpu_daemon.api.voices import FIELDS as VOICE_FIELDS
from gpu_daemon.api.voices import REFERENCE_FIELDS
from gpu_daemon.errors import InvalidRequest, TooLarge

MAX_JSON_BYTES = 64 * 1024
"""Without the voices."""
MAX_VOICES_BYTES = 4 << 20
"""Less than in a form: JSON of that size takes long enough to be read."""

BOOLEANS = frozenset(
    {
        "word_timestamps", "logprobs", "vad_filter", "trim_silence", "condition_on_previous_text", "wait", "diarize",
        "reuse_result",
    }
)  # fmt: skip
NUMBERS = frozenset(
    {
        "temperature", "beam_size", "best_of", "priority", "num_speakers", "min_speakers", "max_speakers",
        *THRESHOLDS,
    }
)  # fmt: skip
OBJECTS = frozenset({"metadata"})
ARRAYS: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "timestamp_granularities": (str,),
    "timestamp_granularities[]": (str,),
    **dict.fromkeys(VOICE_FIELDS, (str,)),
}
"""With what may be in them."""
STRINGS = KNOWN - BOOLEANS - NUMBERS - OBJECTS - ARRAYS.keys()
KINDS = {
    "true or false": BOOLEANS,
    "a number": NUMBERS,
    "a string": STRINGS,
    "an object": OBJECTS,
    "an array": frozenset(ARRAYS),
}
KIND_OF: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    dict: "an object",
    list: "an array",
}


def json_fields(body: bytes) -> dict[str, list[str]]:
    """As the form would have them; `null` is absent. Raises InvalidRequest, TooLarge."""
    try:
        members = json.loads(body, object_pairs_hook=_once, parse_constant=_refuse)
        json.dumps(members, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise InvalidRequest(
            'the body is not a JSON object in UTF-8, for example {"url": "https://example.org/a.mp3"}',
            code="invalid_json",
        )
    fields = {name: _values(name, value) for name, value in members.items() if value is not None}
    voices_bytes = sum(len(value) for name in REFERENCE_FIELDS & fields.keys() for value in fields[name])
    if len(body) - voices_bytes > MAX_JSON_BYTES:
        raise TooLarge(f"a JSON body may have {MAX_JSON_BYTES // 1024} KiB at most, without the voices in it")
    return fields


def _values(name: str, value: Any) -> list[str]:
    if name == FILE_FIELD:
        raise InvalidRequest("a file is sent as multipart/form-data; JSON is for a `url`", param=FILE_FIELD)
    if name not in KNOWN:
        return ["?"]  # refused by its name when the fields are checked
    kind = KIND_OF[type(value)]
    items = value if kind == "an array" else [value]
    if name not in KINDS[kind] or (kind == "an array" and not all(type(item) in ARRAYS[name] for item in items)):
        wanted = " or ".join(wanted for wanted, names in KINDS.items() if name in names)
        raise InvalidRequest(f"{name} is {wanted}; this is {kind}", param=name)
    return [_text(item) for item in items]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # 5.0 is a whole number in JSON.
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is given twice")
    return members


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
