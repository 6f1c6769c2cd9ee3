"""docs/clients.md does what it says: its lines and programs are run as they stand."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest
from playwright.async_api import async_playwright

from gpu_daemon.database.pool import ConnectionParameters
from tests.running import ROOT
from tests.serving import CHROMIUM, ServedDaemon, served_daemon, tone

TEXT = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
LOCAL = "http://localhost:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


async def run(directory: Path, served: ServedDaemon, *command: str, program: str) -> str:
    """What it prints; with everything that went wrong where it fails."""
    for name in ("talk.wav", "ada.wav"):
        (directory / name).write_bytes(tone(7.0))
    process = await asyncio.create_subprocess_exec(
        *(*command, program.replace(LOCAL, served.url)),
        cwd=directory,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, f"{program}\n{stdout.decode()}\n{stderr.decode()}"
    assert stderr == b"", program
    return stdout.decode()


async def test_curl(tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = blocks("sh")
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        said = await run(tmp_path, served, "sh", "-euc", program=lines)
        (by_hand, *_) = (await served.json("/jobs"))["jobs"]
        result = (await served.json(f"/jobs/{by_hand['job_id']}"))["result"]
    assert said.startswith(f"{result['text']}\n")
    assert "data: [DONE]\n" in said
    assert re.search(r'^event: end\ndata: .*"status": "completed"', said, re.MULTILINE)
    assert json.dumps(result["text"]) in said
    srt, vtt = said[said.index("1\n00:00:00,000") :].split("WEBVTT\n")
    assert srt.count("-->") >= 1
    assert vtt.count("<u>") == 8
    assert len(re.findall("^curl", lines, re.MULTILINE)) == 7


async def test_python(tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served_daemon(tmp_path, database, monkeypatch) as served:
        printed = [await run(tmp_path, served, sys.executable, "-c", program=block) for block in blocks("python")]
        (job, *_) = (await served.json("/jobs"))["jobs"]
        text = (await served.json(f"/jobs/{job['job_id']}"))["result"]["text"]
    client, speakers, with_asyncio, callback, openai = printed
    assert f"\n{text} 7.0\n" in f"\n{client}"
    assert "WEBVTT" in client
    assert [line.split()[1] for line in speakers.splitlines()] == ["Ada", "SPEAKER_00"]
    assert with_asyncio == f"{text}\n" == openai
    assert callback == ""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_javascript(tmp_path: Path, database: ConnectionParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = blocks("js")
    async with served_daemon(tmp_path, database, monkeypatch) as served, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-dev-shm-usage"])
        page = await browser.new_page()
        await page.goto(f"{served.url}/docs")
        async with page.expect_console_message(lambda message: message.text.startswith("completed")) as last:
            await page.evaluate(
                f"async samples => {{ const file = new File([new Uint8Array(samples)], 'talk.wav');\n"
                f"{program.replace(LOCAL, served.url)} }}",
                list(tone(7.0, 8_000)),
            )
        said = (await last.value).text
        await browser.close()
        (job,) = (await served.json("/jobs"))["jobs"]
        text = (await served.json(f"/jobs/{job['job_id']}"))["result"]["text"]
    assert said.split() == ["completed", *text.split()]


def test_the_programs_are_all_known() -> None:
    assert [len(blocks(language)) for language in ("sh", "python", "js")] == [1, 5, 1]
