"""Files that need no decoding: the same without ffmpeg as with either ffmpeg, and whatever differs is left to it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.audio import decode as decode_module
from gpu_daemon.audio import probe as probe_module
from gpu_daemon.audio.decode import Decoded, decode
from gpu_daemon.audio.probe import AudioInfo, probe
from gpu_daemon.audio.wave import HEAD_WINDOWS, HEADER, MOST_BYTES, WINDOW_SAMPLES, plain_samples, start_of
from gpu_daemon.errors import TooLarge
from tests.media import BOTH, Pcm, noise, silence, use_ffmpeg, wav

HEAD = HEAD_WINDOWS * WINDOW_SAMPLES
FULL = 32767


def tone(n_samples: int, peak: float) -> Pcm:
    samples: Pcm = (np.sin(np.arange(n_samples) * 0.2) * peak).astype("<i2")
    return samples


def after(lead: int, sound: Pcm) -> Pcm:
    return np.concatenate([silence(lead), sound])


EARLY: dict[str, Pcm] = {
    "at once": noise(30_001),
    "loud from the first sample on": np.where(np.arange(20_000) // 40 % 2, -FULL, FULL).astype("<i2"),
    "in the last window that is looked at": after(HEAD - WINDOW_SAMPLES, noise(20_000)),
    "just loud enough": tone(20_000, 0.021 * 2**0.5 * FULL),
    "a click, then silence": np.concatenate([silence(WINDOW_SAMPLES), noise(WINDOW_SAMPLES, FULL), silence(40_000)]),
    "one window": noise(WINDOW_SAMPLES),
}
LATE: dict[str, Pcm] = {
    "after half a second": after(8_000, noise(20_000)),
    "in the first window that is not looked at": after(HEAD, noise(20_000)),
    "after ten seconds": after(160_000, noise(20_000)),
    "never": silence(20_000),
    "faint": noise(20_000, 500),
    "less than a window": noise(WINDOW_SAMPLES - 1),
    "one sample": noise(1),
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each ffmpeg that is started."""
    commands: list[list[str]] = []
    for module in (probe_module, decode_module):
        run: Callable[..., object] = module.run_ffmpeg

        def counted(arguments: list[str], run: Callable[..., object] = run, **options: object) -> object:
            commands.append(arguments)
            return run(arguments, **options)

        monkeypatch.setattr(module, "run_ffmpeg", counted)
    return commands


async def taken(source: Path, *, trim_silence: bool) -> tuple[AudioInfo, Decoded, bytes]:
    """What of the audio is the same wherever it lies."""
    info = await probe(source)
    target = source.with_suffix(".s16")
    target.unlink(missing_ok=True)
    decoded = await decode(source, target, max_duration_s=60, trim_silence=trim_silence)
    assert decoded.path == (target if target.exists() else source)
    assert decoded.path == source or target.stat().st_mode & 0o777 == 0o600
    samples = decoded.path.read_bytes()[decoded.first_byte :]
    return info, dataclasses.replace(decoded, path=source, first_byte=0), samples


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("sound", [*EARLY, *LATE])
async def test_what_ffmpeg_would_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[list[str]], sound: str, which: str
) -> None:
    use_ffmpeg(which, monkeypatch, tmp_path)  # type: ignore[arg-type]
    source = tmp_path / "source"
    source.write_bytes(wav((EARLY | LATE)[sound].tobytes()))
    ours = [await taken(source, trim_silence=trim_silence) for trim_silence in (True, False)]
    assert len(started) == (0 if sound in EARLY else 1), "to count the silence"
    for module in (probe_module, decode_module):
        monkeypatch.setattr(module, "plain_samples", lambda *_: None)
    assert ours == [await taken(source, trim_silence=trim_silence) for trim_silence in (True, False)]
    assert len(started) >= 6


@pytest.mark.parametrize("n_samples", [*range(79, 83), *range(239, 243), 16_000, 100_079, 100_080, 100_081])
async def test_how_long_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_samples: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(wav(noise(n_samples).tobytes()))
    ours = await probe(source)
    monkeypatch.setattr(probe_module, "plain_samples", lambda *_: None)
    assert dataclasses.asdict(ours) == dataclasses.asdict(await probe(source))


def test_what_is_left_to_ffmpeg(tmp_path: Path) -> None:
    samples = noise(1000).tobytes()
    plain = wav(samples)

    def with_header(*, at: int, value: bytes) -> bytes:
        return plain[:at] + value + plain[at + len(value) :]

    source = tmp_path / "source"
    source.write_bytes(plain)
    assert plain_samples(*start_of(source)) == 1000
    for other in (
        wav(samples, channels=2),
        wav(samples, rate_hz=8_000),
        wav(b""),
        wav(samples + b"x"),
        plain + b"LIST",
        plain[:-2],
        plain[: HEADER.size],
        plain[:20],
        b"ID3" + plain,
        with_header(at=0, value=b"RIFX"),
        with_header(at=4, value=b"\xff\xff\xff\xff"),
        with_header(at=8, value=b"AVI "),
        with_header(at=20, value=b"\x03\x00"),
        with_header(at=34, value=b"\x08\x00"),
        with_header(at=40, value=b"\xff\xff\xff\xff"),
        with_header(at=36, value=b"fact"),
    ):
        source.write_bytes(other)
        assert plain_samples(*start_of(source)) is None
    with source.open("wb") as file:
        size = MOST_BYTES + 2
        file.write(HEADER.pack(b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", size))
        file.truncate(HEADER.size + size)
    assert plain_samples(*start_of(source)) is None


async def test_too_long_and_just_not(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(wav(noise(16_001).tobytes()))
    with pytest.raises(TooLarge, match="limit of 1 s"):
        await decode(source, target, max_duration_s=1, trim_silence=True)
    assert not target.exists()
    source.write_bytes(wav(noise(16_000).tobytes()))
    assert await decode(source, target, max_duration_s=1, trim_silence=True) == Decoded(source, 44, 1, 16_000, 0)
    assert not target.exists()
