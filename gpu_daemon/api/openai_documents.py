"""What OpenAPI is told of OpenAI's routes: their bodies are read as they come."""

from collections.abc import Iterable
from typing import Any, Literal

from gpu_daemon.api.documents import FORM_PROPERTIES, TEXT, multipart
from gpu_daemon.api.results import CONTENT_TYPES, MOST, SUBTITLES
from gpu_daemon.api.schemas import Body
from gpu_daemon.api.sse import MEDIA_TYPE
from gpu_daemon.api.voices import NAMES, REFERENCES
from gpu_daemon.transcript.formats import Format


class OpenAIModel(Body):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Seconds since 1970: when this daemon started."""
    owned_by: str
    alias_of: str | None = None


class OpenAIModels(Body):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


def _lines(description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": MOST, "description": description}


SHARED: dict[str, Any] = {
    "file": FORM_PROPERTIES["file"],
    "model": {
        "type": "string",
        "description": "One that GET /v1/models lists; `whisper-1` and its like are the default one.",
        "examples": ["whisper-1"],
    },
    "prompt": FORM_PROPERTIES["prompt"],
    "temperature": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0,
        "description": "0: hotter by steps where a window fails, as Whisper does.",
    },
    "max_line_width": _lines("srt, vtt: characters in a line."),
    "max_line_count": _lines("srt, vtt: lines in a cue, with `max_line_width`."),
    "max_words_per_line": _lines("srt, vtt: without both of the above."),
    "highlight_words": {"type": "boolean", "default": False, "description": "srt, vtt: underline each word."},
}

FORMATS = [format.value for format in Format]

TRANSCRIPTION_PROPERTIES: dict[str, Any] = SHARED | {
    "response_format": {"type": "string", "enum": FORMATS, "default": Format.JSON.value},
    "language": FORM_PROPERTIES["language"],
    "timestamp_granularities[]": {
        "type": "array",
        "items": {"type": "string", "enum": ["word", "segment"]},
        "description": "What verbose_json holds; absent: segments.",
    },
    "stream": {
        "type": "boolean",
        "default": False,
        "description": "Server-Sent Events: the text as it is decoded. Not for srt, vtt and tsv.",
    },
    "chunking_strategy": {
        "type": "string",
        "enum": ["auto"],
        "description": 'Or an object of the type "server_vad": only speech is decoded, as with `vad_filter`.',
    },
    "include[]": {
        "type": "array",
        "items": {"type": "string", "enum": ["logprobs"]},
        "description": "`logprobs`: each token of the text with its log probability. With the format json only.",
    },
    "logprobs": FORM_PROPERTIES["logprobs"]
    | {"description": "The same for json; the segments of verbose_json have theirs."},
    "keywords[]": {"type": "array", "items": TEXT, "description": "As `hotwords`, and together no longer."},
    "channel_mode": FORM_PROPERTIES["channel_mode"],
    "diarize": FORM_PROPERTIES["diarize"]
    | {
        "description": (
            "Who speaks when. `diarized_json`, the model `gpt-4o-transcribe-diarize` and known voices imply it."
        )
    },
    **{
        name: FORM_PROPERTIES[name]
        for name in ("num_speakers", "min_speakers", "max_speakers", "hf_token", f"{NAMES}[]", f"{REFERENCES}[]")
    },
}

TRANSLATION_PROPERTIES = SHARED | {
    "response_format": {
        "type": "string",
        "enum": [name for name in FORMATS if name != Format.DIARIZED_JSON.value],
        "default": Format.JSON.value,
    },
}


def _not_with(formats: Iterable[Format], **said: dict[str, Any]) -> dict[str, Any]:
    given = {"response_format": {"enum": sorted(formats)}} | said
    return {"not": {"required": list(given), "properties": given}}


NOT_TOGETHER = {
    "allOf": [
        _not_with(SUBTITLES | {Format.TSV}, stream={"const": True}),
        _not_with(set(Format) - {Format.JSON}, **{"include[]": {"minItems": 1}}),
    ]
}


def _operation(title: str, properties: dict[str, Any], *, streams: bool, **rules: Any) -> dict[str, Any]:
    answers: dict[str, Any] = {kind.split(";")[0]: {} for kind in CONTENT_TYPES.values()} | (
        {MEDIA_TYPE: {}} if streams else {}
    )
    return {
        "requestBody": {
            "required": True,
            "content": multipart(
                {
                    "title": title,
                    "type": "object",
                    "required": ["file", "model"],
                    "properties": properties,
                    "propertyNames": {"minLength": 1},
                    **rules,
                }
            ),
        },
        "responses": {"200": {"description": "the transcript", "content": answers}},
    }


TRANSCRIPTION = _operation("Transcription", TRANSCRIPTION_PROPERTIES, streams=True, **NOT_TOGETHER)
TRANSLATION = _operation("Translation", TRANSLATION_PROPERTIES, streams=False)
