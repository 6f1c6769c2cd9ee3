"""The sample of `make demo` says what sample.txt says, and the model beside it hears every word of it."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import whisper

import gpu_daemon
from gpu_daemon.audio.decode import decode
from tests.media import ffmpeg, read_pcm
from tests.speech import dialogue, word_error_rate

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")  # whisper's vocabularies

DEMO = Path(gpu_daemon.__file__).parent / "demo"
SEED, SENTENCES = 500_301, 9


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return whisper.load_model(str(DEMO / "espeak-whisper.pt"), device="cpu")


@pytest.mark.parametrize("encoded_as", ["as it is", "mp3"])
async def test_every_word_is_heard(tmp_path: Path, model: whisper.Whisper, encoded_as: str) -> None:
    source = DEMO / "sample.ogg"
    if encoded_as != "as it is":
        ffmpeg("-i", source, "-b:a", "48k", "-f", encoded_as, tmp_path / "source")
        source = tmp_path / "source"
    decoded = await decode(source, tmp_path / "target", max_duration_s=60, trim_silence=False)
    assert 20 < decoded.duration_s < 30
    audio = read_pcm(decoded.path).astype(np.float32) / 32768
    result = await asyncio.to_thread(whisper.transcribe, model, audio, fp16=False)
    assert result["language"] == "en"
    assert word_error_rate((DEMO / "sample.txt").read_text(), result["text"]) == 0
    starts_s = [sentence.start_s for sentence in dialogue("en", SEED, SENTENCES).sentences]
    assert [segment["start"] for segment in result["segments"]] == pytest.approx(starts_s, abs=0.1)


def test_it_is_small_and_made_as_the_readme_says() -> None:
    assert (DEMO / "sample.ogg").stat().st_size < 300_000
    said = dialogue("en", SEED, SENTENCES).text
    assert (DEMO / "sample.txt").read_text().split() == said.split()
    assert (
        f"dialogue en {SEED} {SENTENCES} gpu_daemon/demo/sample.ogg"
        in (Path(__file__).parent.parent / "espeak_whisper" / "README.md").read_text()
    )
