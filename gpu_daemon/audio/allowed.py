"""What ffmpeg may open: the files are untrusted, and most of ffmpeg is there for files that nobody sends here.

Names as `ffmpeg -demuxers` and `ffmpeg -decoders` print them. One that a given ffmpeg does not know is ignored by it.
"""

# Left out: everything that opens other files or the network (hls, concat, dash, sdp, imf, image2, lavfi …), subtitles,
# pictures, and raw formats without a signature, which match anything.
FORMATS = (
    "aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "dhav", "dsf", "dss", "dts", "dv", "eac3", "flac",
    "flv", "iff", "ircam", "matroska", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "mxf", "nistsphere", "nut", "ogg",
    "oma", "qcp", "rm", "tak", "tta", "voc", "w64", "wav", "wtv", "wv", "xwma",
)  # fmt: skip

# Audio only: the decoders of pictures and video are where the dangerous bugs are.
CODECS = (
    "aac", "aac_latm", "ac3", "adpcm_ct", "adpcm_ima_oki", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "adpcm_sbpro_2",
    "adpcm_sbpro_3", "adpcm_sbpro_4", "adpcm_swf", "adpcm_yamaha", "alac", "als", "amrnb", "amrwb", "ape", "atrac1",
    "atrac3", "atrac3al", "atrac3plus", "atrac3plusal", "cook", "dca", "dsd_lsbf", "dsd_lsbf_planar", "dsd_msbf",
    "dsd_msbf_planar", "dss_sp", "dvaudio", "eac3", "evrc", "flac", "g722", "g723_1", "g726", "g726le", "g729", "gsm",
    "gsm_ms", "ilbc", "libgsm", "libgsm_ms", "libopencore_amrnb", "libopencore_amrwb", "libopus", "libspeex",
    "libvorbis", "mace3", "mace6", "mlp", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3adu", "mp3adufloat",
    "mp3float", "mp3on4", "mp3on4float", "mpc7", "mpc8", "msnsiren", "nellymoser", "opus", "pcm_alaw", "pcm_bluray",
    "pcm_dvd", "pcm_f16le", "pcm_f24le", "pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le", "pcm_mulaw", "pcm_s16be",
    "pcm_s16be_planar", "pcm_s16le", "pcm_s16le_planar", "pcm_s24be", "pcm_s24le", "pcm_s24le_planar", "pcm_s32be",
    "pcm_s32le", "pcm_s32le_planar", "pcm_s64be", "pcm_s64le", "pcm_s8", "pcm_s8_planar", "pcm_u16be", "pcm_u16le",
    "pcm_u24be", "pcm_u24le", "pcm_u32be", "pcm_u32le", "pcm_u8", "qcelp", "qdm2", "qdmc", "ralf", "real_144",
    "real_288", "s302m", "shorten", "sipr", "siren", "speex", "tak", "truehd", "truespeech", "tta", "vorbis", "wavpack",
    "wmalossless", "wmapro", "wmav1", "wmav2", "wmavoice",
)  # fmt: skip

MAX_STREAMS = 64
INPUT_OPTIONS: dict[str, str | int | None] = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(FORMATS),
    "codec_whitelist": ",".join(CODECS),
    "probesize": 5_000_000,  # bytes
    "analyzeduration": 10_000_000,  # microseconds
    "max_streams": MAX_STREAMS,
    "threads": 2,
    "vn": None,
    "sn": None,
    "dn": None,
}
GLOBAL_OPTIONS = ("-nostdin", "-hide_banner", "-nostats", "-max_alloc", str(256 << 20))
"""max_alloc, bytes: of one allocation."""
