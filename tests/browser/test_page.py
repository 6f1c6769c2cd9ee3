"""The page in a real browser: first against the real daemon with its demo model, then with made-up answers."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Route, WebSocketRoute, expect

from gpu_daemon.demo.tour import TRUTH
from tests.browser import made
from tests.browser.conftest import LAPTOP, Visit, visiting
from tests.browser.made import Pretend
from tests.running import ROOT, RunningDaemon
from tests.serving import CHROMIUM, tone

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
SAMPLE = TRUTH.with_suffix(".ogg")
AXE = ROOT / ".cache" / "javascript" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"width": 390, "height": 844}
SLOW_MS = 60_000
"""For what the daemon does; the machine may be busy."""
EVIL = '<img src=x onerror="globalThis.pwned=1"><script>globalThis.pwned=1</script>'
COLOURS = "lines => lines.map((line) => getComputedStyle(line).borderLeftColor)"
SEEN = """() => {
  globalThis.seen = [];
  new MutationObserver(() => {
    const progress = document.querySelector("#try-job progress");
    const chip = document.querySelector("#try-job .chip");
    if (progress && !progress.hidden && chip.textContent === "processing") seen.push(progress.value);
  }).observe(document.getElementById("try"), { subtree: true, childList: true, attributes: true, characterData: true });
}"""


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser, daemon: RunningDaemon) -> AsyncIterator[Visit]:
    async with visiting(browser, daemon.url) as visit:
        yield visit


async def pretend(visit: Visit, state: dict[str, Any], jobs: list[dict[str, Any]] | None = None) -> Pretend:
    pretend = Pretend(visit.page, state, [] if jobs is None else jobs)
    await pretend.start()
    return pretend


async def opened(visit: Visit, path: str = "/") -> None:
    await visit.page.goto(visit.url + path)
    await expect(visit.page.locator("#connection")).to_have_text("live", timeout=SLOW_MS)


async def test_a_recording_is_dropped_watched_read_and_downloaded(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    await opened(visit)
    await page.evaluate(SEEN)
    await page.set_input_files("#file", SAMPLE)
    await page.select_option("#try-model", "demo")
    await page.get_by_label("Who speaks when").check()
    await page.get_by_label("How many").fill("2")
    await page.get_by_role("button", name="Transcribe").click()
    await expect(page.locator("#try-job .chip")).to_have_text("completed", timeout=SLOW_MS)
    seen = await page.evaluate("seen")
    assert seen == sorted(seen)
    assert len(set(seen)) > 1, "it was seen to move"
    lines = page.locator("#try-job .transcript li")
    await expect(lines.first).to_contain_text(TRUTH.read_text().split(".")[0])
    speakers = await lines.evaluate_all("lines => lines.map((line) => line.dataset.speaker)")
    pairs = set(zip(speakers, await lines.evaluate_all(COLOURS), strict=True))
    assert {speaker for speaker, _ in pairs} == {"SPEAKER_00", "SPEAKER_01"}
    assert len(pairs) == len({colour for _, colour in pairs}) == 2, "each has a colour"

    async with page.expect_download() as downloading:
        await page.get_by_role("button", name="Download as srt").click()
    download = await downloading.value
    assert download.suggested_filename == f"{SAMPLE.stem}.srt"
    await download.save_as(tmp_path / "sample.srt")
    assert (tmp_path / "sample.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:0")

    await expect(page.locator("#job-rows tr").first).to_contain_text("completed", timeout=SLOW_MS)
    await page.locator("#job-rows a").first.click()
    drawer = page.get_by_role("dialog", name=SAMPLE.name)
    await expect(drawer.locator(".timeline")).to_contain_text("transcribing")
    assert re.fullmatch(r"#/jobs/[0-9a-f-]{36}", await page.evaluate("location.hash"))
    await page.keyboard.press("Escape")
    await expect(drawer).to_be_hidden()
    assert await page.evaluate("location.hash") == ""


async def test_a_worker_is_drained_and_a_queued_job_cancelled_by_keyboard(
    visit: Visit, daemon: RunningDaemon, tmp_path: Path
) -> None:
    page = visit.page
    await opened(visit)
    await page.get_by_role("button", name="Drain CPU 0").click()
    await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    await expect(page.locator(".card .chip")).to_have_text("drained", timeout=SLOW_MS)
    recording = tmp_path / "long talk.wav"
    recording.write_bytes(tone(3.0))
    job = await daemon.submit(recording)

    row = page.locator("#job-rows tr", has_text=recording.name)
    await expect(row).to_contain_text("queued", timeout=SLOW_MS)
    await row.get_by_role("button", name="Cancel").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name="Cancel this job?")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.keyboard.press("Enter")  # the focus is back where it was
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(row).to_contain_text("cancelled", timeout=SLOW_MS)
    assert (await daemon.job(job["job_id"]))["status"] == "cancelled"
    await expect(row.get_by_role("button")).to_be_hidden()

    await page.get_by_role("button", name="Resume CPU 0").click()
    await expect(page.locator(".card .chip")).to_have_text("idle", timeout=SLOW_MS)


async def test_a_connection_that_is_cut_is_said_and_comes_back_by_itself(
    visit: Visit, daemon: RunningDaemon, tmp_path: Path
) -> None:
    visit.expected = ("ERR_FAILED",)
    page = visit.page
    cut = False
    open_sockets: list[WebSocketRoute] = []

    async def carry(socket: WebSocketRoute) -> None:
        if cut:
            await socket.close()
        else:
            socket.connect_to_server()
            open_sockets.append(socket)

    async def answer(route: Route) -> None:
        await (route.abort() if cut else route.continue_())

    await page.route_web_socket("**/ws/dashboard", carry)
    await page.route("**/dashboard/state", answer)
    await opened(visit)
    await page.evaluate("globalThis.same = true")
    cut = True
    for socket in open_sockets:
        await socket.close()
    await expect(page.locator("#banner")).to_contain_text(re.compile(r"Reconnecting.* What you see is \d+ s old"))
    assert await page.title() == "no answer · gpu_daemon"
    recording = tmp_path / "meanwhile.wav"
    recording.write_bytes(tone(1.0))
    await daemon.submit(recording)
    await expect(page.locator("#job-rows", has_text=recording.name)).to_be_hidden()

    cut = False
    await expect(page.locator("#connection")).to_have_text("live", timeout=SLOW_MS)
    await expect(page.locator("#banner")).to_be_hidden()
    await expect(page.locator("#job-rows")).to_contain_text(recording.name, timeout=SLOW_MS)
    assert await page.evaluate("globalThis.same"), "without loading the page again"


async def test_a_gap_is_noticed_and_a_whole_state_asked_for(visit: Visit) -> None:
    daemon = await pretend(visit, made.state(1, 0))
    await opened(visit)
    daemon.tell(version="0.2.0")
    await expect(visit.page.locator("#about")).to_contain_text("version 0.2.0")
    assert daemon.asked == []
    daemon.tell(skip=1, version="0.3.0")
    await expect(visit.page.locator("#about")).to_contain_text("version 0.3.0")
    assert daemon.asked == [{"type": "snapshot"}]


async def test_where_websockets_do_not_get_through_the_state_is_asked_for(visit: Visit) -> None:
    daemon = await pretend(visit, made.state(1, 0))
    daemon.sockets_blocked = True
    await visit.page.goto(visit.url)
    await expect(visit.page.locator("#connection")).to_have_text("live, by asking")
    daemon.state["version"] = "0.2.0"
    await expect(visit.page.locator("#about")).to_contain_text("version 0.2.0", timeout=SLOW_MS)


async def test_paused_means_that_nothing_is_asked(visit: Visit) -> None:
    page = visit.page
    daemon = await pretend(visit, made.state(2, 40), [made.job(number) for number in range(40)])
    await page.clock.install()
    await opened(visit)
    await expect(page.locator("#job-rows tr").nth(5)).to_be_visible()
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("#connection")).to_have_text("paused")
    await page.clock.run_for(3000)
    daemon.tell(version="0.2.0")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    await page.clock.run_for(60_000)
    await expect(page.locator("#banner")).to_contain_text("Paused. What you see is 1 min")
    assert asked == []
    assert "0.2.0" not in await page.locator("#about").inner_text()
    await page.get_by_role("button", name="Go on").click()
    await expect(page.locator("#connection")).to_have_text("live")
    await expect(page.locator("#about")).to_contain_text("version 0.2.0")


async def test_a_key_is_asked_for_and_sent_first_on_the_websocket(visit: Visit) -> None:
    visit.expected = ("401",)
    page = visit.page
    daemon = await pretend(visit, made.state(1, 0))
    daemon.key = "sesame"
    await page.goto(visit.url)
    await page.get_by_label("API key").fill("sesame")
    await page.keyboard.press("Enter")
    await expect(page.locator("#connection")).to_have_text("live")
    assert daemon.asked == [{"type": "key", "key": "sesame"}]
    await expect(page.locator("#key")).to_be_hidden()
    await page.reload()
    await expect(page.locator("#connection")).to_have_text("live")


async def test_what_the_daemon_says_is_text_and_never_markup(visit: Visit) -> None:
    page = visit.page
    state = made.state(1, 1)
    state["models"][0]["name"] = state["models"][0]["error"] = EVIL
    state["events"][0]["text"] = EVIL
    state["health"]["reason"] = EVIL
    state["workers"][0] |= {"error": EVIL, "loaded": {EVIL: 1.0}}
    state["workers"][0]["device"]["name"] = EVIL
    state["workers"][0]["jobs"][0] |= {"model": EVIL, "stage": EVIL}
    error = {"code": "bad", "message": EVIL}
    talk = made.talk(
        7, ((EVIL, EVIL),), file_name=EVIL, model=EVIL, metadata={EVIL: EVIL}, error=error, source_url=EVIL
    )
    await pretend(visit, state, [talk])
    await opened(visit, f"/#/jobs/{talk['job_id']}")
    await expect(page.locator("#drawer .transcript .who")).to_have_text(EVIL)
    await expect(page.get_by_role("dialog", name=EVIL)).to_be_visible()
    await expect(page.locator("#reason")).to_have_text(EVIL)
    await expect(page.locator("#job-rows tr a")).to_have_text(EVIL)
    assert await page.locator('[src="x"], script:not([src])').count() == 0
    assert await page.evaluate("globalThis.pwned") is None


async def test_each_speaker_has_a_colour(visit: Visit) -> None:
    said = (*made.SAID, ("Anna", "שלום, עולם!"))
    talk = made.talk(7, said)
    await pretend(visit, made.state(1, 0), [talk])
    await opened(visit, f"/#/jobs/{talk['job_id']}")
    lines = visit.page.locator("#drawer .transcript li")
    await expect(lines).to_have_count(len(said))
    colours = await lines.evaluate_all(COLOURS)
    pairs = set(zip((speaker for speaker, _ in said), colours, strict=True))
    assert len(pairs) == len(set(colours)) == 2
    assert await visit.page.locator("#drawer .who").all_inner_texts() == ["Anna", "Boris", "Anna"]
    directions = await lines.locator(".text").evaluate_all(
        "texts => texts.map((text) => getComputedStyle(text).direction)"
    )
    assert directions == ["ltr"] * len(made.SAID) + ["rtl"]


async def test_what_is_not_known_is_a_dash(visit: Visit) -> None:
    """Also members that an older daemon does not have."""
    page = visit.page
    state = made.state(1, 0)
    for member in ("database", "telemetry", "callbacks", "events", "paused_by_drain"):
        del state[member]
    for name, value in state["queue"].items():
        state["queue"][name] = value if name in ("queued", "running") or isinstance(value, list) else None
    state["workers"][0]["jobs"][0] |= {"speed": None, "left_s": None, "duration_s": None}
    daemon = await pretend(visit, state)
    await opened(visit)
    await expect(page.locator("#figures")).to_contain_text("–\ncompleted", use_inner_text=True)
    assert re.findall(r"–", await page.locator(".tiles").inner_text()) == ["–"] * 4
    said = await page.locator("body").inner_text()
    assert not re.search(r"\b(NaN|undefined|null|Infinity)\b", said)
    daemon.tell(workers=[], models=[])
    await expect(page.locator("#no-workers")).to_be_visible()
    await expect(page.locator("#no-models")).to_be_visible()


async def test_a_pipeline_may_have_the_name_of_a_model(visit: Visit) -> None:
    daemon = await pretend(visit, made.state(1, 0))
    await opened(visit)
    daemon.tell(models=[made.model("demo", "verifying", 17), made.model("demo", "waiting", 13, source="pipeline")])
    chips = visit.page.locator("#model-rows .chip")
    await expect(chips).to_have_text(["verifying", "waiting"])
    daemon.tell(models=[made.model("demo", "ready", 17), made.model("demo", "failed", 13, source="pipeline")])
    await expect(chips).to_have_text(["ready", "failed"])


async def test_eight_gpus_and_500_queued_jobs_stay_smooth(visit: Visit) -> None:
    """By the processor time of the page's thread, which a busy machine does not add to."""
    page = visit.page
    daemon = await pretend(visit, made.state(8, 500), [made.job(number) for number in range(500)])
    await opened(visit)
    await expect(page.locator(".card")).to_have_count(8)
    await expect(page.locator("#job-rows tr")).to_have_count(20)
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    async def busy_s() -> float:
        answer = await devtools.send("Performance.getMetrics")
        return float(next(metric["value"] for metric in answer["metrics"] if metric["name"] == "TaskDuration"))

    updates = 20
    before_s = await busy_s()
    for tick in range(1, updates + 1):
        now = made.state(8, 500, tick)
        daemon.tell(version=f"0.1.{tick}", **{name: now[name] for name in ("workers", "telemetry", "queue", "models")})
        await expect(page.locator("#about")).to_contain_text(f"version 0.1.{tick} ")
    assert (await busy_s() - before_s) / updates < 0.1, "of 0.25 s that an update has; it is 0.03 s"

    await page.get_by_role("button", name="Older").click()
    await expect(page.locator("#job-rows tr").first).to_contain_text("interview-020")
    await page.get_by_role("button", name="Newer").click()
    await expect(page.locator("#job-rows tr").first).to_contain_text("interview-000")
    await page.get_by_label("Find").fill(" view-499")
    await expect(page.locator("#job-rows a")).to_have_text(["interview-499.mp3"])
    await page.select_option("#by-status", "failed")
    await expect(page.locator("#no-jobs")).to_have_text("No job is like this.")


