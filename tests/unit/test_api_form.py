import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_daemon.api.form import MAX_BESIDE_FILE_BYTES, MAX_FIELD_BYTES, FormReader
from gpu_daemon.api.voices import MAX_REFERENCE_CHARACTERS
from gpu_daemon.errors import GpuDaemonError, InvalidRequest, TooLarge
from gpu_daemon.jobs.file_name import MAX_NAME_BYTES, display_name

BOUNDARY = "xYzZY"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, value: bytes, file_name: str | None = None) -> bytes:
    shown = "" if file_name is None else f'; filename="{file_name}"'
    return b"--%b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n" % (
        BOUNDARY.encode(),
        f'"{name}"{shown}'.encode(),
        value,
    )


END = f"--{BOUNDARY}--\r\n".encode()
WAV = part("file", b"RIFF....", "talk.wav")


def reader(content_type: str | None = TYPE, max_file_bytes: int = 1 << 20) -> FormReader:
    return FormReader(content_type, max_file_bytes=max_file_bytes, on_file=lambda fields: None)


def read(body: bytes, max_file_bytes: int = 1 << 20) -> tuple[FormReader, bytes]:
    form = reader(max_file_bytes=max_file_bytes)
    form.feed(body)
    form.finish()
    return form, bytes(form.take())


def test_fields_and_file() -> None:
    form, file = read(part("language", "Русский".encode()) + WAV + part("temperature", b"0") + END)
    assert form.fields == {"language": ["Русский"], "temperature": ["0"]}
    assert (form.file_name, file, form.file_size_bytes) == ("talk.wav", b"RIFF....", 8)


@given(st.data())
def test_it_does_not_matter_where_the_body_is_cut(data: st.DataObject) -> None:
    payload = data.draw(st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY.encode(), b"\0", b"abc"]), max_size=30))
    content = b"".join(payload).replace(f"\r\n--{BOUNDARY}".encode(), b"")
    body = part("model", b"demo") + part("file", content, "a.wav") + part("task", b"translate") + END
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    form, taken = reader(), bytearray()
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        form.feed(body[start:end])
        taken += form.take()
    form.finish()
    assert form.file_name == "a.wav"
    assert bytes(taken) == content
    assert form.fields == {"model": ["demo"], "task": ["translate"]}


@given(st.binary(max_size=400))
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes) -> None:
    for body in (garbage, part("model", b"demo") + garbage, WAV[:40] + garbage):
        with pytest.raises(InvalidRequest):
            read(body)


def test_the_fields_before_the_file_are_seen_before_the_file() -> None:
    seen: list[dict[str, list[str]]] = []
    form = FormReader(TYPE, max_file_bytes=100, on_file=lambda fields: seen.append(dict(fields)))
    form.feed(part("model", b"demo") + WAV[:-9])
    assert seen == [{"model": ["demo"]}]


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        (None, "not_multipart"),
        ("", "not_multipart"),
        ("application/x-www-form-urlencoded", "not_multipart"),
        ("application/json", "not_multipart"),
        ("multipart/form-data", "not_multipart"),
        ("multipart/form-data; boundary=", "not_multipart"),
        (f"multipart/form-data; boundary={'x' * 300}", "invalid_multipart"),
    ],
)
def test_other_bodies_are_refused(content_type: str | None, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        reader(content_type)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "last boundary"),
        (WAV, "last boundary"),
        (WAV + WAV + END, "two files"),
        (part("audio", b"RIFF", "a.wav") + END, "send it in the field `file`"),
        (part("", b"x") + WAV + END, "no name"),
        (part("prompt", b"\xff\xfe") + WAV + END, "prompt is not UTF-8"),
        (part("a", b"1") * 66 + WAV + END, "more than 64 fields"),
        (part("prompt", b"x" * (MAX_FIELD_BYTES + 1)) + WAV + END, "prompt is longer than 64 KiB"),
        (b"--%b\r\nX: %b\r\n\r\n" % (BOUNDARY.encode(), b"x" * 9000), "broken"),
        (b"--%b\r\n%b\r\n" % (BOUNDARY.encode(), b"X: y\r\n" * 50), "broken"),
        (WAV + END + b"x" * (MAX_BESIDE_FILE_BYTES + 1), "too large"),
        (b"\r\n" * MAX_BESIDE_FILE_BYTES + WAV + END, "too large"),
        (b"hello" + WAV + END, "broken"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read(body)


def test_voices_are_longer_than_other_fields_and_have_a_limit_too() -> None:
    name = "known_speaker_references[]"
    voice = b"x" * MAX_REFERENCE_CHARACTERS
    form, _ = read(part(name, voice) * 4 + WAV + END)
    assert [len(value) for value in form.fields[name]] == [MAX_REFERENCE_CHARACTERS] * 4
    with pytest.raises(InvalidRequest, match="longer than 3072 KiB") as caught:
        read(part(name, voice + b"x") + WAV + END)
    assert caught.value.param == name
    with pytest.raises(InvalidRequest, match="longer"):
        read(part(name, voice) * 4 + part(name, b"x") + WAV + END)


def test_64_fields_are_not_too_many() -> None:
    form, _ = read(part("temperature", b"0") * 64 + WAV + END)
    assert len(form.fields["temperature"]) == 64


def test_a_file_may_be_as_large_as_the_limit_and_no_larger() -> None:
    read(part("file", b"x" * 1000, "a") + END, max_file_bytes=1000)
    with pytest.raises(TooLarge):
        read(part("file", b"x" * 1001, "a") + END, max_file_bytes=1000)


def test_a_file_without_a_name_is_a_file() -> None:
    form, file = read(part("file", b"RIFF") + END)
    assert (form.file_name, file) == ("audio", b"RIFF")


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("talk.mp3", "talk.mp3"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\talk.mp3", "talk.mp3"),
        ("a\0b\x1b[31m\n.wav", "ab[31m.wav"),
        ("invoice\u202e3pm.exe", "invoice3pm.exe"),
        ("e\u0301te\u0301.ogg", "\u00e9t\u00e9.ogg"),
        ("<script>alert(1)</script>.wav", "script>.wav"),
        ("", "audio"),
        ("/", "audio"),
        ("\u200f", "audio"),
        ("-i", "-i"),
        ("x" * 5000 + ".flac", "x" * 250 + ".flac"),
        ("я" * 300, "я" * 127),
    ],
)
def test_names_are_cleaned_for_display(sent: str, shown: str) -> None:
    assert display_name(sent) == shown


@given(st.text(max_size=600))
def test_any_name_can_be_shown(sent: str) -> None:
    shown = display_name(sent)
    assert 0 < len(shown.encode()) <= MAX_NAME_BYTES
    assert not {"/", "\\", "\0", "\n"} & set(shown)
    assert all(unicodedata.category(char) not in ("Cc", "Cf", "Cs") for char in shown)


@given(st.binary(max_size=60))
def test_any_header_of_a_file_is_read_or_refused(raw: bytes) -> None:
    body = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\nx\r\n' % (BOUNDARY.encode(), raw)
    form = reader()
    try:
        form.feed(body + END)
    except GpuDaemonError as error:
        assert isinstance(error, InvalidRequest)  # noqa: PT017 - either may happen
    else:
        assert form.file_name is None or form.file_name == display_name(form.file_name)
