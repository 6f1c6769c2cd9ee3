"""What OpenAPI cannot learn from the code: the bodies of POST /transcribe, which are read as they come; examples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gpu_daemon.api.examples import EXAMPLES, OF_TYPES
from gpu_daemon.api.fields import (
    MAX_BEAM_SIZE,
    MAX_CALLBACK_URL_CHARACTERS,
    MAX_METADATA_BYTES,
    MAX_PRIORITY,
    MAX_PROMPT_CHARACTERS,
    MAX_SOURCE_URL_CHARACTERS,
    MAX_SPEAKERS,
    MAX_TEMPERATURES,
    MAX_TOKEN_CHARACTERS,
    THRESHOLDS,
)
from gpu_daemon.api.form import FILE_FIELD
from gpu_daemon.api.voices import (
    LEAST_S,
    MAX_NAME_CHARACTERS,
    MAX_REFERENCE_CHARACTERS,
    MAX_VOICES,
    MOST_S,
    NAMES,
    REFERENCES,
)
from gpu_daemon.audio.probe import MAX_SPEAKERS as MAX_SPLIT_CHANNELS
from gpu_daemon.jobs.model import JobOptions

TAGS = [
    {"name": "jobs", "description": "Send a file, watch its job, fetch its transcript."},
    {"name": "openai", "description": "OpenAI's audio API, for its official clients."},
    {"name": "queue", "description": "What waits and what runs."},
    {"name": "health", "description": "For orchestrators; open even where API keys are configured."},
    {"name": "operations", "description": "Models, workers, the state that the page shows; `WS /ws/dashboard`."},
    {"name": "ROCm service", "description": "Its routes and words; base path `/services/rocm`."},
    {"name": "microservice", "description": "Its routes and words; base path `/services/micro`, or the root."},
    {"name": "queue guide", "description": "Its routes and words; base path `/services/rq`."},
    {"name": "production-scale service", "description": "Its routes and words; base path `/services/scale`."},
]

DESCRIPTION = """\
Send an audio or video file, or its `url`, to `POST /transcribe`; get a job. Poll it, wait for it, or give a
`callback_url`.

```
curl -F file=@talk.mp3 -F callback_url=https://example.org/done http://localhost:8000/transcribe
```

Every error is `{"error": {"message", "type", "param", "code"}}` with an `x-request-id` header. Times in a transcript
are seconds on the timeline of the file you sent.

`WS /ws/dashboard` sends the state of `GET /dashboard/state` as it changes, in text frames of JSON:

- first `{"type": "snapshot", "seq": 7, "state": {…}}`, then `{"type": "delta", "seq": 8, "state": {…}}` with the
  top-level members that have changed, each of them whole; at most four a second. Where nothing has changed for 15 s,
  `{"type": "beat", "seq": 8}`.
- A client that sees a gap in `seq` sends `{"type": "snapshot"}` and gets one. One that reads too slowly gets a new
  snapshot by itself instead of what it missed.
- Where API keys are configured, the key is in a header of the handshake or, from a browser, in the first frame:
  `{"type": "key", "key": "…"}`. None within 5 s, or a wrong one: closed with 4401.
- A page of another site is refused (403): the host and port of `Origin` must be those of `Host`, which a proxy must
  pass on. Programs send no `Origin`.
- Closed with 4400: a frame was not understood; 1009: it had more than 64 KiB; 1012: the daemon stops. Come back after
  a pause.
