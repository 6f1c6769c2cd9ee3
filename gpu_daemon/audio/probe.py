"""What a file is, before it becomes a job: its header is read and its first sounds are decoded.

By ffmpeg itself, as imageio-ffmpeg brings no ffprobe: codec and duration come from what it prints, all else from the
frames. Only a WAV file that needs no decoding is known without it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gpu_daemon.audio.allowed import MAX_STREAMS
from gpu_daemon.audio.ffmpeg import FfmpegTimeout, Finished, run_ffmpeg
from gpu_daemon.audio.graph import first_frames
from gpu_daemon.audio.wave import plain_samples, start_of
from gpu_daemon.errors import InvalidRequest, NotMedia, TooLarge, Unavailable
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.logs import log

PROBED_FRAMES = 8
SAMPLE_RATES_HZ = range(1_000, 768_001)
MAX_CHANNELS = 64
"""What libswresample can mix."""
MAX_SPEAKERS = 8
"""Channels that are transcribed each on its own: every one is the work of a file."""
MAX_LATE_START_S = 10.0
ZERO_BASED = {"mov", "matroska"}
"""Containers whose clock starts at 0 by their definition; elsewhere it starts anywhere, as a broadcast does."""

_INPUT = re.compile(r"^\[info\] Input #0, (\S+), from", re.MULTILINE)
_DURATION = re.compile(
    r"^\[info\]   Duration: (?:(\d+):(\d\d):(\d\d\.\d+)|N/A)(?:, start: (-?\d+\.\d+))?", re.MULTILINE
)
_AUDIO = re.compile(r"^\[info\]   Stream #0:\d+.*?: Audio: (\w+)", re.MULTILINE)
_VIDEO = re.compile(r"^\[info\]   Stream #0:\d+.*?: Video: (?!.*\(attached pic\))", re.MULTILINE)
_RATE = re.compile(r"^#sample_rate 0: (\d+)$", re.MULTILINE)
_LAYOUT = re.compile(r"^#channel_layout_name 0: (.+)$", re.MULTILINE)
_FRAME = re.compile(r"^0, +-?\d+, +(-?\d+), +(\d+), +(\d+),", re.MULTILINE)
TOO_MANY_STREAMS = "exceeds max_streams"
"""ffmpeg takes that for the end of the file."""
_NOT_MEDIA = (
    ("matches no streams", "the file has no audio stream"),
    (TOO_MANY_STREAMS, f"the file has more than {MAX_STREAMS} streams"),
    ("moov atom not found", "the file is cut off: the index at its end is missing"),
    ("Format not on whitelist", "files of this kind are not accepted: send audio or video"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioInfo:
    duration_s: float | None
    """As the container says, which may be wrong; None when it does not say, or ffmpeg would have to guess."""
    codec: str
    sample_rate_hz: int
    channels: int
    layout: str
    """Which they are, as ffmpeg calls it."""
    has_video: bool
    container: str
    """ffmpeg's first name for it."""
    starts_at_s: float
    """Where the first sample lies on the file's timeline: in a video the sound may come late."""


async def probe(source: Path, *, timeout_s: float = 20.0) -> AudioInfo:
    """Raises NotMedia with a sentence for the client; Unavailable, when the machine is too busy to tell."""
    try:
        return await examine(source, timeout_s)
    except FfmpegTimeout:
        raise Unavailable("the file could not be examined in time; try again later", retry_after_s=30) from None


def check_duration(info: AudioInfo, max_duration_s: int) -> None:
    """As far as the container says how long it is. Raises TooLarge."""
    if info.duration_s is not None and info.duration_s > max_duration_s:
        raise TooLarge(
            f"the audio lasts {info.duration_s:.0f} s, the limit is {max_duration_s} s", code="too_long", param="file"
        )


def check_channels(info: AudioInfo) -> None:
    """That each can be a speaker. Raises InvalidRequest."""
    if info.channels > MAX_SPEAKERS:
        raise InvalidRequest(
            f"the audio has {info.channels} channels; channel_mode=split takes up to {MAX_SPEAKERS} (mix takes more)",
            code="too_many_channels",
            param="channel_mode",
        )


