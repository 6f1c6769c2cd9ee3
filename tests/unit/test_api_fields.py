import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.api.documents import FORM_PROPERTIES
from gpu_daemon.api.fields import KNOWN, MAX_SPEAKERS, Submission, check_model_knows, parse_fields
from gpu_daemon.api.form import FILE_FIELD
from gpu_daemon.errors import InvalidRequest
from gpu_daemon.jobs.model import TEMPERATURE_LADDER, ChannelMode, JobOptions, Mode, Task


def parse(**fields: str | list[str]) -> Submission:
    pairs = {name: [value] if isinstance(value, str) else value for name, value in fields.items()}
    return parse_fields(pairs, default_model=lambda: "base", default_language="auto")


def refused(**fields: str | list[str]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def test_nothing_said_is_what_whisper_does() -> None:
    assert parse() == Submission(
        options=JobOptions(model="base"),
        requested_language="auto",
        url=None,
        callback_url=None,
        priority=0,
        metadata=None,
        wait=False,
        reuse_result=True,
    )
    assert parse().options.temperature == TEMPERATURE_LADDER


def test_everything_said() -> None:
    submission = parse(
        model="demo",
        language="Russian",
        task="translate",
        timestamp_granularity="word",
        trim_silence="off",
        temperature="0.2",
        prompt="Anna, Boris",
        hotwords="Kazan",
        beam_size="5",
        best_of="3",
        compression_ratio_threshold="3",
        logprob_threshold="-0.5",
        no_speech_threshold="1",
        hallucination_silence_threshold="2.5",
        condition_on_previous_text="no",
        priority="-10",
        metadata='{"order": {"n": 7}}',
        wait="1",
        callback_url="https://example.org:8443/done?x=1#y",
        mode="accurate",
        channel_mode="split",
        diarize="false",
        vad_filter="0",
    )
    assert submission.options == JobOptions(
        model="demo",
        language="ru",
        task=Task.TRANSLATE,
        word_timestamps=True,
        temperature=(0.2,),
        initial_prompt="Anna, Boris",
        hotwords="Kazan",
        beam_size=5,
        best_of=3,
        compression_ratio_threshold=3.0,
        logprob_threshold=-0.5,
        no_speech_threshold=1.0,
        hallucination_silence_threshold=2.5,
        condition_on_previous_text=False,
        trim_silence=False,
        channel_mode=ChannelMode.SPLIT,
    )
    assert submission.requested_language == "Russian"
    assert submission.callback_url == "https://example.org:8443/done?x=1#y"
    assert (submission.priority, submission.metadata, submission.wait) == (-10, {"order": {"n": 7}}, True)


def test_modes() -> None:
    assert parse(mode="fast").options.mode is Mode.FAST
    assert parse(mode="fast").options.speech_only
    assert parse(mode="fast", vad_filter="false").options.speech_only
    assert parse(vad_filter="true").options.speech_only
    assert not parse().options.speech_only


def test_only_speech_of_a_speaker_is_decoded_unless_all_is_asked_for() -> None:
    assert parse(channel_mode="split").options.vad_filter
    assert not parse(channel_mode="split", vad_filter="false").options.vad_filter
    assert not parse(channel_mode="mix").options.vad_filter


def test_empty_fields_count_as_absent() -> None:
    assert parse(model="", language="", temperature="", metadata="", callback_url="", num_speakers="") == parse()


REFERENCE = "data:audio/wav;base64,UklGRg=="


def test_who_speaks() -> None:
    options = parse(diarize="true", min_speakers="2", max_speakers="2").options
    assert options == JobOptions(model="base", diarize=True, word_timestamps=True, min_speakers=2, max_speakers=2)
    assert parse(diarize="yes", num_speakers=str(MAX_SPEAKERS)).options.num_speakers == MAX_SPEAKERS
    alone = parse(task="diarize").options
    assert (alone.task, alone.diarize, alone.word_timestamps) == (Task.DIARIZE, True, False)
    assert parse(task="diarize", diarize="true", num_speakers="2").options.num_speakers == 2
    assert parse(task="translate", diarize="true").options.diarize


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, True),
        ({"timestamp_granularity": "segment"}, False),
        ({"timestamp_granularities[]": ["segment"]}, False),
        ({"timestamp_granularities[]": ["segment", "word"]}, True),
        ({"word_timestamps": "false"}, False),
        ({"word_timestamps": "true"}, True),
    ],
)
def test_words_are_timed_for_speakers_unless_the_client_says_otherwise(
    said: dict[str, str | list[str]], words: bool
) -> None:
    assert parse(diarize="true", **said).options.word_timestamps is words


