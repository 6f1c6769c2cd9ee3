"""What a pipeline's config.yaml names; and that of 3.1, byte for byte, against what is pinned."""

import hashlib
from pathlib import PurePosixPath

import pytest

from gpu_daemon.catalogue.pins import PINS
from gpu_daemon.catalogue.pipeline_config import HUB_NAME, Unreadable, belongs, references, with_own_parts

THREE_ONE = """\
version: 3.1.0

pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: AgglomerativeClustering
    embedding: pyannote/wespeaker-voxceleb-resnet34-LM
    embedding_batch_size: 32
    embedding_exclude_overlap: true
    segmentation: pyannote/segmentation-3.0
    segmentation_batch_size: 32

params:
  clustering:
    method: centroid
    min_cluster_size: 12
    threshold: 0.7045654963945799
  segmentation:
    min_duration_off: 0.0
"""


def test_the_pins_are_whole() -> None:
    for name, listing in PINS.items():
        assert (listing.repository, len(listing.revision)) == (name, 40)
        assert all(len(file.sha256 or "") == 64 and belongs(PurePosixPath(file.path)) for file in listing.files)
    (config,) = PINS["pyannote/speaker-diarization-3.1"].files
    assert (config.size_bytes, config.sha256) == (len(THREE_ONE), hashlib.sha256(THREE_ONE.encode()).hexdigest())
    assert set(references(THREE_ONE).values()) < PINS.keys()


def test_what_is_elsewhere_is_looked_for_in_its_own_directory() -> None:
    assert references(THREE_ONE) == {
        "embedding": "pyannote/wespeaker-voxceleb-resnet34-LM",
        "segmentation": "pyannote/segmentation-3.0",
    }
    own = with_own_parts(THREE_ONE)
    assert own == THREE_ONE.replace("pyannote/wespeaker-voxceleb-resnet34-LM", "$model/embedding").replace(
        "pyannote/segmentation-3.0", "$model/segmentation"
    )
    assert references(own) == {}
    assert with_own_parts(own) == own


@pytest.mark.parametrize(
    "line", ["segmentation: 'a/b'", 'segmentation:   "a/b"', "segmentation: a/b  # the best", "segmentation: a/b\r"]
)
def test_ways_of_writing_a_name(line: str) -> None:
    config = f"pipeline:\n  params:\n    {line}\n\nparams:\n  segmentation: {{min_duration_off: 0.0}}\n"
    assert references(config) == {"segmentation": "a/b"}
    assert (
        with_own_parts(config).splitlines()[2].strip()
        == f"{line.partition('a/b')[0].rstrip(chr(34) + chr(39))}$model/segmentation"
    )


@pytest.mark.parametrize("said", ["/etc/passwd", "../other", "a/b@main", "a/b/c", "{checkpoint: a/b}", "$other/x"])
def test_other_ways_are_refused(said: str) -> None:
    with pytest.raises(Unreadable):
        references(f"pipeline:\n  params:\n    embedding: {said}\n")


@pytest.mark.parametrize("name", ["../x", "/etc", "x", "a/b/c", "a/..", ".a/b", "a/b?c", "a b/c", "a/b\n"])
def test_these_are_no_names_of_the_hub(name: str) -> None:
    assert HUB_NAME.fullmatch(name) is None
