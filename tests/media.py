"""Files that are hard on a decoder, and the two ffmpeg programs to try them with."""

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Literal

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest

from gpu_daemon.audio.ffmpeg import find_ffmpeg

Which = Literal["system", "bundled"]
BOTH: tuple[Which, ...] = ("system", "bundled")
Pcm = npt.NDArray[np.int16]


def use_ffmpeg(which: Which, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Path:
    """From here on `find_ffmpeg` gives this one."""
    if which == "system":
        if shutil.which("ffmpeg") is None:
            pytest.skip("no system ffmpeg")
    else:
        (directory / "bin").mkdir()
        (directory / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        monkeypatch.setenv("PATH", f"{directory / 'bin'}:/usr/bin:/bin")
    return find_ffmpeg()


def ffmpeg(*arguments: str | Path, given: bytes = b"") -> bytes:
    """Without any limits: to make what the tests send, and to compare with."""
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", *arguments]
    return subprocess.run(command, input=given, check=True, stdout=subprocess.PIPE).stdout


def read_pcm(path: Path, first_byte: int = 0) -> Pcm:
    return np.fromfile(path, "<i2", offset=first_byte)


def noise(n_samples: int, peak: int = 8000, seed: int = 0) -> Pcm:
    return np.random.default_rng(seed).integers(-peak, peak, n_samples).astype("<i2")


def silence(n_samples: int) -> Pcm:
    return np.zeros(n_samples, "<i2")


def wav(samples: bytes, *, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    """16 bit, with a header that may say anything."""
    block_bytes = 2 * channels
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, channels),
        *(rate_hz, rate_hz * block_bytes & 0xFFFFFFFF, block_bytes, 16, b"data", len(samples)),
    )
    return header + samples


def avi_with_subtitles(samples: bytes, subtitles: bytes) -> bytes:
    """Mono 16 kHz audio, and subtitles embedded the way (GAB2) that made old ffmpegs open playlists found in them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    def stream(kind: bytes, scale: int, rate: int, length: int, format_: bytes) -> bytes:
        header = struct.pack("<4s4sIHHIIIIIIII4H", kind, b"\0" * 4, *(0,) * 4, scale, rate, 0, length, *(0,) * 7)
        return chunk(b"LIST", b"strl" + chunk(b"strh", header) + chunk(b"strf", format_))

    gab2 = b"GAB2\0" + struct.pack("<HI", 2, 2) + b"x\0" + struct.pack("<HI", 4, len(subtitles)) + subtitles
    pcm_format = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    headers = (
        chunk(b"avih", struct.pack("<14I", 40_000, *(0,) * 5, 2, *(0,) * 7))
        + stream(b"auds", 1, 16_000, len(samples) // 2, pcm_format)
        + stream(b"txts", 1, 25, 1, b"")
    )
    movie = b"movi" + chunk(b"01tx", gab2) + chunk(b"00wb", samples)
    return chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"hdrl" + headers) + chunk(b"LIST", movie))


def flac_claiming(flac: bytes, total_samples: int) -> bytes:
    """The same audio under a header that gives it this length: 36 bits, 21 bytes into the file."""
    kept = flac[21] & 0xF0
    return flac[:21] + bytes([kept | total_samples >> 32]) + struct.pack(">I", total_samples & 0xFFFFFFFF) + flac[26:]
