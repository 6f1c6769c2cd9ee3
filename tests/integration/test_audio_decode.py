"""Right samples at the right time, whatever they come in; with either ffmpeg."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.audio.decode import Decoded, decode
from gpu_daemon.audio.probe import probe
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.media import BOTH, Pcm, ffmpeg, noise, read_pcm, silence, use_ffmpeg, wav
from tests.speech import CONTAINERS, Container, conversation, write

CODECS: dict[Container, tuple[str, str, int, int]] = {  # container, codec, rate, channels
    "wav": ("wav", "pcm_s16le", 44_100, 2),
    "mp3": ("mp3", "mp3", 44_100, 2),
    "m4a": ("mov", "aac", 44_100, 1),
    "ogg": ("ogg", "opus", 48_000, 1),
    "flac": ("flac", "flac", 16_000, 1),
    "webm": ("matroska", "opus", 48_000, 1),
    "mp4": ("mov", "aac", 48_000, 2),
    "telephone": ("wav", "pcm_mulaw", 8_000, 1),
}
SILENCEREMOVE = "silenceremove=start_periods=1:start_silence=0.5:start_threshold=-40dB"


@pytest.fixture(params=BOTH, autouse=True)
def _ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_ffmpeg(request.param, monkeypatch, tmp_path)


@dataclass(frozen=True, slots=True)
class Heard:
    decoded: Decoded
    samples: Pcm


async def hear(source: Path, *, trim_silence: bool = True, max_duration_s: int = 600) -> Heard:
    target = source.with_suffix(".s16")
    decoded = await decode(source, target, max_duration_s=max_duration_s, trim_silence=trim_silence)
    assert decoded.path == (target if target.exists() else source)
    samples = read_pcm(decoded.path, decoded.first_byte)
    assert decoded.n_samples == len(samples)
    return Heard(decoded, samples)


def lag_s(samples: Pcm, truth: Pcm) -> float:
    """By how much `samples` come later than `truth`, where they match best."""
    n = 1 << (len(samples) + len(truth)).bit_length()
    spectra = [np.fft.rfft(signal.astype(np.float64), n) for signal in (samples, truth)]
    correlation = np.fft.irfft(spectra[0] * np.conj(spectra[1]), n)
    best = int(np.argmax(correlation))
    return (best if best < n // 2 else best - n) / SAMPLE_RATE_HZ


def as_pcm(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Pcm:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2")


@pytest.mark.parametrize("container", CONTAINERS)
async def test_every_container(tmp_path: Path, container: Container) -> None:
    spoken = conversation("en", 500_200, 2, lead_silence_s=2.0)
    source = write(spoken, tmp_path / "source", container)
    info = await probe(source)
    assert (info.container, info.codec, info.sample_rate_hz, info.channels) == CODECS[container]
    assert info.has_video == (container == "mp4")
    assert info.duration_s == pytest.approx(spoken.duration_s, abs=0.21)
    heard = await hear(source)
    assert heard.decoded.duration_s == pytest.approx(spoken.duration_s, abs=0.02)
    assert lag_s(heard.samples, as_pcm(spoken.samples)) == pytest.approx(0, abs=0.006)
    assert heard.decoded.skip_samples / SAMPLE_RATE_HZ == pytest.approx(1.5, abs=0.1)


async def test_what_is_16_khz_mono_already_stays_as_it_is(tmp_path: Path) -> None:
    truth = noise(50_000)
    (tmp_path / "source").write_bytes(wav(truth.tobytes()))
    heard = await hear(tmp_path / "source")
    assert np.array_equal(heard.samples, truth)


async def test_stereo_is_mixed_to_its_mean(tmp_path: Path) -> None:
    left = noise(16_000)
    stereo = np.stack([left, np.zeros_like(left)], axis=1)
    (tmp_path / "source").write_bytes(wav(stereo.tobytes(), channels=2))
    heard = await hear(tmp_path / "source")
    assert np.abs(heard.samples.astype(int) - left / 2).max() <= 1


LEADS: dict[str, Pcm] = {
    "none": noise(40_000),
    "short": np.concatenate([silence(4_800), noise(40_000)]),
    "long": np.concatenate([silence(160_000), noise(40_000)]),
    "faint noise": np.concatenate([noise(40_001, peak=100), noise(40_000)]),
    "growing": (noise(80_000) * np.linspace(0, 1, 80_000)).astype("<i2"),
    "nothing else": silence(50_000),
    "a hundred samples": noise(100),
}


@pytest.mark.parametrize("lead", LEADS)
async def test_the_silence_skipped_is_what_silenceremove_alone_takes(tmp_path: Path, lead: str) -> None:
    samples = LEADS[lead]
    (tmp_path / "source").write_bytes(wav(samples.tobytes()))
    heard = await hear(tmp_path / "source")
    assert np.array_equal(heard.samples, samples)
    alone = ffmpeg("-i", tmp_path / "source", "-af", SILENCEREMOVE, "-f", "s16le", "pipe:1")
    left = np.frombuffer(alone, "<i2")
    # ffmpeg 9 gives back a sample too many of silence shorter than it keeps.
    assert heard.decoded.skip_samples == max(0, len(samples) - len(left))
    spoken = min(len(left), len(samples), 30_000)
    assert np.array_equal(heard.samples[len(samples) - spoken :], left[len(left) - spoken :])
    untrimmed = await hear(tmp_path / "source", trim_silence=False)
    assert untrimmed.decoded.skip_samples == 0
    assert np.array_equal(untrimmed.samples, samples)


async def test_sound_from_the_very_first_sample_on_is_all_kept(tmp_path: Path) -> None:
    """silenceremove of ffmpeg 5.1 alone leaves nothing of it."""
    loud = np.where(np.arange(50_000) // 40 % 2, -20_000, 20_000).astype("<i2")
    (tmp_path / "source").write_bytes(wav(loud.tobytes()))
    heard = await hear(tmp_path / "source")
    assert np.array_equal(heard.samples, loud)
    assert heard.decoded.skip_samples == 0


LATE = {
    "mp4": ("mpeg4", "aac"),
    "mov": ("mpeg4", "pcm_s16le"),
    "matroska": ("mpeg4", "flac"),
    "webm": ("libvpx", "libopus"),
    "mpegts": ("mpeg2video", "mp2"),
    "flv": ("flv", "aac"),
}


@pytest.mark.parametrize("container", LATE)
async def test_sound_that_comes_late_in_a_video_is_heard_late(tmp_path: Path, container: str) -> None:
    spoken = conversation("en", 500_201, 1)
    voice = write(spoken, tmp_path / "voice.flac", "flac")
    video, audio = LATE[container]
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc=size=96x64:rate=25:duration=8", "-itsoffset", "1.5", "-i", voice),
        *("-map", "0:v", "-map", "1:a", "-ar", "48000", "-c:v", video, "-b:v", "100k", "-c:a", audio),
        *("-f", container, tmp_path / "source"),
    )
    info = await probe(tmp_path / "source")
    assert info.has_video
    heard = await hear(tmp_path / "source")
    assert lag_s(heard.samples, as_pcm(spoken.samples)) == pytest.approx(1.5, abs=0.03)
    assert heard.decoded.skip_samples / SAMPLE_RATE_HZ == pytest.approx(1.0, abs=0.15)
    assert not heard.samples[: heard.decoded.skip_samples // 2].any()


@pytest.mark.parametrize("container", ["mp4", "matroska"])
async def test_sound_that_comes_late_with_nothing_beside_it_is_heard_late(tmp_path: Path, container: str) -> None:
    spoken = conversation("en", 500_202, 1)
    voice = write(spoken, tmp_path / "voice.flac", "flac")
    ffmpeg("-itsoffset", "1.5", "-i", voice, "-c:a", "aac", "-f", container, tmp_path / "source")
    heard = await hear(tmp_path / "source")
    assert lag_s(heard.samples, as_pcm(spoken.samples)) == pytest.approx(1.5, abs=0.03)


@pytest.mark.parametrize(("gap_s", "kept_s"), [(2, 2), (1000, 1000), (2000, 0)])
async def test_a_gap_in_the_packets_is_silence_unless_the_clock_has_jumped(
    tmp_path: Path, gap_s: int, kept_s: int
) -> None:
    jump = f"asetpts=PTS+if(gt(T\\,2)\\,{gap_s}/TB\\,0)"
    tone = "sine=frequency=440:sample_rate=48000:duration=4"
    ffmpeg("-f", "lavfi", "-i", f"{tone},{jump}", "-c:a", "libopus", "-f", "webm", tmp_path / "source")
    heard = await hear(tmp_path / "source", max_duration_s=3600)
    assert heard.decoded.duration_s == pytest.approx(4 + kept_s, abs=0.05)
    assert heard.decoded.skip_samples == 0
    silent_s = np.count_nonzero(np.abs(heard.samples) < 10) / SAMPLE_RATE_HZ
    assert silent_s == pytest.approx(kept_s, abs=0.2)


@pytest.mark.parametrize("container", ["flac", "mp3", "mpegts", "webm"])
async def test_recordings_put_together_by_cat_are_heard_whole(tmp_path: Path, container: str) -> None:
    """Their times start again in the middle."""
    spoken = conversation("en", 500_203, 1)
    ffmpeg("-i", write(spoken, tmp_path / "voice", "flac"), "-ar", "48000", "-f", container, tmp_path / "one")
    (tmp_path / "source").write_bytes((tmp_path / "one").read_bytes() * 2)
    heard = await hear(tmp_path / "source")
    # The decoder may lose a frame at the joint: 4096 samples of FLAC.
    assert heard.decoded.duration_s == pytest.approx(2 * spoken.duration_s, abs=0.3)
    assert lag_s(heard.samples[len(heard.samples) // 2 :], as_pcm(spoken.samples)) == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("container", ["mp3", "mpegts", "adts"])
async def test_a_change_of_format_within_a_file_loses_nothing(tmp_path: Path, container: str) -> None:
    """ffmpeg builds its filters anew then; the silence before the second part is not silence at the start."""
    for part, arguments in (("one", ["-ar", "44100", "-ac", "2"]), ("two", ["-ar", "22050", "-ac", "1"])):
        quiet = np.concatenate([silence(80_000), noise(48_000)]) if part == "two" else noise(48_000)
        pcm = ("-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "pipe:0")
        ffmpeg(*pcm, *arguments, "-f", container, tmp_path / part, given=quiet.tobytes())
    (tmp_path / "source").write_bytes((tmp_path / "one").read_bytes() + (tmp_path / "two").read_bytes())
    heard = await hear(tmp_path / "source")
    frames = heard.samples[: len(heard.samples) // 320 * 320].reshape(-1, 320)
    assert np.count_nonzero(np.abs(frames).max(axis=1) > 1000) * 0.02 == pytest.approx(6, abs=0.3)
    # ffmpeg 5.1 leaves a second and a half between two broadcasts.
    assert 10.6 < heard.decoded.duration_s < 12.6
    assert heard.decoded.skip_samples == 0


@pytest.mark.parametrize(("container", "kept"), [("wav", 0.5), ("mp3", 0.5), ("flac", 0.45), ("ogg", 0.45)])
async def test_of_a_file_cut_off_what_is_there_is_decoded(tmp_path: Path, container: Container, kept: float) -> None:
    spoken = conversation("en", 500_204, 4)
    whole = write(spoken, tmp_path / "whole", container).read_bytes()
    (tmp_path / "source").write_bytes(whole[: len(whole) // 2])
    heard = await hear(tmp_path / "source")
    assert heard.decoded.duration_s == pytest.approx(kept * spoken.duration_s, rel=0.15)


async def test_a_probe_does_not_read_two_gigabytes(tmp_path: Path) -> None:
    size_bytes = 2 << 30
    with (tmp_path / "source").open("wb") as file:
        file.write(wav(b"")[:-4] + (size_bytes - 44).to_bytes(4, "little") + noise(16_000).tobytes())
        file.truncate(size_bytes)
    info = await probe(tmp_path / "source", timeout_s=5)
    assert info.duration_s == pytest.approx((size_bytes - 44) / 32_000, abs=0.01)


async def test_exactly_the_limit_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(wav(noise(3 * SAMPLE_RATE_HZ).tobytes()))
    heard = await hear(tmp_path / "source", max_duration_s=3)
    assert heard.decoded.n_samples == 3 * SAMPLE_RATE_HZ


async def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    source = tmp_path / "concat:a|b %d ' [0:a];,.wav"
    source.write_bytes(wav(noise(16_000).tobytes()))
    assert (await hear(source)).decoded.n_samples == 16_000
