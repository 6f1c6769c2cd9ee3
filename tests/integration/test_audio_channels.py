"""Channels that stay apart: one speaker in each; with either ffmpeg."""

from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.audio.decode import Decoded, decode
from gpu_daemon.audio.probe import probe
from gpu_daemon.errors import InvalidRequest
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.media import BOTH, Pcm, ffmpeg, noise, read_pcm, silence, use_ffmpeg, wav

S = SAMPLE_RATE_HZ


@pytest.fixture(params=BOTH, autouse=True)
def _ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_ffmpeg(request.param, monkeypatch, tmp_path)


async def hear(source: Path, *, trim_silence: bool = True) -> tuple[Decoded, Pcm]:
    """With the samples as int16[n_samples, channels]."""
    target = source.with_suffix(".s16")
    decoded = await decode(source, target, max_duration_s=60, trim_silence=trim_silence, split=True)
    samples = read_pcm(target).reshape(-1, decoded.channels)
    assert decoded.n_samples == len(samples)
    return decoded, samples


def beside(*channels: Pcm) -> bytes:
    return wav(np.stack(channels, axis=1).tobytes(), channels=len(channels))


@pytest.mark.parametrize("channels", [2, 3, 6, 8])
@pytest.mark.parametrize("trim_silence", [True, False])
async def test_each_channel_is_kept_as_it_is(tmp_path: Path, channels: int, trim_silence: bool) -> None:
    signals = [noise(2 * S, peak=2000 * (number + 1), seed=number) for number in range(channels)]
    (tmp_path / "source").write_bytes(beside(*signals))
    decoded, samples = await hear(tmp_path / "source", trim_silence=trim_silence)
    assert (decoded.channels, decoded.skip_samples) == (channels, 0)
    assert np.array_equal(samples, np.stack(signals, axis=1))


async def test_mono_is_one_channel(tmp_path: Path) -> None:
    signal = np.concatenate([silence(3 * S), noise(S)])
    (tmp_path / "source").write_bytes(wav(signal.tobytes()))
    decoded, samples = await hear(tmp_path / "source")
    assert decoded.channels == 1
    assert decoded.skip_samples == pytest.approx(2.5 * S, abs=400)
    assert np.array_equal(samples[:, 0], signal)


@pytest.mark.parametrize("first", [0, 1])
async def test_silence_at_the_start_ends_when_one_of_them_is_heard(tmp_path: Path, first: int) -> None:
    """In opposite phase, too, where a mix of them would be silent."""
    both = noise(2 * S)
    early, late = np.concatenate([silence(3 * S), both]), np.concatenate([silence(3 * S), -both])
    late[3 * S : 4 * S] = 0
    (tmp_path / "source").write_bytes(beside(*([early, late] if first == 0 else [late, early])))
    decoded, samples = await hear(tmp_path / "source")
    assert decoded.skip_samples == pytest.approx(2.5 * S, abs=400)
    assert np.array_equal(samples[:, first], early)


async def test_sound_that_comes_late_in_a_video_is_late_in_each(tmp_path: Path) -> None:
    (tmp_path / "voices.wav").write_bytes(beside(noise(3 * S), silence(3 * S)))
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc=size=96x64:rate=25:duration=5", "-itsoffset", "1.5"),
        *("-i", tmp_path / "voices.wav", "-map", "0:v", "-map", "1:a", "-c:v", "mpeg4", "-c:a", "flac"),
        *("-f", "matroska", tmp_path / "source"),
    )
    decoded, samples = await hear(tmp_path / "source")
    assert decoded.channels == 2
    assert decoded.duration_s == pytest.approx(4.5, abs=0.05)
    assert decoded.skip_samples / S == pytest.approx(1.0, abs=0.05)
    loud = np.flatnonzero(np.abs(samples) > 100)
    assert loud[0] // 2 / S == pytest.approx(1.5, abs=0.05)
    assert not samples[:, 1].any()


async def test_a_compressed_call_at_another_rate(tmp_path: Path) -> None:
    tones = ("-f", "lavfi", "-i", "aevalsrc=0.5*sin(2*PI*440*t)|0.5*sin(2*PI*1500*t):s=44100:d=2")
    ffmpeg(*tones, "-b:a", "128k", "-f", "mp3", tmp_path / "source")
    decoded, samples = await hear(tmp_path / "source")
    assert decoded.channels == 2
    for channel, tone_hz in enumerate((440, 1500)):
        spectrum = np.abs(np.fft.rfft(samples[S // 2 : 3 * S // 2, channel]))
        assert int(spectrum.argmax()) == tone_hz
        assert np.sort(spectrum)[-4:].sum() > 0.9 * spectrum.sum()


async def test_more_than_eight_are_refused(tmp_path: Path) -> None:
    pcm = ("-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "pipe:0")
    ffmpeg(*pcm, "-af", "aformat=channel_layouts=hexadecagonal", "-f", "wav", tmp_path / "source", given=bytes(S))
    assert (await probe(tmp_path / "source")).channels == 16
    with pytest.raises(InvalidRequest, match="16 channels; channel_mode=split takes up to 8") as refusal:
        await hear(tmp_path / "source")
    assert (refusal.value.code, refusal.value.param) == ("too_many_channels", "channel_mode")
    assert not (tmp_path / "source.s16").exists()
