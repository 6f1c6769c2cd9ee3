"""From decoded files to transcripts, with an engine that does what it is told."""

import threading
from pathlib import Path

import numpy as np
import pytest

from gpu_daemon.engine.base import Audio
from gpu_daemon.engine.pipeline import Hearing
from gpu_daemon.errors import JobError
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from gpu_daemon.transcript.model import Segment, Transcript
from tests.fake_diarizer import FakeDiarizer
from tests.fake_engine import FakeEngine
from tests.runners import pcm, run_of, silence

S = SAMPLE_RATE_HZ


def nothing(fraction: float) -> None:
    pass


def nobody() -> None:
    pass


def tone(seconds: float, frequency_hz: float = 440.0, peak: float = 0.5) -> Audio:
    times = np.arange(round(seconds * S)) / S
    return (peak * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def beside(*channels: Audio) -> Audio:
    return np.stack(channels, axis=1)


class Hears:
    """The work of a runner on one file."""

    def __init__(self, directory: Path) -> None:
        self.engine = FakeEngine()
        self.diarized = threading.Event()
        self._path = directory / "audio"

    header = b""
    """What the file has before its samples."""

    def begun(self, audio: Audio, **given: object) -> Hearing:
        self._path.write_bytes(self.header + pcm(audio))
        channels = 1 if audio.ndim == 1 else audio.shape[1]
        request = run_of(self._path, first_byte=len(self.header), channels=channels, **given)  # type: ignore[arg-type]
        hearing = Hearing(self.engine, FakeDiarizer("cpu"), request, self.diarized.set)
        if hearing.transcribes:
            hearing.load(nothing)
        if not hearing.is_empty:
            hearing.begin()
        return hearing

    def __call__(self, audio: Audio, **given: object) -> Transcript:
        hearing = self.begun(audio, **given)
        told: tuple[Segment, ...] = ()
        fractions = []
        while not hearing.ended:
            self.engine.step()
            told += hearing.heard(len(told))
            fractions.append(hearing.progress()[1])
        transcript, _ = hearing.result()
        assert told == transcript.segments[: len(told)]
        assert fractions == sorted(fractions)
        return transcript


@pytest.fixture
def hears(tmp_path: Path) -> Hears:
    return Hears(tmp_path)


def test_samples_may_begin_behind_a_header(hears: Hears) -> None:
    expected = hears(tone(6.0))
    hears.header = b"RIFF" + b"\xff" * 40
    assert hears(tone(6.0)) == expected
    assert hears.begun(tone(0)).is_empty


def test_each_channel_is_a_speaker_and_they_come_in_order(hears: Hears) -> None:
    first = np.concatenate([tone(5), silence(10), tone(5)])
    second = np.concatenate([silence(6), tone(9, 600), silence(5)])
    transcript = hears(beside(first, second), channel_mode="split", word_timestamps=True, logprobs=True)
    assert [(segment.speaker, segment.start) for segment in transcript.segments] == [
        ("SPEAKER_00", 0.0),
        ("SPEAKER_01", 5.5),  # half a second of the silence is kept
        ("SPEAKER_01", 10.5),
        ("SPEAKER_00", 15.0),
    ]
    assert [segment.id for segment in transcript.segments] == [0, 1, 2, 3]
    assert transcript.text == "".join(segment.text for segment in transcript.segments).strip()
    assert transcript.duration == 20.0
    assert transcript.token_count == 16
    for segment in transcript.segments:
        assert {word.speaker for word in segment.words} == {segment.speaker}
        assert segment.start <= segment.words[0].start < segment.words[-1].end <= segment.end
        assert "".join(said.token for said in segment.logprobs or ()) == segment.text


def test_a_channel_says_what_it_says_alone(hears: Hears) -> None:
    first, second = tone(12), tone(12, 700)
    together = hears(beside(first, second), channel_mode="split")
    alone = [hears(audio) for audio in (first, second)]
    for number, transcript in enumerate(alone):
        of_it = [segment for segment in together.segments if segment.speaker == f"SPEAKER_{number:02d}"]
        assert [(segment.start, segment.end, segment.text) for segment in of_it] == [
            (segment.start, segment.end, segment.text) for segment in transcript.segments
        ]
        assert {segment.speaker for segment in transcript.segments} == {None}


def test_a_silent_channel_says_nothing(hears: Hears) -> None:
    for silent in (silence(10), tone(10, peak=0.001)):
        transcript = hears(beside(silent, tone(10), silent), channel_mode="split")
        assert {segment.speaker for segment in transcript.segments} == {"SPEAKER_01"}
        assert transcript.language_probability == 0.9
        transcript = hears(beside(silent, silent), channel_mode="split")
        assert (transcript.segments, transcript.duration) == ((), 10.0)


def test_skipped_silence_counts_for_every_channel(hears: Hears) -> None:
    lead = silence(4)
    audio = beside(np.concatenate([lead, tone(5)]), np.concatenate([lead, silence(2), tone(3)]))
    transcript = hears(audio, channel_mode="split", skip_samples=round(3.5 * S))
    assert [segment.start for segment in transcript.segments] == [3.5, 5.5, 8.5]
    whole = hears(audio, channel_mode="split", trim_silence=False)
    assert [segment.start for segment in whole.segments] == [0.0, 5.0, 5.0]


def test_a_file_that_is_all_skipped_needs_no_model(hears: Hears) -> None:
    transcript = hears(silence(3), skip_samples=3 * S)
    assert (transcript.text, transcript.duration, transcript.mode) == ("", 3.0, "accurate")
    assert hears.engine.loaded() == ()
    assert hears(silence(0)).duration == 0.0


def test_an_error_of_one_channel_is_the_file_s(hears: Hears) -> None:
    hearing = hears.begun(beside(tone(2), tone(2)), channel_mode="split", initial_prompt="fake:error")
    while not hearing.ended:
        hears.engine.step()
    with pytest.raises(JobError, match="cannot be done"):
        hearing.result()


def test_what_is_dropped_is_dropped_on_every_channel(hears: Hears) -> None:
    hearing = hears.begun(beside(tone(30), tone(30)), channel_mode="split", initial_prompt="fake:sleep=60")
    hears.engine.step()
    assert hears.engine.in_flight == 2
    hearing.drop()
    assert hears.engine.in_flight == 0


def test_a_channel_that_cannot_begin_leaves_none_behind(hears: Hears, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, begun = hears.engine.begin, []

    def second_fails(*arguments: object) -> object:
        begun.append(arguments)
        if len(begun) == 2:
            raise JobError("the model cannot do that")
        return begin(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hears.engine, "begin", second_fails)
    with pytest.raises(JobError):
        hears.begun(beside(tone(2), tone(2)), channel_mode="split")
    assert hears.engine.in_flight == 0


def test_text_where_nothing_is_heard_is_doubted(hears: Hears, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times are the file's: silence before the first sound was not given to the engine."""
    audio = np.concatenate([silence(2), tone(5), tone(5, peak=0.0001), tone(5)])
    monkeypatch.setattr("tests.fake_engine.LOUD", 0.00001)
    transcript = hears(audio, skip_samples=2 * S)
    assert [segment.start for segment in transcript.segments] == [2.0, 7.0, 12.0]
    assert transcript.quality.silence_segments == (1,)


def test_lost_audio_is_an_error_of_the_job(hears: Hears, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="gone"):
        Hearing(hears.engine, FakeDiarizer("cpu"), run_of(tmp_path / "nowhere"), nobody)
