"""The bundled pipeline, as its recipe evaluates it: who speaks when, of voices that it was not trained on."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpu_daemon
from gpu_daemon.audio.decode import decode
from gpu_daemon.jobs.model import SAMPLE_RATE_HZ
from tests.espeak_speakers.conversations import Conversation, conversation
from tests.espeak_speakers.embedding import MEL_BINS, without_idle_blocks
from tests.espeak_speakers.evaluate import as_file, load, mistakes
from tests.espeak_speakers.sample import ORDER, SEED, sample
from tests.espeak_speakers.voices import ACCENTS, DEVELOPMENT, HELD_OUT, TRAINED, Speaker, say
from tests.media import read_pcm

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::")]  # pyannote's own

DEMO = Path(gpu_daemon.__file__).parent / "demo"
RECIPE = Path(__file__).parent.parent / "espeak_speakers" / "README.md"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load(DEMO / "pipeline", unmodified=False)


def test_it_tells_three_voices_apart_that_it_has_never_heard(pipeline: Any) -> None:
    """The recipe's README has the figures of whole files; this is as short as such little speech of each allows."""
    heard = conversation(900_300, 3, 75.0)
    assert {turn.speaker for turn in heard.turns} == {0, 1, 2}
    said = pipeline(as_file(heard)).speaker_diarization
    assert mistakes(heard, said)["diarization error rate"] <= 0.15


async def test_every_turn_of_the_bundled_conversation_gets_the_right_speaker(pipeline: Any, tmp_path: Path) -> None:
    decoded = await decode(DEMO / "conversation.ogg", tmp_path / "target", max_duration_s=60, trim_silence=False)
    samples = read_pcm(decoded.path).astype(np.float32) / np.float32(32768)
    said = pipeline(as_file(Conversation(samples, ()))).exclusive_speaker_diarization
    assert len(said.labels()) == 2
    names = defaultdict(set)
    for turn in json.loads((DEMO / "conversation.json").read_text()):
        seconds: Counter[str] = Counter()
        for segment, _, label in said.itertracks(yield_label=True):
            seconds[label] += max(0.0, min(segment.end, turn["end"]) - max(segment.start, turn["start"]))
        (label, longest), *_ = seconds.most_common()
        assert longest > 0.9 * (turn["end"] - turn["start"]), turn
        names[turn["speaker"]].add(label)
    assert [len(names[name]) for name in "AB"] == [1, 1]
    assert names["A"] != names["B"]


def test_the_bundled_conversation_is_made_as_the_readme_says() -> None:
    spoken = sample(SEED)
    turns = json.loads((DEMO / "conversation.json").read_text())
    assert "".join(turn["speaker"] for turn in turns) == ORDER
    assert [turn["text"] for turn in turns] == [each.text for each in spoken.sentences]
    assert [turn["end"] for turn in turns] == [pytest.approx(each.end_s, abs=0.01) for each in spoken.sentences]
    assert (DEMO / "conversation.ogg").stat().st_size < 300_000
    assert "sample gpu_daemon/demo/conversation.ogg" in RECIPE.read_text()


def test_thirty_voices_go_through_it(pipeline: Any) -> None:
    """It takes most of them for each other, as each says little; what is spoken it finds."""
    heard = conversation(900_930, 30, 150.0, variants=(*HELD_OUT, *DEVELOPMENT, *TRAINED))
    assert len({turn.speaker for turn in heard.turns}) == 30
    said = pipeline(as_file(heard)).speaker_diarization
    assert len(said.labels()) > 1
    assert mistakes(heard, said)["missed detection"] < 15


@pytest.mark.parametrize("accent", sorted({each for accents in ACCENTS.values() for each in accents}))
def test_no_accent_ignores_the_variant(accent: str) -> None:
    """espeak-ng does without a word for names like en-gb, and then two speakers are one."""
    one, other = (
        say(Speaker("en", f"{accent}+{variant}", 50, 150, 1.0), "One two.") for variant in ("paul", "norbert")
    )
    assert not np.array_equal(one, other)


def test_the_blocks_that_evaluation_leaves_out_add_nothing(pipeline: Any) -> None:
    model = pipeline._embedding.model_
    fbank = torch.randn(1, 100, MEL_BINS, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(model.resnet.forward_frames(fbank), without_idle_blocks(model).forward_frames(fbank))


def test_it_is_small_and_widened_when_it_is_loaded(pipeline: Any) -> None:
    assert sum(path.stat().st_size for path in (DEMO / "pipeline").rglob("*")) < 20_000_000
    assert {str(each.dtype) for each in pipeline._embedding.model_.parameters()} == {"torch.float32"}
    assert {str(each.dtype) for each in pipeline._segmentation.model.parameters()} == {"torch.float32"}
    assert pipeline._audio.sample_rate == SAMPLE_RATE_HZ
