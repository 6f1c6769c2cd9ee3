"""Frames: what one side encodes the other decodes, and nothing else gets through."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.engine.base import ModelSpec
from gpu_daemon.jobs.model import JobId, JobOptions, Task
from gpu_daemon.jobs.state import Stage
from gpu_daemon.runner.protocol import (
    HEADER,
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    VERSION,
    AnyMessage,
    Cancel,
    Conclude,
    Done,
    Failed,
    Hello,
    JobProgress,
    Models,
    Ping,
    Pong,
    ProtocolError,
    Run,
    Stop,
    Unload,
    decode,
    encode,
    parse_header,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
names = text.map(lambda name: name.replace("\0", "") or "x")
fractions = st.floats(0, 1)
sizes = st.integers(0, 2**40)
options = st.builds(
    JobOptions,
    model=text,
    language=st.none() | text,
    task=st.sampled_from(Task),
    temperature=st.lists(fractions, max_size=6).map(tuple),
    initial_prompt=st.none() | text,
)
messages: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(
        Run,
        job_id=text.map(JobId),
        model=st.builds(ModelSpec, name=text, path=names.map(Path), official=st.none() | text),
        audio_path=names.map(Path),
        first_byte=sizes,
        skip_samples=sizes,
        options=options,
    ),
    st.builds(Cancel, job_id=text.map(JobId)),
    st.builds(Conclude, job_id=text.map(JobId), code=text, message=text),
    st.builds(Unload, model=st.none() | text),
    st.builds(Ping, number=sizes),
    st.just(Stop()),
    st.builds(Hello, device_name=text, torch_version=text),
    st.builds(Pong, number=sizes),
    st.builds(JobProgress, job_id=text.map(JobId), stage=st.sampled_from(Stage), fraction=fractions),
    st.builds(
        Done,
        job_id=text.map(JobId),
        timings=st.dictionaries(text, fractions, max_size=3),
        duration_s=fractions,
        token_count=sizes,
        language=text,
    ),
    st.builds(Failed, job_id=text.map(JobId), code=text, message=text, retryable=st.booleans()),
    st.builds(Models, loaded=st.dictionaries(text, sizes, max_size=3)),
)


@given(message=messages, body=st.binary(max_size=100))
def test_what_is_encoded_is_decoded(message: AnyMessage, body: bytes) -> None:
    frame = encode(message, body)
    head_bytes, body_bytes = parse_header(frame[: HEADER.size])
    head = frame[HEADER.size : HEADER.size + head_bytes]
    assert decode(head) == message
    assert frame[HEADER.size + head_bytes :] == body
    assert body_bytes == len(body)


def test_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match=f"version {VERSION + 1}"):
        parse_header(HEADER.pack(VERSION + 1, 2, 0))


@pytest.mark.parametrize(("head_bytes", "body_bytes"), [(MAX_HEAD_BYTES + 1, 0), (2, MAX_BODY_BYTES + 1)])
def test_a_frame_over_the_limit_is_refused(head_bytes: int, body_bytes: int) -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        parse_header(HEADER.pack(VERSION, head_bytes, body_bytes))


def test_a_frame_at_the_limit_is_not() -> None:
    header = HEADER.pack(VERSION, MAX_HEAD_BYTES, MAX_BODY_BYTES)
    assert parse_header(header) == (MAX_HEAD_BYTES, MAX_BODY_BYTES)


@pytest.mark.parametrize(
    "head",
    [b"", b"\xff", b"[]", b"{}", b'{"kind":"sing"}', b'{"kind":"ping"}', b'{"kind":"stop","now":true}'],
    ids=["empty", "not text", "not an object", "no kind", "unknown kind", "field missing", "field too many"],
)
def test_what_is_not_a_message_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        decode(head)


@given(head=st.binary(max_size=50))
def test_noise_is_refused_and_nothing_worse(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(head)
