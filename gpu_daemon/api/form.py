"""A multipart/form-data body as it comes, piece by piece (pure: no I/O, no clock).

Starlette's own form parser puts no limit on file parts and spools them elsewhere first.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gpu_daemon.api.voices import MAX_REFERENCE_CHARACTERS, MAX_VOICES, REFERENCE_FIELDS
from gpu_daemon.errors import InvalidRequest, TooLarge
from gpu_daemon.jobs.file_name import display_name

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD = "file"
MAX_PARTS = 65
"""The file and 64 fields."""
MAX_FIELD_BYTES = 64 * 1024
MAX_BESIDE_FILE_BYTES = 1 << 20
"""All the body that is not the file, nor a voice: fields, headers, boundaries, and whatever stands before and after
them."""
MAX_VOICES_BYTES = MAX_VOICES * MAX_REFERENCE_CHARACTERS
SHOWN_CHARACTERS = 50
MAX_KNOWN_BYTES = 200
"""Of a header that is remembered."""


class FormReader:
    """Feed it the body; it keeps the fields, and hands out the file's bytes as they are taken."""

    def __init__(
        self, content_type: str | None, *, max_file_bytes: int, on_file: Callable[[dict[str, list[str]]], None]
    ) -> None:
        """`on_file` is given the fields that came before the file, as soon as the file begins: it may refuse them.

        Raises InvalidRequest.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest(
                "send the audio as multipart/form-data, in the field `file`; or its `url`, also as application/json",
                code="not_multipart",
                param=FILE_FIELD,
            )
        self.fields: dict[str, list[str]] = {}
        self.file_name: str | None = None
        """What the client called the file; None: no file has come."""
        self.file_size_bytes = 0
        self.ended = False
        """The last boundary was seen."""
        self._file_bytes = bytearray()
        self._max_file_bytes = max_file_bytes
        self._on_file = on_file
        self._body_bytes = 0
        self._voices_bytes = 0
        self._parts = 0
        self._name = ""
        self._value: bytearray | None = None
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition: Mapping[bytes, bytes] = {}
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise InvalidRequest("the boundary in Content-Type is too long", code="invalid_multipart") from error

    @property
    def waiting_bytes(self) -> int:
        """Of the file, read and not yet taken."""
        return len(self._file_bytes)

    def take(self) -> bytearray:
        """The file's next bytes."""
        taken, self._file_bytes = self._file_bytes, bytearray()
        return taken

    def feed(self, body: bytes) -> None:
        """Raises InvalidRequest, TooLarge."""
        self._body_bytes += len(body)
        try:
            self._parser.write(body)
        except FormParserError as error:
            raise InvalidRequest(f"the multipart body is broken: {error}"[:200], code="invalid_multipart") from error
        if self._body_bytes - self.file_size_bytes - self._voices_bytes > MAX_BESIDE_FILE_BYTES:
            raise InvalidRequest("the fields of the form are too large", code="invalid_multipart")

    def finish(self) -> None:
        """The whole body was fed. Raises InvalidRequest when its end is missing."""
        if not self.ended:
            raise InvalidRequest("the multipart body ends before its last boundary", code="invalid_multipart")

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_more,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS - 1} fields", code="invalid_multipart")
        self._disposition = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_more(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            header = bytes(self._header_value)
            self._disposition = _known_options(header) if len(header) <= MAX_KNOWN_BYTES else _options(header)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        self._name = _text(self._disposition.get(b"name", b""), "a field's name")
        file_name = self._disposition.get(b"filename")
        if self._name == FILE_FIELD:
            if self.file_name is not None:
                raise InvalidRequest("the form has two files; send one file per job", param=FILE_FIELD)
            self._on_file(self.fields)
            self.file_name = display_name((file_name or b"").decode(errors="replace"))
            self._value = None
        elif file_name is not None:
            shown = self._name[:SHOWN_CHARACTERS]
            raise InvalidRequest(f"a file came in the field {shown!r}; send it in the field `file`", param=shown)
        elif not self._name:
            raise InvalidRequest("a part of the form has no name", code="invalid_multipart")
        else:
            self._value = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self.file_size_bytes += end - start
            if self.file_size_bytes > self._max_file_bytes:
                raise TooLarge(
                    f"the file is larger than the limit of {self._max_file_bytes // 1024 // 1024} MB", param=FILE_FIELD
                )
            self._file_bytes += data[start:end]
        else:
            self._value += data[start:end]
            is_voice = self._name in REFERENCE_FIELDS
            if is_voice:
                self._voices_bytes += end - start
            limit = MAX_REFERENCE_CHARACTERS if is_voice else MAX_FIELD_BYTES
            if len(self._value) > limit or self._voices_bytes > MAX_VOICES_BYTES:
                shown = self._name[:SHOWN_CHARACTERS]
                raise InvalidRequest(f"{shown} is longer than {limit // 1024} KiB", param=shown)

    def _part_end(self) -> None:
        if self._value is not None:
            self.fields.setdefault(self._name, []).append(_text(self._value, self._name[:SHOWN_CHARACTERS]))

    def _end(self) -> None:
        self.ended = True


def _options(header: bytes) -> Mapping[bytes, bytes]:
    return parse_options_header(header.decode("latin-1"))[1]


_known_options = lru_cache(maxsize=256)(_options)
"""The same few come with every form."""


def _text(raw: bytes | bytearray, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{what} is not UTF-8", code="invalid_multipart") from None