async def test_what_goes_wrong_is_said_where_it_is_seen_until_it_goes_well(visit: Visit) -> None:
    visit.expected = ("503",)
    page = visit.page
    state = made.state(1, 0)
    error = {"code": "not_media", "message": "this is not audio or video that ffmpeg can read"}
    failed = made.job(7, status="failed", error=error)
    state["workers"][0]["state"] = "quarantined"
    state["models"][1] |= {"state": "failed", "error": "no"}
    state["events"][0]["text"] = f"job {failed['job_id']} failed: not_media"
    await pretend(visit, state, [failed, made.job(8, status="cancelled", error=error)])
    await opened(visit)
    await expect(page.locator("#job-rows .why")).to_have_text([error["message"], ""])
    await expect(page.locator("#callback-rows .chip")).to_have_text(["dead", "retrying"])
    await expect(page.locator("#reason")).to_have_text("1 worker quarantined · turbo cannot be used")
    await page.locator("#reason").get_by_role("link", name="turbo").click()
    assert await page.evaluate("location.hash") == "#models"
    event = page.locator("#event-rows li").first
    await expect(event).to_contain_text("job 00000007 failed: not_media")
    await event.get_by_role("link").click()
    await expect(page.locator("#drawer .notice")).to_contain_text(error["message"])
    await page.keyboard.press("Escape")

    away = {"error": {"message": "the database does not answer"}}
    await page.route("**/dashboard/history?window=1h", lambda route: route.fulfill(status=503, json=away))
    await page.get_by_role("button", name="1 h").click()
    await expect(page.get_by_role("alert")).to_contain_text(away["error"]["message"])
    await page.get_by_role("button", name="24 h").click()
    await expect(page.get_by_role("alert")).to_be_hidden()


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": LAPTOP},
    "dark": {"color_scheme": "dark", "viewport": LAPTOP},
    "phone": {"color_scheme": "light", "viewport": PHONE},
}


@pytest.mark.skipif(not AXE.exists(), reason="deploy/javascript.sh could not install npm's axe-core")
@pytest.mark.parametrize("look", LOOKS)
async def test_nobody_is_shut_out(browser: Browser, daemon: RunningDaemon, look: str) -> None:
    talk = made.talk(7)
    async with visiting(browser, daemon.url, bypass_csp=True, **LOOKS[look]) as visit:
        page = visit.page
        await pretend(visit, made.state(8, 3), [talk, *(made.job(number) for number in range(3))])
        await opened(visit)
        await expect(page.locator("#history-charts figure")).to_have_count(3)
        await page.locator("summary").first.click()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling"
        await page.add_script_tag(path=AXE)
        found = await page.evaluate("axe.run().then(({ violations }) => violations)")
        await page.locator("#job-rows a").first.click()
        await expect(page.locator("#drawer .transcript li").first).to_be_visible()
        found += await page.evaluate("axe.run('#drawer').then(({ violations }) => violations)")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    grave = [
        f"{problem['id']}: {[node['html'][:200] for node in problem['nodes'][:3]]}"
        for problem in found
        if problem["impact"] in ("serious", "critical")
    ]
    assert grave == [], json.dumps(grave, indent=1)
