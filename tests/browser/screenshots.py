"""The pictures of the README: `python -m tests.browser.screenshots` writes docs/page-light.png, -dark and -phone.

Of a real daemon with the bundled models on two CPU workers: recordings done, running and waiting, callbacks delivered
and refused, and a conversation of which the page says who spoke. Takes some minutes.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, expect

from gpu_daemon.audio.ffmpeg import find_ffmpeg
from gpu_daemon.demo.tour import TRUTH
from tests.browser.conftest import launched
from tests.receiver import Receiver, Reply
from tests.running import ROOT, RunningDaemon

CONVERSATION = TRUTH.with_name("conversation.ogg")
DONE = ("morning-news.ogg", "interview-anna.ogg", "call-2231.ogg", "lecture-07.ogg")
LONG = ("board-meeting.ogg", "podcast-41.ogg", "call-2232.ogg", "hearing.ogg", "interview-boris.ogg", "lecture-08.ogg")
LOOPS = 120
WATCHED_S = 75
"""How much the lines of the cards show."""
SLOW_MS = 300_000
SETTINGS = {
    "DEVICES": "cpu,cpu",
    "JOBS_PER_GPU": "2",
    "DIARIZATION_MODEL": "demo",
    "DRAIN_TIMEOUT_S": "0",
    "REUSE_RESULTS": "true",
}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 1180}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 1180}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 1180}, "device_scale_factor": 1.5},
}


async def main() -> None:
    receiver = Receiver()
    await receiver.start()
    with tempfile.TemporaryDirectory(prefix="screenshots-") as directory:
        daemon = RunningDaemon(Path(directory) / "data", None, SETTINGS)
        try:
            await daemon.start(timeout_s=300)
            await daemon.client.patch("/models/base", json={"enabled": False})
            await work(daemon, receiver, Path(directory))
            async with launched() as browser:
                pages = {name: await opened(browser, daemon.url, options) for name, options in LOOKS.items()}
                for page in pages.values():
                    await tried(page)
                for name in LONG:
                    await daemon.submit(await looped(Path(directory) / name))
                await asyncio.sleep(WATCHED_S)
                await pages["phone"].evaluate("document.getElementById('try').scrollIntoView()")
                for name, page in pages.items():
                    await page.screenshot(path=ROOT / "docs" / f"page-{name}.png")
        finally:
            await daemon.close()
            await receiver.stop()


async def work(daemon: RunningDaemon, receiver: Receiver, directory: Path) -> None:
    """What is done before anybody looks; the last callback is refused once."""
    for name in DONE:
        recording = directory / name
        recording.write_bytes(CONVERSATION.read_bytes())
        if name == DONE[-1]:
            receiver.plan(Reply(status=503))
        job = await daemon.submit(recording, reuse_result="false", callback_url=f"{receiver.url}/transcripts")
        await daemon.finished(job["job_id"], timeout_s=300)


async def opened(browser: Browser, url: str, options: dict[str, Any]) -> Page:
    page = await (await browser.new_context(**options)).new_page()
    await page.goto(url)
    await expect(page.locator("#connection")).to_have_text("live", timeout=SLOW_MS)
    return page


async def tried(page: Page) -> None:
    await page.set_input_files("#file", CONVERSATION)
    await page.select_option("#try-model", "demo")
    await page.get_by_label("Who speaks when").check()
    await page.get_by_label("How many").fill("2")
    await page.get_by_role("button", name="Transcribe").click()
    await expect(page.locator("#try-job .chip")).to_have_text("completed", timeout=SLOW_MS)


async def looped(recording: Path) -> Path:
    """The conversation over and over, for about an hour."""
    arguments = ("-stream_loop", str(LOOPS), "-i", CONVERSATION, "-c", "copy", recording)
    ffmpeg = await asyncio.create_subprocess_exec(find_ffmpeg(), "-v", "error", *arguments)
    assert await ffmpeg.wait() == 0
    return recording


if __name__ == "__main__":
    asyncio.run(main())
