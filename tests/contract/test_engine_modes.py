"""Speech only, and all at once: what whisper itself hears in the same clips."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper

from gpu_daemon.engine.base import Audio
from gpu_daemon.engine.clips import Plan, Span
from gpu_daemon.engine.pipeline import Hearing
from gpu_daemon.engine.transcribe import WhisperEngine
from gpu_daemon.engine.vad import VoiceDetector, plan
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ, JobOptions
from gpu_daemon.transcript.model import Quality, Segment
from tests.fake_diarizer import FakeDiarizer
from tests.runners import DEMO, demo, pcm, run_of, silence, speech, spoken_at, transcribed
from tests.speech import Spoken, conversation

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies


@pytest.fixture(scope="module")
def engine() -> WhisperEngine:
    torch.set_num_threads(1)  # several would wait for each other by spinning
    engine = WhisperEngine(torch.device("cpu"), vram_reserve_mb=0)
    engine.load(demo(), lambda fraction: None)
    return engine


@pytest.fixture(scope="module")
def spoken() -> Spoken:
    """With long pauses and short ones."""
    return conversation("en", 630_001, 5, pauses_s=(0.2, 8.0), lead_silence_s=4.0)


def options(**given: object) -> JobOptions:
    return JobOptions.model_validate({"model": "demo", "temperature": (0.0,), **given})


def planned(audio: Audio, given: JobOptions) -> Plan:
    work = plan(VoiceDetector(), audio, given)
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: Plan = end.value
            return found


@cache
def model() -> Any:
    return whisper.load_model(str(DEMO), device="cpu")


def itself(audio: Audio, clips: Sequence[Span], **given: Any) -> list[dict[str, Any]]:
    times = [time for clip in clips for time in clip]
    heard = model().transcribe(audio.copy(), clip_timestamps=times, temperature=(0.0,), fp16=False, **given)
    return [segment for segment in heard["segments"] if segment["tokens"]]


def assert_heard(ours: Sequence[Segment], theirs: Sequence[dict[str, Any]]) -> None:
    assert [(one.start, one.end, one.seek, one.tokens) for one in ours] == [
        (one["start"], one["end"], one["seek"], tuple(one["tokens"])) for one in theirs
    ]
    for one, their in zip(ours, theirs, strict=True):
        assert one.avg_logprob == pytest.approx(their["avg_logprob"], abs=1e-4)


def test_speech_only_is_whisper_with_these_clips(engine: WhisperEngine, spoken: Spoken) -> None:
    given = options(vad_filter=True)
    clips = planned(spoken.samples, given)
    assert len(clips.clips) >= 3
    heard = transcribed(engine, demo(), spoken.samples, given)
    assert_heard(heard.segments, itself(spoken.samples, clips.clips))
    assert heard.quality.vad_dropped_s == clips.dropped_s > 10


def test_at_once_each_piece_is_whisper_with_this_clip_alone(engine: WhisperEngine, spoken: Spoken) -> None:
    given = options(mode="fast")
    clips = planned(spoken.samples, given)
    assert len(clips.clips) >= 2
    before = engine.encoded_windows
    begun = engine.begin(demo(), spoken.samples, given)
    told: tuple[Segment, ...] = ()
    fractions = []
    while not begun.ended:
        engine.step()
        assert begun.heard()[: len(told)] == told
        told = begun.heard()
        fractions.append(begun.fraction)
    heard = begun.result()
    assert told == heard.segments
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    alone = [segment for clip in clips.clips for segment in itself(spoken.samples, [clip], language="en")]
    assert_heard(heard.segments, alone)
    assert [segment.id for segment in heard.segments] == list(range(len(alone)))
    assert heard.quality.vad_dropped_s == clips.dropped_s > 10
    assert heard.language == "en"
    windows = {segment.seek for segment in heard.segments}
    assert engine.encoded_windows - before == len(windows), "the language is heard in a window that is decoded anyway"


def test_samples_of_16_bits_are_heard_as_floats_are(engine: WhisperEngine) -> None:
    samples = (speech() * 32767).astype(np.int16)
    one = transcribed(engine, demo(), samples, options())
    other = transcribed(engine, demo(), samples.astype(np.float32) / np.float32(32768), options())
    assert one == other
    assert one.text


def test_where_nobody_speaks_no_window_is_encoded(engine: WhisperEngine) -> None:
    before = engine.encoded_windows
    for given in (options(mode="fast"), options(vad_filter=True)):
        heard = transcribed(engine, demo(), silence(40), given)
        assert (heard.text, heard.segments, heard.language) == ("", (), "en")
        assert heard.quality.vad_dropped_s == 40.0
    assert engine.encoded_windows == before


def test_the_language_of_a_fast_file_is_that_of_its_first_speech(engine: WhisperEngine) -> None:
    """The first thirty seconds, which the reference listens to, are silent."""
    spoken = conversation("fr", 630_002, 1, lead_silence_s=45.0)
    heard = transcribed(engine, demo(), spoken.samples, options(mode="fast"))
    assert heard.language == "fr"
    assert heard.segments[0].start == pytest.approx(45.0, abs=0.5)
    assert heard.duration == len(spoken.samples) / SAMPLE_RATE_HZ


def test_a_sentence_again_and_again_is_doubted(engine: WhisperEngine, tmp_path: Path) -> None:
    """And other speech is not."""
    doubted = []
    for audio in (spoken_at(0, 4, 8, 12), conversation("en", 630_003, 4).samples):
        (tmp_path / "audio").write_bytes(pcm(audio))
        hearing = Hearing(engine, FakeDiarizer("cpu"), run_of(tmp_path / "audio", temperature=(0.0,)), lambda: None)
        hearing.begin()
        while not hearing.ended:
            engine.step()
        transcript, _ = hearing.result()
        assert len(transcript.segments) == 4
        doubted.append(transcript.quality)
    assert doubted == [Quality(repetition_segments=(0, 1, 2, 3)), Quality()]
