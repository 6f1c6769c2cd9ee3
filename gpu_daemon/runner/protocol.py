"""Messages between a worker and its runner (no torch here).

A frame is a header of 10 bytes (version, length of head, length of body), a JSON head and a raw body. The body carries
what the parent need not understand: the finished transcript passes through the daemon as bytes.
"""

import struct
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gpu_daemon.engine.base import ModelSpec, NoPipeline, SpeakerRequest
from gpu_daemon.jobs.model import JobId, JobOptions
from gpu_daemon.jobs.state import Stage

VERSION = 1
HEADER = struct.Struct("!HII")  # version, head bytes, body bytes
MAX_HEAD_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 28
PIPELINE = "diarization: "
"""Before the name of one, where what is loaded is told."""


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Launch(Message):
    """The child's one argument."""

    socket_fd: int
    parent_pid: int
    device: Literal["cpu", "cuda", "rocm"]
    model_idle_s: float
    vram_reserve_mb: int
    pyannote_device: Literal["auto", "cuda", "cpu"] = "auto"


# Parent to child.
class Run(Message):
    kind: Literal["run"] = "run"
    job_id: JobId
    model: ModelSpec
    audio_path: Path
    """s16le, 16 kHz"""
    first_byte: int
    """Where in it the samples begin."""
    channels: int
    skip_samples: int
    """Leading silence that is not decoded; the transcript's times count from the start of the file all the same."""
    options: JobOptions
    speakers: SpeakerRequest | NoPipeline | None = None
    """None: nobody asked who speaks."""


class Cancel(Message):
    kind: Literal["cancel"] = "cancel"
    job_id: JobId


class Conclude(Message):
    """Who speaks is not waited for any more: the transcript is the answer, and says so."""

    kind: Literal["conclude"] = "conclude"
    job_id: JobId
    code: str
    message: str


class Unload(Message):
    kind: Literal["unload"] = "unload"
    model: str | None = None
    """None: every model."""


class Ping(Message):
    kind: Literal["ping"] = "ping"
    number: int


class Stop(Message):
    kind: Literal["stop"] = "stop"


# Child to parent.
class Hello(Message):
    """The child has imported its engine and takes work."""

    kind: Literal["hello"] = "hello"
    device_name: str
    torch_version: str


class Pong(Message):
    kind: Literal["pong"] = "pong"
    number: int


class JobProgress(Message):
    kind: Literal["progress"] = "progress"
    job_id: JobId
    stage: Stage
    fraction: float
    """0..1 of this stage"""


class JobSegments(Message):
    """Newly heard. Its body is a JSON list of Segment, on the timeline of the file."""

    kind: Literal["segments"] = "segments"
    job_id: JobId
    first: int
    """The number of the first of them: how many were sent before."""


class Done(Message):
    """Its body is the Transcript as JSON."""

    kind: Literal["done"] = "done"
    job_id: JobId
    timings: dict[str, float]
    """Seconds by stage."""
    duration_s: float
    token_count: int
    language: str
    without_speakers: bool = False
    """They were asked for, and could not be told this time."""


class Failed(Message):
    kind: Literal["failed"] = "failed"
    job_id: JobId
    code: str
    message: str
    retryable: bool = False
    """Another attempt may cure it."""


class Models(Message):
    """What is in memory now; sent whenever it changes."""

    kind: Literal["models"] = "models"
    loaded: dict[str, int]
    """Bytes by model name."""


ToRunner = Run | Cancel | Conclude | Unload | Ping | Stop
FromRunner = Hello | Pong | JobProgress | JobSegments | Done | Failed | Models
AnyMessage = Annotated[ToRunner | FromRunner, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[AnyMessage] = TypeAdapter(AnyMessage)


class ProtocolError(Exception):
    pass


def encode(message: AnyMessage, body: bytes = b"") -> bytes:
    head = message.model_dump_json().encode()
    return HEADER.pack(VERSION, len(head), len(body)) + head + body


def parse_header(header: bytes) -> tuple[int, int]:
    """Lengths of head and body in bytes. Raises ProtocolError."""
    version, head_bytes, body_bytes = HEADER.unpack(header)
    if version != VERSION:
        raise ProtocolError(f"the other side speaks version {version}, this one {VERSION}")
    if head_bytes > MAX_HEAD_BYTES or body_bytes > MAX_BODY_BYTES:
        raise ProtocolError(f"a frame of {head_bytes} + {body_bytes} bytes is over the limit")
    return head_bytes, body_bytes


def decode(head: bytes) -> AnyMessage:
    """Raises ProtocolError."""
    try:
        return _ADAPTER.validate_json(head)
    except ValueError as error:
        raise ProtocolError(f"not a message: {error}") from error