async def examine(source: Path, timeout_s: float) -> AudioInfo:
    """Raises NotMedia, FfmpegTimeout."""
    start, size_bytes = start_of(source)
    if size_bytes == 0:
        raise NotMedia("the file is empty", param="file")
    if (info := plain(start, size_bytes)) is not None:
        return info
    finished = await run_ffmpeg(first_frames(source, PROBED_FRAMES), timeout_s=timeout_s)
    try:
        return described(finished)
    except NotMedia as error:
        log.info("audio.rejected", reason=error.message, status=finished.status, stderr=finished.stderr[-2000:])
        raise


def plain(start: bytes, size_bytes: int) -> AudioInfo | None:
    """Of a file that is known by its first bytes, without ffmpeg; None: of another (pure)."""
    n_samples = plain_samples(start, size_bytes)
    return None if n_samples is None else plain_info(n_samples)


def plain_info(n_samples: int) -> AudioInfo:
    """Of a file that `plain_samples` knows, as ffmpeg would describe it (pure)."""
    return AudioInfo(
        duration_s=(200 * n_samples + SAMPLE_RATE_HZ) // (2 * SAMPLE_RATE_HZ) / 100,
        codec="pcm_s16le",
        sample_rate_hz=SAMPLE_RATE_HZ,
        channels=1,
        layout="mono",
        has_video=False,
        container="wav",
        starts_at_s=0.0,
    )


def described(finished: Finished) -> AudioInfo:
    """From what ffmpeg printed (pure). Raises NotMedia."""
    said, found = finished.stderr, _AUDIO.search(finished.stderr)
    container = _INPUT.search(said)
    if found is None or container is None or TOO_MANY_STREAMS in said:
        raise NotMedia(_reason(said), param="file")
    codec, rate, frame = found[1], _RATE.search(finished.stdout), _FRAME.search(finished.stdout)
    if rate is None or frame is None:
        if finished.status == 0:
            raise NotMedia("the file has an audio stream without any audio in it", param="file")
        raise NotMedia(
            f"the audio ({codec}) cannot be decoded: damaged, encrypted, or of an unknown kind", param="file"
        )
    sample_rate_hz, layout = int(rate[1]), _LAYOUT.search(finished.stdout)
    pts, n_samples, n_bytes = (int(number) for number in frame.groups())
    channels = n_bytes // (2 * max(1, n_samples))
    if sample_rate_hz not in SAMPLE_RATES_HZ:
        raise NotMedia(f"audio of {sample_rate_hz} samples per second is not supported", param="file")
    if channels > MAX_CHANNELS or layout is None or layout[1].endswith(" channels"):
        raise NotMedia(f"audio of {channels} channels of unknown places cannot be mixed to one", param="file")
    duration_s, start_s = _times(said, codec)
    name = container[1].split(",")[0]
    clock_starts_s = 0.0 if name in ZERO_BASED and -1.0 <= start_s <= MAX_LATE_START_S else start_s
    starts_at_s = max(0.0, pts / sample_rate_hz - clock_starts_s)
    return AudioInfo(
        duration_s=duration_s,
        codec=codec,
        sample_rate_hz=sample_rate_hz,
        channels=channels,
        layout=layout[1],
        has_video=_VIDEO.search(said) is not None,
        container=name,
        starts_at_s=0.0 if duration_s is not None and starts_at_s >= duration_s else starts_at_s,
    )


def _times(said: str, codec: str) -> tuple[float | None, float]:
    """Duration, and when the container's clock starts, in seconds."""
    if (times := _DURATION.search(said)) is None:
        return None, 0.0
    start_s = 0.0 if times[4] is None else float(times[4])
    guessed = "Estimating duration from bitrate" in said and not codec.startswith("pcm_")
    if guessed or times[1] is None:
        return None, start_s
    return int(times[1]) * 3600 + int(times[2]) * 60 + float(times[3]), start_s


def _reason(said: str) -> str:
    for sign, sentence in _NOT_MEDIA:
        if sign in said:
            return sentence
    return "this is not audio or video that ffmpeg can read"
