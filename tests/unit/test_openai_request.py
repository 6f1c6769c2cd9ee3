"""OpenAI's fields in our own words."""

import json

import pytest

from gpu_daemon.api.openai_request import Reader, Wanted
from gpu_daemon.errors import GpuDaemonError
from gpu_daemon.jobs.model import Task
from gpu_daemon.transcript.cues import CueOptions
from gpu_daemon.transcript.formats import Format

SERVER_VAD = {"chunking_strategy[type]": ["server_vad"], "chunking_strategy[threshold]": ["0.4"]}


def read(fields: dict[str, list[str]], task: Task = Task.TRANSCRIBE) -> tuple[dict[str, list[str]], Wanted]:
    reader = Reader(task, enabled={"demo", "gpt-transcribe"}.__contains__)
    ours = reader({"model": ["whisper-1"], "file": [""]} | fields, True)
    return {name: list(values) for name, values in ours.items()}, reader.wanted


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"model": ["demo"]}, {"model": ["demo"]}),
        ({"model": ["gpt-transcribe"]}, {"model": ["gpt-transcribe"]}),  # this catalogue has one of that name
        ({"model": ["gpt-4o-transcribe-2025-03-20"]}, {}),
        ({"temperature": ["0.0"]}, {}),
        ({"temperature": ["0.2"]}, {"temperature": ["0.2"]}),
        ({"temperature": ["hot"]}, {"temperature": ["hot"]}),
        ({"prompt": ["a"], "language": ["ru"]}, {"prompt": ["a"], "language": ["ru"]}),
        ({"languages[]": ["ru"]}, {"language": ["ru"]}),
        ({"languages[]": ["ru", "en"]}, {}),
        ({"keywords[]": ["Ada", "Charles"]}, {"hotwords": ["Ada, Charles"]}),
        ({"keywords[]": ["Ada"], "hotwords": ["Eve"]}, {"hotwords": ["Eve"]}),
        ({"timestamp_granularities[]": ["word", "segment"]}, {"timestamp_granularities": ["word"]}),
        ({"timestamp_granularities": ["segment"]}, {}),
        ({"highlight_words": ["true"]}, {"timestamp_granularities": ["word"]}),
        ({"chunking_strategy": ["auto"]}, {}),
        (SERVER_VAD, {"vad_filter": ["true"]}),
        (SERVER_VAD | {"vad_filter": ["false"]}, {"vad_filter": ["false"]}),
        ({"chunking_strategy": [json.dumps({"type": "server_vad"})]}, {"vad_filter": ["true"]}),
        ({"response_format": ["diarized_json"]}, {"diarize": ["true"]}),
        ({"response_format": ["diarized_json"], "diarize": ["false"]}, {"diarize": ["false"]}),
        ({"response_format": ["diarized_json"], "channel_mode": ["split"]}, {"channel_mode": ["split"]}),
        ({"model": ["gpt-4o-transcribe-diarize"]}, {"diarize": ["true"]}),
        (
            {"model": ["gpt-4o-transcribe-diarize-2025-10-15"], "hf_token": ["x"]},
            {"diarize": ["true"], "hf_token": ["x"]},
        ),
        (
            {"known_speaker_names[]": ["Ada"], "known_speaker_references[]": ["data:"]},
            {"known_speaker_names": ["Ada"], "known_speaker_references": ["data:"], "diarize": ["true"]},
        ),
        ({"diarize": ["true"], "num_speakers": ["2"]}, {"diarize": ["true"], "num_speakers": ["2"]}),
        ({"include[]": ["logprobs"]}, {"logprobs": ["true"]}),
        ({"include": ["logprobs"], "response_format": ["json"], "stream": ["true"]}, {"logprobs": ["true"]}),
        ({"logprobs": ["true"], "response_format": ["verbose_json"]}, {"logprobs": ["true"]}),
        ({"logprobs": ["false"]}, {"logprobs": ["false"]}),
        ({"priority": ["3"], "wait": ["true"], "n": ["2"]}, {"priority": ["3"]}),
    ],
)
def test_what_becomes_of_a_field(fields: dict[str, list[str]], expected: dict[str, list[str]]) -> None:
    assert read(fields)[0] == expected


def test_what_is_wanted() -> None:
    assert read({})[1] == Wanted(
        task=Task.TRANSCRIBE,
        format=Format.JSON,
        stream=False,
        segments=True,
        words=False,
        logprobs=False,
        cues=CueOptions(),
    )
    ours, wanted = read(
        {
            "response_format": ["vtt"],
            "timestamp_granularities[]": ["word"],
            "max_line_width": ["42"],
            "max_line_count": ["2"],
        },
        Task.TRANSLATE,
    )
    assert ours == {"task": ["translate"], "timestamp_granularities": ["word"]}
    assert (wanted.segments, wanted.words) == (False, True)
    assert wanted.cues == CueOptions(max_line_width=42, max_line_count=2)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunking_strategy": ["{"]},
        {"chunking_strategy": ["[]"]},
        {"chunking_strategy": ["[" * 60_000]},
        {"chunking_strategy": ['{"type": "server_vad", "threshold": %s}' % ("9" * 400)]},
        {"chunking_strategy[type]": ["other"]},
        SERVER_VAD | {"chunking_strategy[silence_duration_ms]": ["-1"]},
        SERVER_VAD | {"chunking_strategy[threshold]": ["nan"]},
        {"task": ["diarize"]},
        {"include": ["everything"]},
        {"include": ["logprobs", "everything"]},
        *({"include": ["logprobs"], "response_format": [format]} for format in Format if format is not Format.JSON),
        {"logprobs": ["perhaps"]},
        {"max_line_width": ["0"]},
        {"stream": ["maybe"]},
        {"response_format": ["json", "srt"]},
        {"response_format": ["tsv"], "stream": ["true"]},
    ],
)
def test_what_is_refused(fields: dict[str, list[str]]) -> None:
    with pytest.raises(GpuDaemonError) as refused:
        read(fields)
    assert refused.value.param is not None
    assert len(refused.value.message) > 20


def test_fields_before_the_file_say_nothing_final() -> None:
    reader = Reader(Task.TRANSCRIBE, enabled=lambda _: True)
    reader({"response_format": ["srt"]}, False)
    reader({"response_format": ["srt"], "stream": ["false"]}, True)
    assert reader.wanted.format is Format.SRT
