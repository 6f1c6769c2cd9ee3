"""For a module one browser and one real daemon with the demo model and a fake that says who speaks; a page per test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright

from gpu_daemon.database.pool import ConnectionParameters
from tests.conftest import fresh_database
from tests.running import ONE_AT_A_TIME, RunningDaemon, running_daemon
from tests.serving import CHROMIUM

FAKE_DIARIZER = {"GPU_DAEMON_DIARIZER": "tests.fake_diarizer:create"}
LAPTOP = {"width": 1360, "height": 900}


@dataclass
class Visit:
    """A page and whatever was wrong with it."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Parts of complaints of the browser that belong to the test."""

    def watch(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"an exception: {error}"))
        self.page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(part in message.text for part in self.expected):
            self.wrong.append(f"on the console: {message.text}")

    def _asked(self, request: Request) -> None:
        if urlsplit(request.url).scheme not in ("blob", "data") and not request.url.startswith(self.url):
            self.wrong.append(f"another origin was asked: {request.url}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(
    postgres: ConnectionParameters, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("browser")
    pipeline = directory / "pipeline"
    pipeline.mkdir()
    (pipeline / "config.yaml").write_text("pipeline: {}")
    settings = ONE_AT_A_TIME | FAKE_DIARIZER | {"DIARIZATION_MODEL": str(pipeline)}
    async with fresh_database(postgres) as database, running_daemon(directory, database, **settings) as daemon:
        yield daemon


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-dev-shm-usage"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@asynccontextmanager
async def visiting(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visit]:
    """`options` are those of Browser.new_context. At the end nothing may have been wrong."""
    context = await browser.new_context(**{"viewport": LAPTOP, "reduced_motion": "reduce"} | options)
    visit = Visit(await context.new_page(), url)
    visit.watch()
    yield visit
    await context.close()
    assert visit.wrong == []
