"""Makes the two-speaker conversation that is bundled.

    python -m tests.espeak_speakers.sample OUT.ogg

OUT.json beside it is the truth: a list of {"speaker", "start", "end", "text"}, one for each sentence, seconds.
"""

import json
import random
import sys
from pathlib import Path

from tests.espeak_speakers.voices import Speaker, say, sentence_of
from tests.speech import Spoken, joined, write

SEED = 501_002
"""Of the bundled one: the demo model of Whisper hears every word of it."""
SPEAKERS = {"A": Speaker("en", "en-us+paul", 35, 150, 1.0), "B": Speaker("en", "en-gb", 70, 150, 1.0)}
"""A held-out variant, and espeak-ng's own British voice; the bundled Whisper knows both."""
ORDER = "AABABBAABBAB"


def sample(seed: int) -> Spoken:
    rng = random.Random(seed)
    texts = [sentence_of(SPEAKERS[name], rng) for name in ORDER]
    said = [(text, say(SPEAKERS[name], text)) for name, text in zip(ORDER, texts, strict=True)]
    return joined("en", said, [rng.uniform(0.4, 1.0) for _ in said])


def main() -> None:
    spoken, out = sample(SEED), Path(sys.argv[1])
    write(spoken, out, "ogg")
    turns = [
        {"speaker": name, "start": round(each.start_s, 2), "end": round(each.end_s, 2), "text": each.text}
        for name, each in zip(ORDER, spoken.sentences, strict=True)
    ]
    out.with_suffix(".json").write_text("[\n" + ",\n".join(f"  {json.dumps(each)}" for each in turns) + "\n]\n")


if __name__ == "__main__":
    main()
