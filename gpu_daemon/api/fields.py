"""The form fields of a submission, checked: every refusal names its field and says what would do (pure)."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr

from gpu_daemon.api.voices import FIELDS as VOICE_FIELDS
from gpu_daemon.api.voices import Voice, voices
from gpu_daemon.errors import InvalidRequest
from gpu_daemon.jobs.languages import language_code
from gpu_daemon.jobs.model import TEMPERATURE_LADDER, ChannelMode, JobOptions, Mode, Task

MAX_METADATA_BYTES = 4096
MAX_METADATA_DEPTH = 32
MAX_CALLBACK_URL_CHARACTERS = 2048
MAX_SOURCE_URL_CHARACTERS = 8192
"""Signed ones are long."""
MAX_PROMPT_CHARACTERS = 8192
MAX_TEMPERATURES = 10
MAX_BEAM_SIZE = 20
MAX_PRIORITY = 10
MAX_SPEAKERS = 100
MAX_TOKEN_CHARACTERS = 256
ENGLISH_ONLY = ".en"
SINCE_LARGE_V3 = "yue"
"""The one language that older multilingual models lack."""
TRUE = frozenset({"true", "1", "yes", "on"})
FALSE = frozenset({"false", "0", "no", "off"})

THRESHOLDS: dict[str, tuple[float, float]] = {
    "compression_ratio_threshold": (0, 100),
    "logprob_threshold": (-100, 0),
    "no_speech_threshold": (0, 1),
    "hallucination_silence_threshold": (0, 3600),
}
"""openai-whisper's own, and what they may be; the far end of each range turns it off."""

KNOWN = frozenset(
    {
        "model", "callback_url", "language", "task", "timestamp_granularity", "timestamp_granularities",
        "timestamp_granularities[]", "word_timestamps", "logprobs", "mode", "vad_filter", "trim_silence",
        "channel_mode", "temperature", "prompt", "initial_prompt", "hotwords", "beam_size", "best_of",
        "condition_on_previous_text", "priority", "metadata", "wait", "diarize", "reuse_result", "url", "num_speakers",
        "min_speakers", "max_speakers", "hf_token", *THRESHOLDS, *VOICE_FIELDS,
    }
)  # fmt: skip
SECRETS = frozenset({"hf_token"})
"""Of the client; whether two requests are the same does not depend on them."""
OF_SPEAKERS = ("num_speakers", "min_speakers", "max_speakers", *sorted(VOICE_FIELDS))
"""Of no use where nobody asks who speaks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    options: JobOptions
    requested_language: str
    url: str | None = field(repr=False)
    callback_url: str | None
    priority: int
    metadata: dict[str, Any] | None
    wait: bool
    reuse_result: bool
    hf_token: SecretStr | None = None
    """For the download of a gated pipeline; kept in memory only, and no longer than the job."""
    voices: tuple[Voice, ...] = ()
    """What will be the options' `known_speakers`."""


def parse_fields(
    fields: Mapping[str, Sequence[str]],
    *,
    default_model: Callable[[], str],
    default_language: str,
    complete: bool = True,
) -> Submission:
    """Empty values count as absent. Raises InvalidRequest.

    `complete`: no more fields will come; if not, only what no further field can put right is refused.
    """
    given = {name: [value for value in values if value != ""] for name, values in fields.items()}
    given = {name: values for name, values in given.items() if values}
    _check_names(given)
    task = choice(given, "task", Task)
    channel_mode = choice(given, "channel_mode", ChannelMode)
    diarize = _diarize(given, task, channel_mode, complete=complete)
    language = one(given, "language") or default_language
    return Submission(
        options=JobOptions(
            model=one(given, "model") or default_model(),
            language=language_code(language),
            task=task,
            # Segments can be cut where the speaker changes, if it is known when each word was said.
            word_timestamps=_word_timestamps(given, default=diarize and task is not Task.DIARIZE),
            logprobs=boolean(given, "logprobs", False),
            temperature=_temperatures(given),
            initial_prompt=_prompt(given),
            hotwords=_text(given, "hotwords"),
            beam_size=integer(given, "beam_size", 1, MAX_BEAM_SIZE),
            best_of=integer(given, "best_of", 1, MAX_BEAM_SIZE),
            condition_on_previous_text=boolean(given, "condition_on_previous_text", True),
            trim_silence=boolean(given, "trim_silence", True),
            mode=choice(given, "mode", Mode),
            # Who listens is silent for as long as the other speaks: Whisper would place what follows much too early.
            vad_filter=boolean(given, "vad_filter", channel_mode is ChannelMode.SPLIT),
            channel_mode=channel_mode,
            diarize=diarize,
        ).model_copy(update=_thresholds(given) | _speakers(given)),
        requested_language=language,
        url=_url(given, "url", MAX_SOURCE_URL_CHARACTERS),
        callback_url=_url(given, "callback_url", MAX_CALLBACK_URL_CHARACTERS),
        priority=integer(given, "priority", -MAX_PRIORITY, MAX_PRIORITY) or 0,
        metadata=_metadata(given),
        wait=boolean(given, "wait", False),
        reuse_result=boolean(given, "reuse_result", True),
        hf_token=_token(given),
        voices=voices(given, complete=complete),
    )


