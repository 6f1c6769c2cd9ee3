"""A request of OpenAI's audio API in the words of our own (pure). Whatever it does not know goes through: what POST
/transcribe takes is taken here as well, and the rest is ignored, as OpenAI does."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_daemon.api.fields import KNOWN, Given, boolean, integer, one
from gpu_daemon.api.results import MOST, SUBTITLES
from gpu_daemon.api.voices import NAMES
from gpu_daemon.errors import InvalidRequest, NotFound
from gpu_daemon.jobs.model import ChannelMode, Task
from gpu_daemon.transcript.cues import CueOptions
from gpu_daemon.transcript.formats import Format

ALIASES = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe", "gpt-4o-transcribe-diarize")
"""Of DEFAULT_MODEL: OpenAI's names for what they have. Those with a date, too."""
ALIAS = re.compile(
    r"(whisper-1|gpt-4o(-mini)?-transcribe|gpt-transcribe|(?P<diarizes>gpt-4o-transcribe-diarize))(-\d{4}-\d{2}-\d{2})?"
)
CHUNKING = "chunking_strategy"
CHUNKING_PART = re.compile(r"chunking_strategy\[(\w+)\]")
VAD_NUMBERS = {"threshold": 1.0, "prefix_padding_ms": 60_000.0, "silence_duration_ms": 60_000.0}
"""With the most that they may be."""
NOT_OURS = frozenset({"wait", "timestamp_granularity"})
"""Of POST /transcribe: this route waits anyhow, and has a name of its own for the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """How the client wants to be answered."""

    task: Task
    format: Format
    stream: bool
    segments: bool
    """In verbose_json, as the words."""
    words: bool
    logprobs: bool
    """Of the tokens of the text; in verbose_json of each segment's."""
    cues: CueOptions


class Reader:
    """The translation of one request; `wanted` is known once it has been called with all of its fields."""

    def __init__(self, task: Task, *, enabled: Callable[[str], bool]) -> None:
        """`enabled`: is there a model of that name?"""
        self._task = task
        self._enabled = enabled
        self._wanted: Wanted | None = None

    @property
    def wanted(self) -> Wanted:
        assert self._wanted is not None
        return self._wanted

    def __call__(self, fields: Mapping[str, Sequence[str]], complete: bool) -> Mapping[str, Sequence[str]]:
        """Raises InvalidRequest, NotFound."""
        given = {_name(name): [value for value in values if value != ""] for name, values in fields.items()}
        given = {name: values for name, values in given.items() if values}
        by_voice = _asks_for_vad(given)
        wanted = self._answer(given)
        if one(given, "task") == Task.DIARIZE:
            raise InvalidRequest(
                "this route answers with what is said; POST /diarize, or POST /transcribe with task=diarize, says only "
                "who speaks when",
                param="task",
            )
        ours = {name: values for name, values in given.items() if name in KNOWN - NOT_OURS}
        ours |= self._model(given) | _temperature(given) | _hints(given)
        if _asks_who_speaks(given, wanted):
            ours.setdefault("diarize", ["true"])
        if wanted.logprobs:
            ours["logprobs"] = ["true"]
        if by_voice:
            ours.setdefault("vad_filter", ["true"])
        ours["timestamp_granularities"] = ["word"] if wanted.words or wanted.cues.need_words else []
        if self._task is Task.TRANSLATE:
            ours["task"] = [Task.TRANSLATE.value]
        if complete:
            self._wanted = wanted
        return {name: values for name, values in ours.items() if values}

    def _model(self, given: Given) -> dict[str, list[str]]:
        name = one(given, "model")
        if name is None or self._enabled(name):
            return {"model": [] if name is None else [name]}
        if ALIAS.fullmatch(name):
            return {"model": []}
        raise NotFound(
            f"there is no model {name[:50]!r} here; GET /v1/models lists them", code="model_not_found", param="model"
        )

    def _answer(self, given: Given) -> Wanted:
        format = _format(given, self._task)
        stream = boolean(given, "stream", False)
        if stream and format in SUBTITLES | {Format.TSV}:
            raise InvalidRequest(
                f"{format.value} cannot be streamed: with stream=true send json, text, verbose_json or diarized_json",
                param="response_format",
            )
        granularities = set(given.get("timestamp_granularities", ()))
        if not granularities <= {"word", "segment"}:
            raise InvalidRequest("timestamp_granularities[] are word and segment", param="timestamp_granularities[]")
        return Wanted(
            task=self._task,
            format=format,
            stream=stream,
            segments=granularities != {"word"},
            words="word" in granularities or boolean(given, "word_timestamps", False),
            logprobs=_includes_logprobs(given, format) or boolean(given, "logprobs", False),
            cues=CueOptions(
                max_line_width=integer(given, "max_line_width", 1, MOST),
                max_line_count=integer(given, "max_line_count", 1, MOST),
                max_words_per_line=integer(given, "max_words_per_line", 1, MOST),
                highlight_words=boolean(given, "highlight_words", False),
            ),
        )