def test_a_token_is_in_no_text() -> None:
    submission = parse(hf_token=" hf_canary ")
    assert submission.hf_token is not None
    assert submission.hf_token.get_secret_value() == "hf_canary"
    assert "canary" not in repr(submission)
    assert "canary" not in submission.options.model_dump_json()
    for wrong in ("hf canary", "hf_canary\n2", "hf_canaryé", "hf_canary" * 100):
        error = refused(hf_token=wrong)
        assert error.param == "hf_token"
        assert "canary" not in error.message


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"diarize": "true", "num_speakers": "2", "min_speakers": "1"}, "num_speakers"),
        ({"diarize": "true", "num_speakers": "2", "max_speakers": "2"}, "num_speakers"),
        ({"diarize": "true", "min_speakers": "3", "max_speakers": "2"}, "min_speakers"),
        ({"diarize": "true", "num_speakers": "0"}, "num_speakers"),
        ({"diarize": "true", "max_speakers": "101"}, "max_speakers"),
        ({"diarize": "true", "min_speakers": "two"}, "min_speakers"),
        ({"diarize": "true", "channel_mode": "split"}, "channel_mode"),
        ({"task": "diarize", "channel_mode": "split"}, "channel_mode"),
        ({"task": "diarize", "diarize": "false"}, "diarize"),
    ],
)
def test_speakers_that_make_no_sense(said: dict[str, str], param: str) -> None:
    """Also in the fields that come before the file."""
    assert refused(**said).param == param
    with pytest.raises(InvalidRequest):
        parse_fields(
            {name: [value] for name, value in said.items()},
            default_model=str,
            default_language="auto",
            complete=False,
        )


@pytest.mark.parametrize(
    "said",
    [
        {"num_speakers": "2"},
        {"min_speakers": "1"},
        {"max_speakers": "3", "diarize": "false"},
        {"known_speaker_names": "Ada", "known_speaker_references": REFERENCE},
        {"known_speaker_names[]": "Ada", "diarize": "true"},
        {"known_speaker_references": REFERENCE, "task": "diarize"},
    ],
)
def test_what_lacks_its_other_half_is_refused_once_all_has_come(said: dict[str, str]) -> None:
    assert refused(**said).param in (*said, "known_speaker_names")
    fields = {name: [value] for name, value in said.items()}
    parse_fields(fields, default_model=str, default_language="auto", complete=False)


@pytest.mark.parametrize(
    ("name", "near"), [("langauge", "language"), ("Model", "model"), ("beamsize", "beam_size"), ("zzz", "")]
)
def test_an_unknown_field_is_named_with_the_nearest(name: str, near: str) -> None:
    error = refused(**{name: "x"})
    assert (error.code, error.param) == ("unknown_field", name)
    assert repr(name) in error.message
    assert error.message.endswith(f"did you mean {near}?" if near else repr(name))


@pytest.mark.parametrize("said", ["true", "1", "yes", "on", "True", "ON", " yes "])
def test_what_is_true(said: str) -> None:
    assert parse(wait=said).wait is True
    assert parse(word_timestamps=said).options.word_timestamps is True


@pytest.mark.parametrize("said", ["false", "0", "no", "off", "False"])
def test_what_is_false(said: str) -> None:
    assert parse(trim_silence=said).options.trim_silence is False


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("0", (0.0,)),
        ("0.3", (0.3,)),
        ("0,0.2,0.4", (0.0, 0.2, 0.4)),
        ("[0.0, 1]", (0.0, 1.0)),
        (["0", "0.5"], (0.0, 0.5)),
    ],
)
def test_temperatures(said: str | list[str], expected: tuple[float, ...]) -> None:
    assert parse(temperature=said).options.temperature == expected


@pytest.mark.parametrize("name", ["timestamp_granularity", "timestamp_granularities", "timestamp_granularities[]"])
def test_granularity_by_every_name(name: str) -> None:
    assert parse(**{name: "word"}).options.word_timestamps
    assert not parse(**{name: "segment"}).options.word_timestamps
    assert parse(**{name: ["segment", "word"]}).options.word_timestamps


def test_prompt_has_two_names() -> None:
    assert parse(initial_prompt="x").options.initial_prompt == "x"
    assert parse(initial_prompt="x", prompt="x").options.initial_prompt == "x"
    assert refused(initial_prompt="x", prompt="y").param == "prompt"


