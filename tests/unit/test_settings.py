"""What is refused of a setting is said without what it holds."""

import pytest

from gpu_daemon.errors import SettingsError
from gpu_daemon.settings import load_settings


@pytest.mark.parametrize("token", ["hf_secret\nmore", "hf_secret more", "hf_sécret"])
def test_a_token_that_no_header_can_carry_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.message == "HF_TOKEN: it is not a token of Hugging Face (hf_…)"


def test_a_token_may_come_from_a_file_with_its_last_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    token = load_settings().hf_token
    assert token is not None
    assert token.get_secret_value() == "hf_secret"
    monkeypatch.setenv("HF_TOKEN", " ")
    assert load_settings().hf_token is None


@pytest.mark.parametrize(
    "url", ["huggingface.co", "ftp://mirror", "https://", "https://me:secret@mirror", "https://m?x=1"]
)
def test_the_hub_has_an_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(SettingsError, match="HF_ENDPOINT: it must be an http"):
        load_settings()