def check_model_knows(options: JobOptions, *, official: bool) -> None:
    """`official`: the name is openai's, and says what the model is. Raises InvalidRequest."""
    if not official:
        return
    if options.model.endswith(ENGLISH_ONLY) and (
        options.language not in (None, "en") or options.task is Task.TRANSLATE
    ):
        raise InvalidRequest(f"the model {options.model} knows only English, and does not translate", param="language")
    if options.language == SINCE_LARGE_V3 and not options.model.startswith("large-v3"):
        raise InvalidRequest(f"the model {options.model} does not know Cantonese; large-v3 does", param="language")


def flag(fields: Mapping[str, Sequence[str]], name: str) -> bool:
    """One of another API's own, false when it is absent. Raises InvalidRequest."""
    return boolean({name: [value for value in fields.get(name, ()) if value != ""]}, name, False)


Given = Mapping[str, Sequence[str]]
Choice = TypeVar("Choice", bound=StrEnum)


def _check_names(given: Given) -> None:
    for name in given:
        if name not in KNOWN:
            near = get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidRequest(f"there is no field {name[:50]!r}{hint}", code="unknown_field", param=name[:50])


def one(given: Given, name: str) -> str | None:
    values = given.get(name, ())
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given {len(values)} times; give it once", param=name)
    return values[0].strip() if values else None


def _text(given: Given, name: str) -> str | None:
    text = one(given, name)
    if text is not None and len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(f"{name} may have {MAX_PROMPT_CHARACTERS} characters at most", param=name)
    if text is not None and "\0" in text:
        raise InvalidRequest(f"{name} holds a NUL character", param=name)
    return text


def boolean(given: Given, name: str, default: bool) -> bool:
    said = one(given, name)
    if said is None:
        return default
    if said.lower() in TRUE | FALSE:
        return said.lower() in TRUE
    raise InvalidRequest(f"{name} is true or false, not {said[:50]!r}", param=name)


def integer(given: Given, name: str, least: int, most: int) -> int | None:
    said = one(given, name)
    if said is None:
        return None
    try:
        number = int(said)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise InvalidRequest(f"{name} is a whole number from {least} to {most}, not {said[:50]!r}", param=name)
    return number


def choice(given: Given, name: str, kind: type[Choice]) -> Choice:
    """The first of its kind, when it is absent."""
    if (said := one(given, name)) is None:
        return next(iter(kind))
    try:
        return kind(said)
    except ValueError:
        raise InvalidRequest(f"{name} is {' or '.join(kind)}, not {said[:50]!r}", param=name) from None


def _word_timestamps(given: Given, *, default: bool) -> bool:
    wanted = boolean(given, "word_timestamps", False)
    said_so = "word_timestamps" in given
    for name in ("timestamp_granularity", "timestamp_granularities", "timestamp_granularities[]"):
        for said in given.get(name, ()):
            said_so = True
            if said.strip() not in ("word", "segment"):
                raise InvalidRequest(f"{name} is word or segment, not {said[:50]!r}", param=name)
            if said.strip() == "word" and "word_timestamps" in given and not wanted:
                raise InvalidRequest(f"{name} asks for words, and word_timestamps for none", param=name)
            wanted = wanted or said.strip() == "word"
    return wanted if said_so else default


