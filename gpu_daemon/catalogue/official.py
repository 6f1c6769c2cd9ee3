"""openai's checkpoints: where they are and, in the address, the SHA-256 they must have (openai-whisper 20250625)."""

from collections.abc import Mapping
from types import MappingProxyType

_BASE = "https://openaipublic.azureedge.net/main/whisper/models"
_LARGE_V3 = f"{_BASE}/e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb/large-v3.pt"
_TURBO = f"{_BASE}/aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a/large-v3-turbo.pt"

OFFICIAL_URLS: Mapping[str, str] = MappingProxyType(
    {
        "tiny.en": f"{_BASE}/d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03/tiny.en.pt",
        "tiny": f"{_BASE}/65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9/tiny.pt",
        "base.en": f"{_BASE}/25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead/base.en.pt",
        "base": f"{_BASE}/ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e/base.pt",
        "small.en": f"{_BASE}/f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872/small.en.pt",
        "small": f"{_BASE}/9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794/small.pt",
        "medium.en": f"{_BASE}/d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f/medium.en.pt",
        "medium": f"{_BASE}/345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1/medium.pt",
        "large-v1": f"{_BASE}/e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a/large-v1.pt",
        "large-v2": f"{_BASE}/81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524/large-v2.pt",
        "large-v3": _LARGE_V3,
        "large": _LARGE_V3,
        "large-v3-turbo": _TURBO,
        "turbo": _TURBO,
    }
)
ALIASES: Mapping[str, str] = MappingProxyType({"large": "large-v3", "turbo": "large-v3-turbo"})


def sha256_in(url: str) -> str:
    return url.split("/")[-2]


def file_name_in(url: str) -> str:
    return url.split("/")[-1]


NAME_BY_SHA256: Mapping[str, str] = MappingProxyType(
    {sha256_in(url): ALIASES.get(name, name) for name, url in OFFICIAL_URLS.items()}
)
"""Tells which of openai's checkpoints a file is, whatever it is called."""
