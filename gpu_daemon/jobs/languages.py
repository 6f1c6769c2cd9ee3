"""The languages of Whisper, and what clients call them (pure)."""

import re
from difflib import get_close_matches
from types import MappingProxyType

from gpu_daemon.errors import InvalidRequest

AUTO = "auto"

# In the order of Whisper's language tokens. `yue` came last, with large-v3: older models do not have it.
# fmt: off
LANGUAGES = MappingProxyType({
    "en": "English", "zh": "Chinese", "de": "German", "es": "Spanish", "ru": "Russian", "ko": "Korean",
    "fr": "French", "ja": "Japanese", "pt": "Portuguese", "tr": "Turkish", "pl": "Polish", "ca": "Catalan",
    "nl": "Dutch", "ar": "Arabic", "sv": "Swedish", "it": "Italian", "id": "Indonesian", "hi": "Hindi",
    "fi": "Finnish", "vi": "Vietnamese", "he": "Hebrew", "uk": "Ukrainian", "el": "Greek", "ms": "Malay",
    "cs": "Czech", "ro": "Romanian", "da": "Danish", "hu": "Hungarian", "ta": "Tamil", "no": "Norwegian",
    "th": "Thai", "ur": "Urdu", "hr": "Croatian", "bg": "Bulgarian", "lt": "Lithuanian", "la": "Latin", "mi": "Maori",
    "ml": "Malayalam", "cy": "Welsh", "sk": "Slovak", "te": "Telugu", "fa": "Persian", "lv": "Latvian",
    "bn": "Bengali", "sr": "Serbian", "az": "Azerbaijani", "sl": "Slovenian", "kn": "Kannada", "et": "Estonian",
    "mk": "Macedonian", "br": "Breton", "eu": "Basque", "is": "Icelandic", "hy": "Armenian", "ne": "Nepali",
    "mn": "Mongolian", "bs": "Bosnian", "kk": "Kazakh", "sq": "Albanian", "sw": "Swahili", "gl": "Galician",
    "mr": "Marathi", "pa": "Punjabi", "si": "Sinhala", "km": "Khmer", "sn": "Shona", "yo": "Yoruba", "so": "Somali",
    "af": "Afrikaans", "oc": "Occitan", "ka": "Georgian", "be": "Belarusian", "tg": "Tajik", "sd": "Sindhi",
    "gu": "Gujarati", "am": "Amharic", "yi": "Yiddish", "lo": "Lao", "uz": "Uzbek", "fo": "Faroese",
    "ht": "Haitian Creole", "ps": "Pashto", "tk": "Turkmen", "nn": "Nynorsk", "mt": "Maltese", "sa": "Sanskrit",
    "lb": "Luxembourgish", "my": "Myanmar", "bo": "Tibetan", "tl": "Tagalog", "mg": "Malagasy", "as": "Assamese",
    "tt": "Tatar", "haw": "Hawaiian", "ln": "Lingala", "ha": "Hausa", "ba": "Bashkir", "jw": "Javanese",
    "su": "Sundanese", "yue": "Cantonese",
})
# fmt: on

# The other names that openai-whisper knows, and codes that people use where Whisper has its own.
ALIASES = MappingProxyType(
    {
        "burmese": "my",
        "valencian": "ca",
        "flemish": "nl",
        "haitian": "ht",
        "letzeburgesch": "lb",
        "pushto": "ps",
        "panjabi": "pa",
        "moldavian": "ro",
        "moldovan": "ro",
        "sinhalese": "si",
        "castilian": "es",
        "mandarin": "zh",
        "jv": "jw",
        "nb": "no",
        "fil": "tl",
        "iw": "he",
    }
)

_CODES = {
    **{code: code for code in LANGUAGES},
    **{name.casefold(): code for code, name in LANGUAGES.items()},
    **ALIASES,
}
_WITH_REGION = re.compile(r"([a-z]{2,3})[-_][a-z0-9_-]+")


def language_code(said: str) -> str | None:
    """The code of an English name (`Russian`), a code (`ru`) or a code with a region (`pt-BR`); None for `auto`.

    Raises InvalidRequest with the nearest name.
    """
    wanted = " ".join(said.casefold().split())
    if wanted == AUTO:
        return None
    region = _WITH_REGION.fullmatch(wanted)
    code = _CODES.get(region[1] if region else wanted)
    if code is None:
        near = get_close_matches(wanted, [name for name in _CODES if len(name) > 3], n=1)
        hint = f"did you mean {LANGUAGES[_CODES[near[0]]]}?" if near else "GET /languages lists them all"
        raise InvalidRequest(
            f"Whisper has no language {said[:40]!r}; say an English name (Russian), a code (ru) or auto; {hint}",
            param="language",
        )
    return code
