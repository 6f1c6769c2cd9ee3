"""kill -9 in the middle of a download: nothing under the final name, and the next one goes on from there."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from gpu_daemon.catalogue.download import Downloader
from gpu_daemon.catalogue.official import sha256_in
from tests.origin import Origin, Reply, checkpoint

CONTENT = checkpoint(4_000_000)
HOLD_AFTER = 3_000_000
SCRIPT = """
import asyncio, sys
from pathlib import Path
from gpu_daemon.catalogue.download import Downloader
url, sha256, target = sys.argv[1:]
asyncio.run(Downloader().fetch(url, sha256, Path(target), lambda done, size: print(done, flush=True)))
"""


async def test_kill_in_the_middle_of_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    origin, target, part = Origin(), tmp_path / "tiny.pt", tmp_path / "tiny.pt.part"
    await origin.start()
    url = origin.publish("tiny", CONTENT)
    origin.plan(Reply(hold_after=HOLD_AFTER))
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, url, sha256_in(url), str(target), stdout=asyncio.subprocess.PIPE
    )
    assert killed.stdout is not None
    async with asyncio.timeout(30):
        while int(await killed.stdout.readline()) < 1_000_000:
            pass
        killed.send_signal(signal.SIGKILL)
        await killed.communicate()
    assert not target.exists()
    kept = part.read_bytes()
    assert 1_000_000 <= len(kept) <= HOLD_AFTER
    assert CONTENT.startswith(kept)

    origin.release()
    downloader = Downloader()
    assert await downloader.fetch(url, sha256_in(url), target, lambda *_: None)
    assert origin.ranges == [None, str(len(kept))]
    assert target.read_bytes() == CONTENT
    assert not part.exists()
    await downloader.close()
    await origin.stop()
