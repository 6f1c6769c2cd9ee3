"""What ffmpeg is told, and what is understood of what it says."""

from pathlib import Path

import pytest

from gpu_daemon.audio.ffmpeg import Finished
from gpu_daemon.audio.graph import all_audio, first_frames
from gpu_daemon.audio.probe import described
from gpu_daemon.errors import NotMedia

SOURCE = Path("/jobs/1/source")


def of_all_audio(
    container: str, *, layout: str = "mono", lead_samples: int = 0, trim_silence: bool = True
) -> list[str]:
    return all_audio(
        SOURCE,
        7,
        container=container,
        layout=layout,
        most_samples=16_001,
        lead_samples=lead_samples,
        trim_silence=trim_silence,
    )


def filters(arguments: list[str]) -> str:
    return arguments[arguments.index("-filter_complex") + 1]


@pytest.mark.parametrize("arguments", [first_frames(SOURCE, 8), of_all_audio("mov"), of_all_audio("wav")])
def test_every_limit_stands_before_the_input_it_limits(arguments: list[str]) -> None:
    before = arguments[: arguments.index("-i")]
    for option in ("-protocol_whitelist", "-format_whitelist", "-codec_whitelist", "-max_streams", "-probesize"):
        assert option in before
    assert before[before.index("-protocol_whitelist") + 1] == "file"
    assert {"-vn", "-sn", "-dn"} <= set(before)
    assert arguments.count("-i") == 1


@pytest.mark.parametrize("name", ["-i", "concat:a|b", "-f lavfi", "a;b[c],d='e'", "%d.wav"])
def test_no_name_is_an_option_or_an_address(name: str, tmp_path: Path) -> None:
    arguments = first_frames(tmp_path / name, 8)
    assert arguments[arguments.index("-i") + 1] == f"file:{tmp_path}/{name}"


def test_playlists_pictures_and_video_are_not_on_the_lists() -> None:
    arguments = first_frames(SOURCE, 8)
    formats = arguments[arguments.index("-format_whitelist") + 1].split(",")
    codecs = arguments[arguments.index("-codec_whitelist") + 1].split(",")
    assert not {"hls", "concat", "dash", "sdp", "image2", "lavfi", "imf", "tee", "rtsp", "srt"} & set(formats)
    assert not {"h264", "hevc", "mjpeg", "png", "magicyuv", "jpeg2000", "webvtt", "srt"} & set(codecs)


def test_gaps_are_filled_only_where_packets_have_times_of_their_own() -> None:
    assert "async=1" in filters(of_all_audio("mov"))
    assert "async" not in filters(of_all_audio("mp3"))
    assert "asetpts=st" not in filters(of_all_audio("mp3"))


def test_silence_is_counted_only_when_it_is_to_be_trimmed() -> None:
    assert "silenceremove=start_periods=1:start_silence=0.5:start_threshold=-40dB" in filters(of_all_audio("wav"))
    untrimmed = of_all_audio("wav", trim_silence=False)
    assert "silenceremove" not in filters(untrimmed)
    assert "pipe:1" not in untrimmed


def test_a_late_start_is_in_front_of_what_is_counted() -> None:
    assert "adelay=24000S:all=1[" in filters(of_all_audio("mov", lead_samples=24_000))
    assert "adelay=1S:all=1[" in filters(of_all_audio("mov")), "never less than the one sample that ffmpeg 5.1 needs"


FRAMES = """#tb 0: 1/48000
#media_type 0: audio
#codec_id 0: pcm_s16le
#sample_rate 0: 48000
#channel_layout_name 0: stereo
0,      68928,      68928,     1024,     4096, 0xdb004f5c
0,      69952,      69952,     1024,     4096, 0x00000000
"""
SAID = """[h264 @ 0x1] [error] Codec (h264) not on whitelist 'aac'
[info] Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'file:/jobs/1/source':
[info]   Metadata:
[info]     title           : x
[info]                     :   Duration: 99:00:00.00, start: 0.000000
[info]   Duration: 01:00:07.80, start: 0.000000, bitrate: 115 kb/s
[info]   Stream #0:0[0x1](und): Video: h264 (mp4v / 0x7634706D), none, 5 fps, 5 tbr, 10240 tbn (default)
[info]   Stream #0:1[0x2](und): Audio: aac (LC) (mp4a / 0x6134706D), 48000 Hz, stereo, fltp, 81 kb/s (default)
"""


def test_a_video_with_late_sound_is_described() -> None:
    info = described(Finished(0, FRAMES, SAID))
    assert info.duration_s == pytest.approx(3607.8)
    assert (info.container, info.codec, info.sample_rate_hz, info.channels) == ("mov", "aac", 48_000, 2)
    assert info.has_video
    assert info.starts_at_s == pytest.approx(1.436)


def test_the_clock_of_a_broadcast_starts_anywhere() -> None:
    said = SAID.replace("mov,mp4,m4a,3gp,3g2,mj2,", "mpegts,").replace("start: 0.000000, bit", "start: 1.400000, bit")
    assert described(Finished(0, FRAMES, said)).starts_at_s == pytest.approx(0.036)


def test_a_piece_cut_out_of_a_long_stream_is_not_led_by_hours_of_silence() -> None:
    said = SAID.replace("start: 0.000000, bit", "start: 7200.000000, bit")
    frames = FRAMES.replace("68928", str(7201 * 48_000))
    assert described(Finished(0, frames, said)).starts_at_s == pytest.approx(1.0)


def test_a_cover_is_not_a_video_and_a_guessed_duration_is_not_known() -> None:
    said = """[mp3 @ 0x1] [warning] Estimating duration from bitrate, this may be inaccurate
[info] Input #0, mp3, from 'file:/jobs/1/source':
[info]   Duration: 00:00:03.84, start: 0.000000, bitrate: 64 kb/s
[info]   Stream #0:0: Audio: mp3, 44100 Hz, stereo, fltp, 64 kb/s
[info]   Stream #0:1: Video: png, none, 90k tbr, 90k tbn (attached pic)
"""
    info = described(Finished(0, FRAMES, said))
    assert not info.has_video
    assert info.duration_s is None


@pytest.mark.parametrize(
    ("stdout", "stderr", "sentence"),
    [
        (FRAMES.replace("48000", "1000000000"), SAID, "1000000000 samples per second is not supported"),
        (FRAMES.replace("stereo", "17 channels").replace("4096", "34816"), SAID, "17 channels"),
        ("", SAID, "without any audio in it"),
        ("", "[fatal] Stream map '' matches no streams.", "the file has no audio stream"),
        ("", "[error] moov atom not found", "the file is cut off"),
        ("", "[error] Format not on whitelist 'wav'", "not accepted"),
        ("", "[error] Invalid data found when processing input", "not audio or video that ffmpeg can read"),
    ],
)
def test_a_refusal_says_why(stdout: str, stderr: str, sentence: str) -> None:
    with pytest.raises(NotMedia, match=sentence):
        described(Finished(0, stdout, stderr))


def test_audio_that_does_not_decode_is_told_by_the_exit_status() -> None:
    with pytest.raises(NotMedia, match=r"the audio \(aac\) cannot be decoded"):
        described(Finished(69, FRAMES.split("0,")[0], SAID))