def _name(name: str) -> str:
    """Lists come as `name[]`, and as `name` from some."""
    return name.removesuffix("[]")


def _format(given: Given, task: Task) -> Format:
    said = one(given, "response_format") or Format.JSON
    formats = [format.value for format in Format if format is not Format.DIARIZED_JSON or task is Task.TRANSCRIBE]
    if said not in formats:
        raise InvalidRequest(
            f"response_format is one of {', '.join(formats)}, not {said[:50]!r}", param="response_format"
        )
    return Format(said)


def _includes_logprobs(given: Given, format: Format) -> bool:
    included = given.get("include", ())
    if (strange := next((said for said in included if said != "logprobs"), None)) is not None:
        raise InvalidRequest(f"include[] knows logprobs, not {strange[:50]!r}", param="include[]")
    if included and format is not Format.JSON:
        raise InvalidRequest(
            f"include[]=logprobs goes with response_format=json, not {format.value}; with logprobs=true in place of "
            "it the segments of verbose_json have theirs",
            param="include[]",
        )
    return bool(included)


def _asks_who_speaks(given: Given, wanted: Wanted) -> bool:
    """Where each channel is a speaker, that is known without asking."""
    model = ALIAS.fullmatch(one(given, "model") or "")
    asks = wanted.format is Format.DIARIZED_JSON or NAMES in given or bool(model and model["diarizes"])
    return asks and one(given, "channel_mode") != ChannelMode.SPLIT


def _asks_for_vad(given: Given) -> bool:
    """`server_vad`: only speech is decoded. Its numbers must be right, and are not used: the detector has its own."""
    parts: dict[str, Any] = {found[1]: given[name][0] for name in given if (found := CHUNKING_PART.fullmatch(name))}
    said = one(given, CHUNKING)
    if said in (None, "auto") and not parts:
        return False
    if said is not None:
        try:
            parts = json.loads(said)
        except (ValueError, RecursionError):
            parts = {}
    if not isinstance(parts, dict) or parts.get("type") != "server_vad":
        raise InvalidRequest(f'{CHUNKING} is auto, or an object of the type "server_vad"', param=CHUNKING)
    for name, most in VAD_NUMBERS.items():
        try:
            fits = 0 <= float(parts.get(name, 0)) <= most
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise InvalidRequest(f"{CHUNKING}: {name} is a number from 0 to {most:g}", param=CHUNKING)
    return True


def _temperature(given: Given) -> dict[str, list[str]]:
    """OpenAI's 0, the default, is Whisper's ladder: hotter where a window fails."""
    said = one(given, "temperature")
    try:
        return {"temperature": []} if said is not None and float(said) == 0 else {}
    except ValueError:
        return {}  # our own check says what is wrong with it


def _hints(given: Given) -> dict[str, list[str]]:
    hints = {}
    if (keywords := given.get("keywords")) and "hotwords" not in given:
        hints["hotwords"] = [", ".join(keywords)]
    if len(languages := given.get("languages", ())) == 1 and "language" not in given:
        hints["language"] = list(languages)
    return hints