WRONG: list[tuple[str, str | list[str]]] = [
    ("language", "Klingon"),
    ("language", "\0"),
    ("task", "summarise"),
    ("channel_mode", "left"),
    ("mode", "slow"),
    ("vad_filter", "maybe"),
    ("timestamp_granularity", "letter"),
    ("word_timestamps", "maybe"),
    ("wait", "2"),
    ("temperature", "hot"),
    ("temperature", "-0.1"),
    ("temperature", "1.1"),
    ("temperature", "nan"),
    ("temperature", "inf"),
    ("temperature", ",".join(["0"] * 11)),
    ("best_of", "0"),
    ("logprob_threshold", "0.1"),
    ("no_speech_threshold", "nan"),
    ("compression_ratio_threshold", "much"),
    ("beam_size", "0"),
    ("beam_size", "21"),
    ("beam_size", "5.5"),
    ("beam_size", "9" * 5000),
    ("priority", "11"),
    ("priority", "-11"),
    ("priority", "high"),
    ("prompt", "a\0b"),
    ("prompt", "x" * 9000),
    ("metadata", "7"),
    ("metadata", "[]"),
    ("metadata", "{"),
    ("metadata", '{"a": NaN}'),
    ("metadata", '{"a": 1e999}'),
    ("metadata", '{"a": "\\ud800"}'),
    ("metadata", '{"a":' + "[" * 2000 + "]" * 2000 + "}"),
    ("metadata", '{"a":' + "[" * 40 + "]" * 40 + "}"),
    ("metadata", json.dumps({"a": "x" * 4096})),
    ("callback_url", "ftp://example.org/"),
    ("callback_url", "example.org/done"),
    ("callback_url", "http://"),
    ("callback_url", "http:///done"),
    ("callback_url", "https://user:pass@example.org/"),
    ("callback_url", "https://user@example.org/"),
    ("url", "file:///etc/passwd"),
    ("url", "gopher://example.org/1"),
    ("url", "https://user:pass@example.org/a.mp3"),
    ("url", "https://example.org:99999/a.mp3"),
    ("url", "https://example.org/" + "x" * 8192),
    ("url", "https://☃☃-.x/"),
    ("callback_url", "https://example.org/a b"),
    ("callback_url", "https://example.org/a\nb"),
    ("callback_url", "https://example.org:99999/"),
    ("callback_url", "https://[::1/"),
    ("callback_url", "https://example.org/" + "x" * 2048),
    ("model", ["a", "b"]),
    ("language", ["en", "fr"]),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_refused_by_name_in_one_sentence(name: str, value: str | list[str]) -> None:
    error = refused(**{name: value})
    assert error.param == name
    assert error.code == "invalid_value"
    assert len(error.message) < 250
    assert "\n" not in error.message


def test_words_asked_for_and_not() -> None:
    assert refused(timestamp_granularity="word", word_timestamps="false").param == "timestamp_granularity"


@given(st.dictionaries(st.sampled_from(sorted(KNOWN)), st.lists(st.text(max_size=30), max_size=3)))
def test_any_values_are_taken_or_refused(fields: dict[str, list[str]]) -> None:
    try:
        submission: Any = parse_fields(fields, default_model=lambda: "base", default_language="auto")
    except InvalidRequest:
        submission = None
    assert submission is None or json.dumps(submission.metadata) is not None


def test_the_document_names_the_fields_that_are_read() -> None:
    also_read = {"timestamp_granularities"}  # a slip of the brackets that costs nothing to understand
    assert set(FORM_PROPERTIES) == (KNOWN - also_read) | {FILE_FIELD}


@pytest.mark.parametrize(
    ("model", "language", "task", "official", "knows"),
    [
        ("base.en", None, Task.TRANSCRIBE, True, True),
        ("base.en", "en", Task.TRANSCRIBE, True, True),
        ("base.en", "ru", Task.TRANSCRIBE, True, False),
        ("base.en", None, Task.TRANSLATE, True, False),
        ("base", "ru", Task.TRANSLATE, True, True),
        ("base", "yue", Task.TRANSCRIBE, True, False),
        ("large-v3-turbo", "yue", Task.TRANSCRIBE, True, True),
        ("ours.en", "yue", Task.TRANSLATE, False, True),
    ],
)
def test_a_model_is_not_asked_for_what_it_does_not_know(
    model: str, language: str | None, task: Task, official: bool, knows: bool
) -> None:
    options = JobOptions(model=model, language=language, task=task)
    if knows:
        check_model_knows(options, official=official)
    else:
        with pytest.raises(InvalidRequest, match=model):
            check_model_knows(options, official=official)
