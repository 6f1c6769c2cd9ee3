"""`make demo`, as a newcomer sees it, but with its data elsewhere."""

from pathlib import Path

from gpu_daemon.demo.tour import TRUTH
from tests.integration.test_cli import ended, start


async def test_the_demo_shows_transcript_callback_and_times(tmp_path: Path) -> None:
    for _ in range(2):  # the second one finds the data of the first
        demo = await start(
            "demo", "--data-dir", tmp_path / "data", cwd=tmp_path, DEVICES="cpu", DB_HOST="nowhere.invalid"
        )
        shown = await ended(demo, timeout_s=60)
        assert shown.status == 0, shown.stdout + shown.stderr
        assert " ".join(TRUTH.read_text(encoding="utf-8").split()) in shown.stdout
        assert f"Word error rate against {TRUTH.name}: 0.000" in shown.stdout
        for said in ('"status": "completed"', '"delivered": true', "start of the daemon", "preparing", "transcribing"):
            assert said in shown.stdout
        assert "The daemon has stopped" in shown.stdout.splitlines()[-1]
        assert shown.stderr == ""
