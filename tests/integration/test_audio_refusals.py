"""What cannot or must not be decoded is refused with a sentence and leaves nothing; with either ffmpeg."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.audio.allowed import CODECS, FORMATS
from gpu_daemon.audio.decode import decode
from gpu_daemon.audio.ffmpeg import run_ffmpeg
from gpu_daemon.audio.graph import first_frames
from gpu_daemon.audio.probe import probe
from gpu_daemon.errors import InvalidRequest, NotMedia, TooLarge
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.media import (
    BOTH,
    avi_with_subtitles,
    ffmpeg,
    flac_claiming,
    noise,
    read_pcm,
    silence,
    use_ffmpeg,
    wav,
)
from tests.speech import conversation, write

PCM = ("-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "pipe:0")
PICTURES = ("-f", "lavfi", "-i", "testsrc=size=96x64:rate=5:duration=2")
SOME = noise(SAMPLE_RATE_HZ).tobytes()

UNREADABLE = "this is not audio or video that ffmpeg can read"
NOT_ACCEPTED = "files of this kind are not accepted: send audio or video"
NO_AUDIO = "the file has no audio stream"
EMPTY_AUDIO = "the file has an audio stream without any audio in it"
CUT_OFF = "the file is cut off: the index at its end is missing"


@pytest.fixture(params=BOTH, autouse=True)
def _ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_ffmpeg(request.param, monkeypatch, tmp_path)


async def refused(source: Path, *, max_duration_s: int = 60) -> InvalidRequest:
    """By the probe and by the decoder alike."""
    with pytest.raises(NotMedia) as by_probe:
        await probe(source)
    by_decode = await not_decoded(source, max_duration_s=max_duration_s)
    assert by_decode.message == by_probe.value.message
    return by_decode


async def not_decoded(source: Path, *, max_duration_s: int = 60) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        await decode(source, source.with_name("target"), max_duration_s=max_duration_s, trim_silence=True)
    assert not source.with_name("target").exists()
    assert "/" not in refusal.value.message
    return refusal.value


def video_without_sound() -> bytes:
    return ffmpeg(*PICTURES, "-c:v", "mpeg4", "-f", "matroska", "pipe:1")


def video_with_subtitles_only(directory: Path) -> bytes:
    (directory / "words.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nWords\n")
    return ffmpeg(*PICTURES, "-i", directory / "words.srt", "-c:v", "mpeg4", "-c:s", "srt", "-f", "matroska", "pipe:1")


def m4a(directory: Path, *arguments: str) -> bytes:
    ffmpeg(*PCM, "-c:a", "aac", *arguments, "-f", "mp4", directory / "whole", given=SOME)
    return (directory / "whole").read_bytes()


def m4a_cut_off(directory: Path) -> bytes:
    return m4a(directory)[:3000]


def m4a_encrypted(directory: Path) -> bytes:
    key = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")
    return m4a(directory, "-encryption_scheme", "cenc-aes-ctr", *key)


REFUSED: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "nothing": ("the file is empty", lambda _: b""),
    "one byte": (UNREADABLE, lambda _: b"\0"),
    "text": (UNREADABLE, lambda _: b"This is only text, not audio at all.\n" * 300),
    "a web page": (UNREADABLE, lambda _: b"<!doctype html><html><body>404</body></html>"),
    "zeros": (UNREADABLE, lambda _: bytes(300_000)),
    "noise": (UNREADABLE, lambda _: np.random.default_rng(1).bytes(300_000)),
    "half a header": (UNREADABLE, lambda _: wav(SOME)[:30]),
    "a header alone": (EMPTY_AUDIO, lambda _: wav(b"")),
    "a picture": (NOT_ACCEPTED, lambda _: ffmpeg(*PICTURES, "-frames:v", "1", "-f", "image2", "-c:v", "png", "pipe:1")),
    "an ID3 tag alone": (UNREADABLE, lambda _: b"ID3\x03\0\0\0\0\x0f\x76" + bytes(2038)),
    "a video without sound": (NO_AUDIO, lambda _: video_without_sound()),
    "a video with subtitles": (NO_AUDIO, video_with_subtitles_only),
    "an m4a cut off": (CUT_OFF, m4a_cut_off),
    "an m4a encrypted": ("the audio (aac) cannot be decoded: damaged, encrypted, or of an unknown kind", m4a_encrypted),
    "no rate": (UNREADABLE, lambda _: wav(SOME, rate_hz=0)),
    "a rate of 1 Hz": ("audio of 1 samples per second is not supported", lambda _: wav(SOME, rate_hz=1)),
    "a rate of 1 GHz": (
        "audio of 1000000000 samples per second is not supported",
        lambda _: wav(SOME, rate_hz=1_000_000_000),
    ),
    "no channel": (
        "the audio (pcm_s16le) cannot be decoded: damaged, encrypted, or of an unknown kind",
        lambda _: wav(SOME, channels=0),
    ),
    "255 channels": (
        "audio of 255 channels of unknown places cannot be mixed to one",
        lambda _: wav(SOME * 100, channels=255),
    ),
    "17 channels": (
        "audio of 17 channels of unknown places cannot be mixed to one",
        lambda _: wav(SOME * 20, channels=17),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_a_refusal_says_why(tmp_path: Path, kind: str) -> None:
    """Faults 20 and 21."""
    sentence, make = REFUSED[kind]
    (tmp_path / "source").write_bytes(make(tmp_path))
    assert (await refused(tmp_path / "source")).message == sentence


async def test_text_named_mp3(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_text("This is only text, not audio at all.\n" * 300)
    assert (await refused(tmp_path / "song.mp3")).message == UNREADABLE


async def test_a_cover_picture_is_left_alone(tmp_path: Path) -> None:
    ffmpeg(*PICTURES, "-frames:v", "1", tmp_path / "cover.png")
    with_cover = ("-i", tmp_path / "cover.png", "-c:v", "copy", "-disposition:v", "attached_pic")
    ffmpeg(*PCM, *with_cover, "-f", "mp3", tmp_path / "source", given=SOME)
    info = await probe(tmp_path / "source")
    assert not info.has_video
    decoded = await decode(tmp_path / "source", tmp_path / "target", max_duration_s=60, trim_silence=True)
    assert decoded.duration_s == pytest.approx(1, abs=0.1)


@dataclass(slots=True)
class Canary:
    """A file that is not to be read and a server that is not to be called."""

    file: Path
    port: int
    connections: list[object] = field(default_factory=list)


@pytest.fixture
async def canary(tmp_path: Path) -> AsyncIterator[Canary]:
    (tmp_path / "secret").write_bytes(wav(SOME))
    connections: list[object] = []

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(called, "127.0.0.1", 0)
    yield Canary(tmp_path / "secret", server.sockets[0].getsockname()[1], connections)
    server.close()
    await server.wait_closed()


HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{url}\n#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "hls": HLS,
    "ffconcat": "ffconcat version 1.0\nfile '{url}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
    ' mediaPresentationDuration="PT5S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet'
    ' mimeType="audio/mp4"><Representation id="1" bandwidth="1000"><BaseURL>{url}</BaseURL><SegmentBase/>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
    "a=rtpmap:0 PCMU/8000\n",
    "rtsp": "[Reference]\nRef1={url}\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "m3u": "{url}\n",
}


@pytest.mark.parametrize("target", ["file", "http"])
@pytest.mark.parametrize(
    ("playlist", "suffix"), [*((playlist, "") for playlist in PLAYLISTS), ("hls", ".mp3"), ("hls", ".m3u8")]
)
async def test_a_file_that_names_others_opens_none(
    tmp_path: Path, canary: Canary, playlist: str, suffix: str, target: str
) -> None:
    """Fault 19."""
    url = canary.file.as_uri() if target == "file" else f"http://127.0.0.1:{canary.port}/x.ts"
    source = tmp_path / f"source{suffix}"
    source.write_text(PLAYLISTS[playlist].format(url=url, port=canary.port))
    assert (await not_decoded(source)).message in (NOT_ACCEPTED, UNREADABLE)
    assert not canary.connections


async def test_a_playlist_inside_an_avi_is_not_followed(tmp_path: Path, canary: Canary) -> None:
    """Fault 19: the hole of 2017."""
    own = noise(SAMPLE_RATE_HZ, seed=7)
    playlist = HLS.format(url=f"http://127.0.0.1:{canary.port}/x.ts")
    (tmp_path / "source").write_bytes(avi_with_subtitles(own.tobytes(), playlist.encode()))
    await decode(tmp_path / "source", tmp_path / "target", max_duration_s=60, trim_silence=True)
    assert np.array_equal(read_pcm(tmp_path / "target"), own)
    assert not canary.connections


async def test_a_small_file_of_many_hours_is_stopped_at_the_limit(tmp_path: Path) -> None:
    """Fault 20: 100 kB that are an hour, under a header that says one second."""
    quiet = ("-f", "lavfi", "-i", "anullsrc=sample_rate=8000:channel_layout=mono", "-t", "3600")
    flac = ffmpeg(*quiet, "-frame_size", "16384", "-f", "flac", "pipe:1")
    assert len(flac) < 150_000
    (tmp_path / "source").write_bytes(flac_claiming(flac, 8_000))
    assert (await probe(tmp_path / "source")).duration_s == pytest.approx(1)
    refusal = await not_decoded(tmp_path / "source")
    assert isinstance(refusal, TooLarge)
    assert (refusal.code, refusal.message) == ("too_long", "the audio is longer than the limit of 60 s")


async def test_one_sample_over_the_limit_is_over_the_limit(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(wav(noise(3 * SAMPLE_RATE_HZ + 1).tobytes()))
    assert (await not_decoded(tmp_path / "source", max_duration_s=3)).code == "too_long"


async def test_the_limit_holds_when_the_format_changes_at_every_turn(tmp_path: Path) -> None:
    """ffmpeg builds its filters anew each time, and with them the one that counts."""
    parts = [
        ffmpeg(*PCM, "-ar", rate, "-f", "adts", "pipe:1", given=silence(2 * SAMPLE_RATE_HZ).tobytes())
        for rate in ("44100", "22050")
    ]
    (tmp_path / "source").write_bytes(b"".join(parts * 3))
    assert (await not_decoded(tmp_path / "source", max_duration_s=5)).code == "too_long"


async def test_a_hundred_streams_are_too_many(tmp_path: Path) -> None:
    """Fault 20. ffmpeg alone would take the stream that is one too many for the end of the file."""
    ffmpeg(*PCM, *(["-map", "0:a"] * 100), "-f", "mpegts", tmp_path / "source", given=SOME)
    assert (await refused(tmp_path / "source")).message == "the file has more than 64 streams"


async def test_no_decoder_of_pictures_runs(tmp_path: Path) -> None:
    """Fault 21: those decoders are where the dangerous bugs are. ffmpeg says which one it would not open."""
    source = write(conversation("en", 500_210, 1), tmp_path / "source", "mp4")
    finished = await run_ffmpeg(first_frames(source, 8), timeout_s=20)
    assert "Codec (mpeg4) not on whitelist" in finished.stderr
    assert finished.status == 0


def test_every_name_on_the_lists_is_one_that_ffmpeg_knows() -> None:
    """A misspelt name would refuse files in silence. Some are known to one of the two only, so one is enough."""
    known_formats: set[str] = set()
    known_codecs: set[str] = set()
    for line in ffmpeg("-demuxers").decode().splitlines():
        known_formats.update(line.split()[1].split(",") if len(line.split()) > 1 else ())
    for line in ffmpeg("-decoders").decode().splitlines():
        known_codecs.update(line.split()[1:2])
    assert not set(FORMATS) - known_formats
    assert (
        not set(CODECS) - known_codecs - {"libgsm", "libgsm_ms", "libspeex", "libopencore_amrnb", "libopencore_amrwb"}
    )
