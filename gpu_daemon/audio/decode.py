"""From the client's file to what the engine hears: 16 kHz, signed 16 bit, on the file's own timeline.

Mono; or, where each channel is a speaker, all channels, sample by sample in turn.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu_daemon.audio.ffmpeg import FfmpegTimeout, Finished, run_ffmpeg
from gpu_daemon.audio.graph import BYTES_PER_SAMPLE, all_audio, counted
from gpu_daemon.audio.probe import TOO_MANY_STREAMS, AudioInfo, check_channels, examine
from gpu_daemon.audio.wave import HEADER, loud_at_once, plain_samples, start_of
from gpu_daemon.blocking import blocking
from gpu_daemon.errors import JobError, NotMedia, TooLarge
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.logs import log

TIMEOUT_BASE_S = 60.0
TIMEOUT_PER_AUDIO_S = 0.25
"""ffmpeg decodes hundreds of seconds of audio per second on a core of its own."""


@dataclass(frozen=True, slots=True)
class Decoded:
    path: Path
    first_byte: int
    """Where in it the samples begin."""
    channels: int
    n_samples: int
    """Of each channel, as is the next."""
    skip_samples: int
    """Leading silence."""

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLE_RATE_HZ


async def decode(
    source: Path, target: Path, *, max_duration_s: int, trim_silence: bool, split: bool = False
) -> Decoded:
    """Into `target`, unless the engine can hear `source` as it is. `split`: do not mix the channels.

    Raises NotMedia, TooLarge, InvalidRequest, JobError; there is no target then, nor when the caller is cancelled.
    """
    timeout_s = TIMEOUT_BASE_S + TIMEOUT_PER_AUDIO_S * max_duration_s
    complete = False
    try:
        if (heard := await blocking(partial(_as_it_is, source, max_duration_s, trim_silence))) is not None:
            return heard
        info = await examine(source, timeout_s)
        if split:
            check_channels(info)
        decoded = await _decode(source, target, info, max_duration_s, trim_silence, split, timeout_s)
        complete = True
        return decoded
    except FfmpegTimeout as error:
        raise JobError(f"decoding was given up after {timeout_s:.0f} s", code="decode_timeout") from error
    finally:
        if not complete:
            target.unlink(missing_ok=True)


def plain_audio(source: Path, size_bytes: int) -> Decoded:
    """Of a file that `plain_samples` knows, with no silence to be dropped."""
    return Decoded(source, HEADER.size, 1, (size_bytes - HEADER.size) // BYTES_PER_SAMPLE, 0)


def _as_it_is(source: Path, max_duration_s: int, trim_silence: bool) -> Decoded | None:
    """A file that needs no decoding, nor silence to be counted; None: another. Blocks."""
    start, size_bytes = start_of(source)
    n_samples = plain_samples(start, size_bytes)
    if n_samples is None or (trim_silence and not loud_at_once(start)):
        return None
    if n_samples > max_duration_s * SAMPLE_RATE_HZ:
        raise _too_long(max_duration_s)
    return plain_audio(source, size_bytes)


async def _decode(
    source: Path,
    target: Path,
    info: AudioInfo,
    max_duration_s: int,
    trim_silence: bool,
    split: bool,
    timeout_s: float,
) -> Decoded:
    channels, layout = (info.channels, info.layout) if split else (1, "mono")
    sample_bytes = BYTES_PER_SAMPLE * channels
    lead_samples = round(info.starts_at_s * SAMPLE_RATE_HZ)
    room_samples = max_duration_s * SAMPLE_RATE_HZ - lead_samples
    if room_samples < 0:
        raise _too_long(max_duration_s)
    output_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # What comes before the first sample is a hole in the file: it reads as zeros and takes no space.
        os.lseek(output_fd, lead_samples * sample_bytes, os.SEEK_SET)
        # One sample more than allowed tells a file that is too long from one that just fits.
        most_samples = room_samples + 1
        finished = await run_ffmpeg(
            all_audio(
                source,
                output_fd,
                container=info.container,
                layout=layout,
                most_samples=most_samples,
                lead_samples=lead_samples,
                trim_silence=trim_silence,
            ),
            timeout_s=timeout_s,
            max_file_bytes=(lead_samples + most_samples) * sample_bytes,
            output_fd=output_fd,
        )
    finally:
        os.close(output_fd)
    n_samples = target.stat().st_size // sample_bytes
    if n_samples > max_duration_s * SAMPLE_RATE_HZ:
        raise _too_long(max_duration_s)
    if finished.status != 0 or n_samples == 0 or TOO_MANY_STREAMS in finished.stderr:
        log.warning("audio.undecodable", status=finished.status, stderr=finished.stderr[-2000:])
        raise _failure(finished)
    if "[error]" in finished.stderr:
        log.info("audio.damaged", decoded_s=n_samples / SAMPLE_RATE_HZ, stderr=finished.stderr[-2000:])
    heard_samples = counted(finished.stdout, channels) if trim_silence else None
    return Decoded(target, 0, channels, n_samples, 0 if heard_samples is None else max(0, n_samples - heard_samples))


def _too_long(max_duration_s: int) -> TooLarge:
    return TooLarge(f"the audio is longer than the limit of {max_duration_s} s", code="too_long", param="file")


def _no_space() -> JobError:
    return JobError("there is no disk space left to decode the audio", code="disk_full", retryable=True)


def _failure(finished: Finished) -> NotMedia | JobError:
    if "No space left on device" in finished.stderr:
        return _no_space()
    if "Cannot allocate memory" in finished.stderr:
        return NotMedia("decoding the audio takes more memory than allowed", code="decode_failed")
    return NotMedia("the audio in the file is damaged: it cannot be decoded", code="decode_failed")
