"""Schemathesis against a daemon of its own, by the daemon's OpenAPI document: `python -m tests.fuzz --examples 200`.

Real HTTP, PostgreSQL and ffmpeg; a fake engine, so that jobs take no time. What cannot be reached this way: routes that
stream events, which never end for a client that waits for the whole answer.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gpu_daemon.database.pool import ConnectionParameters
from tests.media import wav
from tests.running import FAKE_ENGINE, ROOT, running_daemon
from tests.serving import tone
from tests.web import Site, answer

KEY = "a-key-for-schemathesis"
CONFIG = ROOT / "tests" / "schemathesis.toml"
SAME_AS_AT_THE_ROOT = "^/services/(micro|scale)/"
STREAMS = "/events$"
AUDIO = "/audio.wav"
WHAT_THERE_IS: dict[str, list[str]] = {
    "model": ["demo"],
    "language": ["en", "French", "auto"],
    "metadata": ['{"order": 7}'],
    "task": ["transcribe", "translate"],
}
"""Values of fields of which the document can only say that they are text."""
CONTRADICTIONS = (
    "word_timestamps", "channel_mode", "num_speakers", "min_speakers", "max_speakers", "known_speaker_names",
    "known_speaker_names[]", "known_speaker_references", "known_speaker_references[]",
)  # fmt: skip
"""What may be right by itself, and wrong with another field."""
ADDRESSES = {"url", "callback_url"}
"""The examples of these lead nowhere."""


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document for a daemon with one model, and without fields that may contradict others."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                for name in CONTRADICTIONS:
                    properties.pop(name, None)
                for name in ADDRESSES & properties.keys():
                    properties[name] = {key: said for key, said in properties[name].items() if key != "examples"}
                for name, values in WHAT_THERE_IS.items():
                    if properties.get(name, {}).get("type") == "string":
                        properties[name] = {"type": "string", "enum": values}
    return document


async def fuzz(
    directory: Path, database: ConnectionParameters | None, arguments: Sequence[str], *, excluded: str
) -> tuple[int, str]:
    """The exit status of `schemathesis run ARGUMENTS`, and what it said. `excluded`: paths, as a regular expression."""
    (directory / "audio.wav").write_bytes(wav(tone()[44:] * 2, channels=2))
    async with _site((directory / "audio.wav").read_bytes()) as url:
        settings = {
            "API_KEYS": KEY,
            "MAX_ATTEMPTS": "1",
            "FETCH_ALLOWED_NETWORKS": "loopback",
            "JOB_TIMEOUT_S": "20",
        }
        async with running_daemon(directory, database, **FAKE_ENGINE, **settings) as daemon:
            await daemon.line("runner.ready")
            key = {"Authorization": f"Bearer {KEY}"}
            await daemon.client.patch("/models/base", json={"enabled": False}, headers=key)  # it would be downloaded
            document = directory / "openapi.json"
            document.write_text(json.dumps(narrowed(await daemon.json("/openapi.json"))))
            process = await asyncio.create_subprocess_exec(
                *(Path(sys.executable).parent / "schemathesis", "--config-file", CONFIG, "run"),
                *(document, "--url", daemon.url, "--header", f"Authorization: Bearer {KEY}"),
                *("--exclude-path-regex", excluded, *arguments),
                cwd=directory,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(ROOT),
                    "SCHEMATHESIS_HOOKS": "tests.fuzz_hooks",
                    "FUZZED_URL": daemon.url,
                    "FUZZED_KEY": KEY,
                    "AUDIO_URL": url + AUDIO,
                    "AUDIO_FILE": str(directory / "audio.wav"),
                },
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate()
            broken = [line for line in daemon.lines if line.get("event") in ("request.broke", "request.failed")]
            assert process.returncode is not None
            return process.returncode or bool(broken), said.decode(errors="replace") + "".join(map(str, broken))


@asynccontextmanager
async def _site(audio: bytes) -> AsyncIterator[str]:
    """Where the daemon fetches audio, and delivers callbacks."""
    site = Site()
    site.put(AUDIO, answer(body=audio))
    await site.start()
    try:
        yield site.url
    finally:
        await site.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", default="100")
    given, others = parser.parse_known_args()
    arguments = ["--no-shrink", "--warnings", "off", "--max-examples", given.examples, "--continue-on-failure", *others]
    with tempfile.TemporaryDirectory(prefix="gpu_daemon-fuzz-") as directory:
        status, said = asyncio.run(fuzz(Path(directory), None, arguments, excluded=STREAMS))
    print(said)
    sys.exit(status)


if __name__ == "__main__":
    main()