def _diarize(given: Given, task: Task, channel_mode: ChannelMode, *, complete: bool) -> bool:
    diarize = boolean(given, "diarize", task is Task.DIARIZE)
    if task is Task.DIARIZE and not diarize:
        raise InvalidRequest("task=diarize asks who speaks, and diarize=false does not", param="diarize")
    if diarize and channel_mode is ChannelMode.SPLIT:
        raise InvalidRequest(
            "channel_mode=split makes a speaker of each channel, and diarize=true knows them by their voices; "
            "ask for one of the two",
            param="channel_mode",
        )
    if complete and not diarize and (idle := next((name for name in OF_SPEAKERS if name in given), None)):
        raise InvalidRequest(f"{idle} is of use only with diarize=true", param=idle)
    return diarize


def _speakers(given: Given) -> dict[str, int | None]:
    num, least, most = (
        integer(given, name, 1, MAX_SPEAKERS) for name in ("num_speakers", "min_speakers", "max_speakers")
    )
    if num is not None and (least is not None or most is not None):
        raise InvalidRequest(
            "num_speakers says how many speak; leave out min_speakers and max_speakers", param="num_speakers"
        )
    if least is not None and most is not None and least > most:
        raise InvalidRequest(f"min_speakers is {least}, and max_speakers only {most}", param="min_speakers")
    return {"num_speakers": num, "min_speakers": least, "max_speakers": most}


def _token(given: Given) -> SecretStr | None:
    """It goes into a header. What it is is in no message."""
    token = one(given, "hf_token")
    if token is None:
        return None
    if len(token) > MAX_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidRequest("hf_token is not a token of Hugging Face (hf_…)", param="hf_token")
    return SecretStr(token)


def _temperatures(given: Given) -> tuple[float, ...]:
    """Absent: whisper's own ladder. One number: that one only."""
    said = [part for value in given.get("temperature", ()) for part in value.strip("[] ").split(",")]
    if not said:
        return TEMPERATURE_LADDER
    try:
        temperatures = tuple(float(part) for part in said)
    except ValueError:
        temperatures = (-1.0,)
    if len(temperatures) > MAX_TEMPERATURES or not all(0 <= number <= 1 for number in temperatures):
        raise InvalidRequest(
            "temperature is a number from 0 to 1, or a list of them to fall back on: 0,0.2,0.4", param="temperature"
        )
    return temperatures


def _thresholds(given: Given) -> dict[str, float]:
    """Those that are given."""
    found = {}
    for name, (least, most) in THRESHOLDS.items():
        if (said := one(given, name)) is not None:
            try:
                number = float(said)
            except ValueError:
                number = math.nan
            if not least <= number <= most:
                raise InvalidRequest(f"{name} is a number from {least} to {most}, not {said[:50]!r}", param=name)
            found[name] = number
    return found


def _prompt(given: Given) -> str | None:
    prompt, initial_prompt = _text(given, "prompt"), _text(given, "initial_prompt")
    if prompt is not None and initial_prompt is not None and prompt != initial_prompt:
        raise InvalidRequest("prompt and initial_prompt are the same field; give one of them", param="prompt")
    return prompt if prompt is not None else initial_prompt


def _url(given: Given, name: str, most_characters: int) -> str | None:
    url = one(given, name)
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
        httpx2.URL(url)  # what connects has the last word on what a URL is
    except (ValueError, httpx2.InvalidURL):
        fits = False
    if not fits or len(url) > most_characters or " " in url:
        raise InvalidRequest(f"{name} is an http:// or https:// address with a host", param=name)
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(f"{name} may not hold a user name or password", param=name)
    return url


def _metadata(given: Given) -> dict[str, Any] | None:
    said = one(given, "metadata")
    if said is None:
        return None
    if len(said.encode()) > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata may have {MAX_METADATA_BYTES} bytes at most", param="metadata")
    try:
        metadata = json.loads(said)
        # What Python reads and JSON, UTF-8 or the database do not have: NaN, 1e999, half a surrogate pair.
        json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
        storable = _depth(metadata) <= MAX_METADATA_DEPTH
    except (ValueError, RecursionError):
        metadata, storable = None, False
    if not isinstance(metadata, dict) or not storable:
        raise InvalidRequest('metadata is a JSON object, for example {"order": 7}', param="metadata")
    return metadata


def _depth(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max((_depth(item) for item in value), default=0) if isinstance(value, list) else 0
