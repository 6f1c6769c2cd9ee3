"""What tests/gpu listens to: a part of the parity corpus, made where espeak-ng is and carried to where it is not.

`python -m tests.gpu.recordings` makes it (`bench/gpu.sh pack`).
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpu_daemon.engine.base import Audio

NAMES = (
    *("fr-dialogue", "all-kinds", "garbage-prose", "60s", "after-silence", "silence-inside"),
    *("en-sentence", "fr-sentence", "500ms", "one-hop"),
)
PATH = Path(__file__).parents[2] / ".cache" / "gpu" / "recordings.npz"
FULL_SCALE = np.float32(32768)


@cache
def recording(name: str) -> Audio:
    """Raises FileNotFoundError when nobody has made them."""
    with np.load(PATH) as stored:
        samples: Audio = stored[name].astype(np.float32) / FULL_SCALE
    return samples


def main() -> None:
    from tests.parity import corpus  # which asks for espeak-ng

    PATH.parent.mkdir(parents=True, exist_ok=True)
    pcm: dict[str, Any] = {name: (corpus.recording(name).samples * FULL_SCALE).astype(np.int16) for name in NAMES}
    np.savez_compressed(PATH, **pcm)


if __name__ == "__main__":
    main()
