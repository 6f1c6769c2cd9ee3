"""What Schemathesis cannot know from the document. It imports this in a process of its own (tests/fuzz.py)."""

import os
from pathlib import Path
from typing import Any

import httpx2
import schemathesis
from hypothesis import strategies as st

AUDIO = Path(os.environ["AUDIO_FILE"]).read_bytes()
AUDIO_URL = os.environ["AUDIO_URL"]
DAEMON = httpx2.Client(
    base_url=os.environ["FUZZED_URL"], headers={"Authorization": f"Bearer {os.environ['FUZZED_KEY']}"}, trust_env=False
)
KINDS = ("wav", "mpeg", "mp4", "ogg", "flac", "webm")

# Any other bytes are no audio, and any other address leads nowhere.
for kind in (*(f"audio/{name}" for name in KINDS), "video/mp4", "video/webm", "video/quicktime"):
    schemathesis.openapi.media_type(kind, st.just(AUDIO))
schemathesis.openapi.format("uri", st.just(AUDIO_URL))


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """A daemon that refuses every job would make all that follows meaningless."""
    if case.method.upper() == "POST" and case.operation.path.endswith("/drain"):
        DAEMON.post("/resume")
        DAEMON.post("/workers/0/resume")
    if case.method.upper() == "PATCH":
        DAEMON.patch("/models/demo", json={"enabled": True})
        DAEMON.patch("/models/base", json={"enabled": False})