"""

SERVICES = "/services/"
KINDS = "audio/wav, audio/mpeg, audio/mp4, audio/ogg, audio/flac, audio/webm, video/mp4, video/webm, video/quicktime"
"""What a file usually is; what it is said to be does not matter."""
NO_NUL = r"^[^\x00]*$"
ONE_TEMPERATURE = r"(0(\.[0-9]+)?|1(\.0+)?)"
TEXT: dict[str, Any] = {"type": "string", "maxLength": MAX_PROMPT_CHARACTERS, "pattern": NO_NUL}


def _speakers(description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": MAX_SPEAKERS, "description": description}


_NAMES: dict[str, Any] = {
    "type": "array",
    "maxItems": MAX_VOICES,
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARACTERS},
    "description": "Of speakers whose voices you send along; with `diarize=true`.",
    "examples": [["Ada", "Grace"]],
}
_REFERENCES: dict[str, Any] = {
    "type": "array",
    "maxItems": MAX_VOICES,
    "items": {"type": "string", "format": "uri", "maxLength": MAX_REFERENCE_CHARACTERS},
    "description": (
        f"{LEAST_S:.0f} to {MOST_S:.0f} s of each voice, in the order of the names, as data URLs: "
        "`data:audio/wav;base64,…`."
    ),
}

FORM_PROPERTIES: dict[str, dict[str, Any]] = {
    "file": {"type": "string", "format": "binary", "description": "Any audio or video that ffmpeg can read."},
    "url": {
        "type": "string",
        "format": "uri",
        "maxLength": MAX_SOURCE_URL_CHARACTERS,
        "examples": ["https://example.org/talk.mp3"],
        "description": "http(s) address that the daemon fetches it from, in place of `file`.",
    },
    "model": {
        "type": "string",
        "description": "Name of an enabled model (`GET /models`); absent: the default one.",
        "examples": ["base"],
    },
    "callback_url": {
        "type": "string",
        "format": "uri",
        "maxLength": MAX_CALLBACK_URL_CHARACTERS,
        "examples": ["https://example.org/done"],
        "description": "http(s) address that gets one POST when the job ends.",
    },
    "language": {
        "type": "string",
        "description": "English name (`Russian`), ISO 639-1 code (`ru`) or `auto`.",
        "examples": ["auto"],
    },
    "task": {
        "type": "string",
        "enum": ["transcribe", "translate", "diarize"],
        "default": "transcribe",
        "description": "`diarize`: who speaks when, and not a word of what is said.",
    },
    "timestamp_granularity": {"type": "string", "enum": ["segment", "word"], "default": "segment"},
    "timestamp_granularities[]": {
        "type": "array",
        "items": {"type": "string", "enum": ["segment", "word"]},
        "description": "The same, as OpenAI's clients say it.",
    },
    "word_timestamps": {"type": "boolean", "default": False, "description": "The same, as openai-whisper says it."},
    "logprobs": {
        "type": "boolean",
        "default": False,
        "description": "The segments of the result have `logprobs`: each token of the text with its log probability.",
    },
    "trim_silence": {
        "type": "boolean",
        "default": True,
        "description": "Do not decode leading silence; times are unaffected.",
    },
    "temperature": {
        "type": "string",
        "pattern": rf"^{ONE_TEMPERATURE}(,{ONE_TEMPERATURE}){{0,{MAX_TEMPERATURES - 1}}}$",
        "description": f"A number from 0 to 1, or up to {MAX_TEMPERATURES} to fall back on; absent: Whisper's ladder.",
        "examples": ["0", "0,0.2,0.4"],
    },
    "prompt": TEXT | {"description": "Text that the speech continues; names and words to expect."},
    "initial_prompt": TEXT | {"description": "Another name for `prompt`."},
    "hotwords": TEXT | {"description": "Words to expect in every window."},
    "beam_size": {"type": "integer", "minimum": 1, "maximum": MAX_BEAM_SIZE, "description": "Absent: greedy."},
    "best_of": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_BEAM_SIZE,
        "description": "Samples at a temperature above 0, of which the likeliest counts; absent: one.",
    },
    "condition_on_previous_text": {"type": "boolean", "default": True},
    **{
        name: {
            "type": "number",
            "minimum": least,
            "maximum": most,
            "description": f"As in openai-whisper; absent: {JobOptions.model_fields[name].default or 'off'}.",
        }
        for name, (least, most) in THRESHOLDS.items()
    },
    "priority": {
        "type": "integer",
        "minimum": -MAX_PRIORITY,
        "maximum": MAX_PRIORITY,
        "default": 0,
        "description": "Higher first.",
    },
    "metadata": {
        "type": "string",
        "contentMediaType": "application/json",
        "description": f"JSON object of up to {MAX_METADATA_BYTES} bytes, echoed in status and callback.",
        "examples": ['{"order": 7}'],
    },
    "wait": {
        "type": "boolean",
        "default": False,
        "description": (
            "Answer 200 with the result once it is there. After 25 s the status is said, and blanks come before the "
            "JSON: a job that fails then breaks the connection off; `x-job-id` names it."
        ),
    },
    "reuse_result": {
        "type": "boolean",
        "default": True,
        "description": (
            "Answer with the stored result when the same audio was done with the same model and options; of a `url`, "
            "as soon as its file has been fetched."
        ),
    },
    "mode": {
        "type": "string",
        "enum": ["accurate", "fast"],
        "default": "accurate",
        "description": (
            "`accurate`: as whisper.transcribe does it. `fast`: only speech is decoded, in pieces of up to 30 s "
            "between pauses, all at once and none knowing of the others; the result says so."
        ),
    },
    "channel_mode": {
        "type": "string",
        "enum": ["mix", "split"],
        "default": "mix",
        "description": f"`split`: each channel (up to {MAX_SPLIT_CHANNELS}) is a speaker, as in recordings of calls.",
    },
    "vad_filter": {
        "type": "boolean",
        "description": (
            "Decode speech only, as silero-vad finds it: pauses of two seconds and more are dropped, and "
            "`result.quality.vad_dropped_s` says how much. Fast mode always does; absent: `channel_mode=split` does."
        ),
    },
    "diarize": {
        "type": "boolean",
        "default": False,
        "description": (
            "Who speaks when: speakers on segments and words, and `result.diarization_segments`. Word timestamps are "
            "on then unless you say otherwise, as segments are cut where the speaker changes. Not with "
            "`channel_mode=split`."
        ),
    },
    "num_speakers": _speakers("How many speak, if you know; not with the next two. Needs `diarize=true`, as they do."),
    "min_speakers": _speakers("At least so many speak."),
    "max_speakers": _speakers("At most so many speak, and no fewer than `min_speakers`."),
    "hf_token": {
        "type": "string",
        "format": "password",
        "maxLength": MAX_TOKEN_CHARACTERS,
        "pattern": r"^[!-~]*$",
        "writeOnly": True,
        "description": (
            "A token of Hugging Face, for the download of a gated diarization pipeline by this job alone; it is not "
            "stored, not logged and not shown."
        ),
    },
    **{name: _NAMES for name in (NAMES, f"{NAMES}[]")},
    **{name: _REFERENCES for name in (REFERENCES, f"{REFERENCES}[]")},
}

JSON_PROPERTIES = {name: said for name, said in FORM_PROPERTIES.items() if name != FILE_FIELD} | {
    "temperature": {
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": 1},
            {
                "type": "array",
                "items": {"type": "number", "minimum": 0, "maximum": 1},
                "minItems": 1,
                "maxItems": MAX_TEMPERATURES,
            },
        ],
        "description": FORM_PROPERTIES["temperature"]["description"],
        "examples": [0, [0, 0.2, 0.4]],
    },
    "metadata": {
        "type": "object",
        "description": FORM_PROPERTIES["metadata"]["description"],
        "examples": [{"order": 7}],
    },
}

PREFER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "description": "`wait=N`: wait N seconds for the result (RFC 7240); submitting is answered 202 if it takes longer.",
}

ONE_PROMPT = {"not": {"required": ["prompt", "initial_prompt"]}}
"""They may be given both, if they are the same."""


def multipart(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a request body: a form with a file."""
    return {"multipart/form-data": {"schema": schema, "encoding": {FILE_FIELD: {"contentType": KINDS}}}}


