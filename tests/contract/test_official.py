"""Our table of openai's checkpoints against the one in openai-whisper itself."""

import whisper

from gpu_daemon.catalogue.official import ALIASES, NAME_BY_SHA256, OFFICIAL_URLS, file_name_in, sha256_in


def test_the_table_is_openais() -> None:
    assert dict(OFFICIAL_URLS) == whisper._MODELS


def test_every_checkpoint_has_alignment_heads_under_its_plain_name() -> None:
    for name in OFFICIAL_URLS:
        plain = ALIASES.get(name, name)
        assert whisper._ALIGNMENT_HEADS[plain] == whisper._ALIGNMENT_HEADS[name]


def test_aliases_are_the_same_file() -> None:
    for alias, name in ALIASES.items():
        assert OFFICIAL_URLS[alias] == OFFICIAL_URLS[name]


def test_a_hash_tells_the_plain_name() -> None:
    assert len(NAME_BY_SHA256) == len(OFFICIAL_URLS) - len(ALIASES)
    for name, url in OFFICIAL_URLS.items():
        assert NAME_BY_SHA256[sha256_in(url)] == ALIASES.get(name, name)
        assert len(sha256_in(url)) == 64
        assert file_name_in(url) == f"{ALIASES.get(name, name)}.pt"
