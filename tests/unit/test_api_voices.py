import asyncio
import base64
import hashlib
from pathlib import Path

import pytest

from gpu_daemon.api.voices import MAX_REFERENCE_CHARACTERS, Voice, kept, voices
from gpu_daemon.errors import InvalidRequest, NotMedia
from gpu_daemon.jobs.model import KnownSpeaker
from tests.media import wav

URL = "data:audio/wav;base64,UklGRg=="


def seconds(number: float) -> bytes:
    return wav(b"\1\2" * int(16_000 * number))


def encoded(audio: bytes) -> str:
    return base64.b64encode(audio).decode()


async def stored(directory: Path, *known: Voice) -> tuple[KnownSpeaker, ...]:
    return await kept(known, directory, reserve_bytes=0, probing=asyncio.Semaphore(1))


def test_names_and_references_by_both_spellings() -> None:
    expected = (Voice("Ada", "UklGRg=="), Voice("Grace Hopper", "UklGRg=="))
    names = ["Ada", "  Grace\t\x00Hopper\u202e "]
    for form in (
        {"known_speaker_names": names, "known_speaker_references": [URL, URL]},
        {
            "known_speaker_names[]": names,
            "known_speaker_references[]": [URL, "DATA:audio/ogg;codecs=opus;base64,UklGRg=="],
        },
    ):
        assert voices(form, complete=True) == expected
    assert "UklG" not in repr(expected)


@pytest.mark.parametrize(
    ("names", "references", "param"),
    [
        (["Ada"], [], "known_speaker_names"),
        ([], [URL], "known_speaker_names"),
        (["Ada", "Ada"], [URL, URL], "known_speaker_names"),
        (["Ada", "Ad\u0061\u200b"], [URL, URL], "known_speaker_names"),
        (["\u200b"], [URL], "known_speaker_names"),
        (["x" * 65], [URL], "known_speaker_names"),
        (["SPEAKER_07"], [URL], "known_speaker_names"),
        (["a", "b", "c", "d", "e"], [URL] * 5, "known_speaker_names"),
        (["Ada"], ["https://example.org/ada.wav"], "known_speaker_references"),
        (["Ada"], ["file:///etc/passwd"], "known_speaker_references"),
        (["Ada"], ["data:audio/wav,RIFF"], "known_speaker_references"),
        (["Ada"], [f"data:audio/wav;{'x' * 200};base64,"], "known_speaker_references"),
        (["Ada"], [URL + "A" * MAX_REFERENCE_CHARACTERS], "known_speaker_references"),
    ],
)
def test_what_is_wrong_with_them(names: list[str], references: list[str], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        voices({"known_speaker_names": names, "known_speaker_references[]": references}, complete=True)
    assert caught.value.param == param
    assert len(caught.value.message) < 200


async def test_their_files_are_beside_the_jobs(tmp_path: Path) -> None:
    ada, grace = seconds(2), seconds(10)
    wrapped = base64.encodebytes(grace).decode()
    known = await stored(tmp_path / "job", Voice("Ada", encoded(ada)), Voice("Grace", wrapped))
    assert [(each.name, each.sha256) for each in known] == [
        ("Ada", hashlib.sha256(ada).hexdigest()),
        ("Grace", hashlib.sha256(grace).hexdigest()),
    ]
    assert {path.name: path.read_bytes() for path in (tmp_path / "job").iterdir()} == {"voice-0": ada, "voice-1": grace}


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        (encoded(seconds(1.5)), InvalidRequest, "number 1 lasts 1.5 s; send 2 to 10 s"),
        (encoded(seconds(11)), InvalidRequest, "lasts 11.0 s"),
        (encoded(b"not audio at all"), NotMedia, "number 1: this is not audio"),
        ("", NotMedia, "number 1: the file is empty"),
        ("UklGR", InvalidRequest, "number 1 is not Base64"),
        ("Ukl%41", InvalidRequest, "number 1 is not Base64"),
        ("Uklé", InvalidRequest, "number 1 is not Base64"),
    ],
)
async def test_a_reference_that_will_not_do(
    tmp_path: Path, reference: str, error: type[InvalidRequest], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        await stored(tmp_path / "job", Voice("Ada", reference))
    assert caught.value.param == "known_speaker_references"
