"""The filters between the client's file and what the engine hears (pure: it makes ffmpeg's arguments)."""

from pathlib import Path
from typing import Any

import ffmpeg

from gpu_daemon.audio.allowed import INPUT_OPTIONS
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ

TIMED = {"mov", "matroska", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "rm", "wtv"}
"""Containers that say of each packet when it is heard; in the others audio follows on audio."""
LAG_S = 0.5
MAX_GAP_S = 1800
"""A longer gap is taken for a jump of the clock: its silence would take more memory than ffmpeg may have."""
# The pts of frame after frame, made to never go back: aresample would drop what lies before it, and recordings put
# together by `cat` would lose all but their first. Registers: 0 the pts expected next; 1 what the clock is set forward
# by; 2 this pts; 3 how far it is ahead of the one expected.
MONOTONIC = (
    "st(2,if(isnan(PTS),ld(0),PTS+ld(1)));st(3,ld(2)-ld(0));"
    f"if(lt(ld(3),-{LAG_S}*SR)+gt(ld(3),{MAX_GAP_S}*SR),st(1,ld(1)-ld(3)),0);"
    f"if(lt(ld(3),0)+gt(ld(3),{MAX_GAP_S}*SR),st(2,ld(0)),0);"
    "st(0,ld(2)+NB_SAMPLES);ld(2)"
)
BYTES_PER_SAMPLE = 2
COUNTED_AT_ONCE = 1 << 16
"""Samples per line of the count."""
MARK_SAMPLES = 1
"""Counted before anything else: a silent file is not an empty output, which ffmpeg 9 would call an error, and a second
mark shows that the format changed within the file and the filters were built anew."""


def first_frames(source: Path, count: int) -> list[str]:
    """A line about each frame to stdout, with absolute times: else ffmpeg moves audio to 0 and forgets by how much."""
    lines = _audio_of(source).output(
        "pipe:1", format="framecrc", acodec="pcm_s16le", map_metadata=-1, **{"frames:a": count}
    )
    return ["-loglevel", "repeat+level+info", "-copyts", *lines.compile(cmd=[])]


def all_audio(
    source: Path,
    output_fd: int,
    *,
    container: str,
    layout: str,
    most_samples: int,
    lead_samples: int,
    trim_silence: bool,
) -> list[str]:
    """One run, two branches: the audio to `output_fd`; to stdout, counted, what is left of it without silence before.

    `layout`: of what comes out, as ffmpeg calls it; the file's own leaves its channels as they are. Silence ends when
    one of them is loud. `lead_samples` of silence, which the caller has put in front, count as if they were there.
    `counted` reads stdout.
    """
    stream = _audio_of(source)
    if container in TIMED:
        stream = stream.filter("asetpts", MONOTONIC)
    stream = _laid_out(stream.filter("aresample", SAMPLE_RATE_HZ), layout)
    if container in TIMED:
        # Gaps become silence. After resampling: before it, half an hour of them takes more than a gigabyte.
        stream = _laid_out(stream.filter("aresample", **{"async": 1}), layout)
    stream = stream.filter("atrim", end_sample=most_samples)
    branches = stream.filter_multi_output("asplit", 3) if trim_silence else [stream]
    # Packets are numbered: the muxer would drop those whose time is not after the last one's.
    outputs = [branches[0].output(f"pipe:{output_fd}", format="s16le", acodec="pcm_s16le", **{"bsf:a": "setts=ts=N"})]
    if trim_silence:
        mark = branches[2].filter("atrim", end_sample=MARK_SAMPLES)
        heard = _without_lead(branches[1], lead_samples)
        marked = ffmpeg.concat(mark, heard, v=0, a=1).filter("asettb", f"1/{SAMPLE_RATE_HZ}").filter("asetpts", "N")
        outputs.append(marked.output("pipe:1", format="framecrc", acodec="pcm_s16le"))
    return ["-loglevel", "repeat+level+warning", *ffmpeg.merge_outputs(*outputs).compile(cmd=[])]


def _audio_of(source: Path) -> Any:
    # Absolute and with a protocol: no name can be taken for an option or an address.
    return ffmpeg.input(f"file:{source.absolute()}", **INPUT_OPTIONS)["a:0"]


def _laid_out(stream: Any, layout: str) -> Any:
    return stream.filter("aformat", sample_fmts="s16", sample_rates=SAMPLE_RATE_HZ, channel_layouts=layout)


def _without_lead(stream: Any, lead_samples: int) -> Any:
    # ffmpeg 5.1 drops all there is when the very first sample is loud: at least one of silence goes before it.
    stream = stream.filter("adelay", f"{max(1, lead_samples)}S", all=1)
    stream = stream.filter("silenceremove", start_periods=1, start_silence=0.5, start_threshold="-40dB")
    return stream.filter("asetnsamples", n=COUNTED_AT_ONCE, p=0)


def counted(framecrc: str, channels: int) -> int | None:
    """The samples in all lines but the mark's; each line is "stream, dts, pts, samples, bytes, checksum".

    None when there is a second mark. The silence after it was dropped too then, and where the first ended is not known.
    """
    total = 0
    for line in framecrc.splitlines():
        if not line.startswith("#"):
            _, _, pts, _, n_bytes, _ = line.split(",")[:6]
            if int(pts) != total:
                return None
            total += int(n_bytes) // (BYTES_PER_SAMPLE * channels)
    return total - MARK_SAMPLES