def _submission(title: str, properties: dict[str, dict[str, Any]], required: Sequence[str] = ()) -> dict[str, Any]:
    return multipart(
        {
            "title": title,
            "type": "object",
            "oneOf": [{"required": [source, *required]} for source in (FILE_FIELD, "url")],
            **ONE_PROMPT,
            "additionalProperties": False,
            "properties": properties,
        }
    )


TRANSCRIBE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **_submission("Submission", FORM_PROPERTIES),
            "application/json": {
                "schema": {
                    "title": "SubmissionByUrl",
                    "type": "object",
                    "required": ["url"],
                    **ONE_PROMPT,
                    "additionalProperties": False,
                    "properties": JSON_PROPERTIES,
                }
            },
        },
    },
    "parameters": [
        PREFER,
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "maxLength": 255, "pattern": r"^[!-~]([ -~]*[!-~])?$"},
            "description": (
                "A value of your own for this request: sent again, it finds the job that it made, while that is kept "
                "(`Idempotent-Replayed: true`); with another file or other fields it is refused with 409."
            ),
        },
    ],
}


def form(title: str, own: Mapping[str, dict[str, Any]], required: Sequence[str] = ()) -> dict[str, Any]:
    """The body of a service's route: its own fields, and those of POST /transcribe."""
    properties = {FILE_FIELD: FORM_PROPERTIES[FILE_FIELD]} | dict(own) | FORM_PROPERTIES | dict(own)
    return {"requestBody": {"required": True, "content": _submission(title, properties, required)}}


def openapi(app: FastAPI, base_paths: Iterable[str]) -> dict[str, Any]:
    """FastAPI's document, without the 422 that is never answered, and with links from a new job to its routes."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for name, schema in document["components"]["schemas"].items():
        if name in EXAMPLES:
            schema["examples"] = [EXAMPLES[name]]
    for path in document["paths"].values():
        for operation in path.values():
            for answer in operation["responses"].values():
                _show(answer.get("content", {}))
    for base_path in base_paths:
        _link(document["paths"], base_path)
    return document


def _show(content: dict[str, Any]) -> None:
    for kind, answer in content.items():
        if not answer.get("schema"):
            answer["example"] = OF_TYPES[kind]


def _link(paths: dict[str, Any], base_path: str) -> None:
    """From each answer with a new job's id to the routes of that job below the same base path."""
    below = {path: operations for path, operations in paths.items() if _base(path) == base_path}
    links = {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {"job_id": "$response.body#/job_id"},
        }
        for path, operations in below.items()
        if "{job_id}" in path
        for operation in operations.values()
    }
    for operations in below.values():
        for operation in operations.values():
            if "requestBody" in operation and "202" in operation["responses"]:
                operation["responses"]["202"]["links"] = links


def _base(path: str) -> str:
    return "/".join(path.split("/")[:3]) if path.startswith(SERVICES) else ""
