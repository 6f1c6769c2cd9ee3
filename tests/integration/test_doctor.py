"""The doctor on a machine where everything works, and where something does not."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from gpu_daemon.doctor.checkpoints import check_checkpoints
from gpu_daemon.doctor.finding import Verdict
from gpu_daemon.doctor.machine import check_data_dir, check_port
from gpu_daemon.doctor.pipeline import check_pipeline
from gpu_daemon.settings import Settings
from tests.fake_hub import FakeHub, as_directory, pipeline_files
from tests.integration.test_cli import command


async def test_a_healthy_machine(tmp_path: Path, free_port: int) -> None:
    said = await command(
        *("doctor",), cwd=tmp_path, DATA_DIR="data", DEVICES="cpu", PORT=str(free_port), DISK_RESERVE_MB="64"
    )
    assert said.status == 0, said.stdout
    assert said.stdout.splitlines()[-1] == "Nothing keeps the daemon from working."
    for subject in ("Python", "settings", "ffmpeg", "DATA_DIR", "database", "port", "devices", "torch", "model"):
        assert f"✓ {subject} " in said.stdout, said.stdout
    assert list((tmp_path / "data").iterdir()) == [], "nothing is left behind"


async def test_what_is_wrong_is_said_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = await command("doctor", cwd=tmp_path, DATA_DIR="file/data", DEVICES="cuda:99", DISK_RESERVE_MB="64")
    assert said.status == 1
    lines = said.stdout.splitlines()
    for subject in ("DATA_DIR", "devices"):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"✗ {subject} ")]
        assert lines[at + 1].strip().startswith("→ ")
    assert "to mend" in lines[-1]
    assert "Traceback" not in said.stderr


async def test_wrong_settings_are_each_a_line(tmp_path: Path) -> None:
    said = await command("doctor", cwd=tmp_path, PORT="99999", MAX_QUEUE="many")
    assert said.status == 1
    assert sum(line.startswith("✗ settings ") for line in said.stdout.splitlines()) == 2


def test_a_data_dir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_data_dir(Settings(_env_file=None, data_dir=tmp_path / "file" / "data")).verdict is Verdict.BAD
    assert check_data_dir(Settings(_env_file=None, data_dir=tmp_path / "new" / "data")).verdict is Verdict.GOOD


def test_an_address_that_is_not_ours() -> None:
    assert check_port(Settings(_env_file=None, host="192.0.2.1", port=0)).verdict is Verdict.BAD


async def test_a_damaged_checkpoint_is_found(tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(b"half a checkpoint")
    findings = [finding async for finding in check_checkpoints(tmp_path)]
    assert [finding.verdict for finding in findings] == [Verdict.GOOD, Verdict.NOTE]
    assert "tiny.pt is damaged" in findings[1].message


@pytest.mark.parametrize(
    ("content", "verdict"), [(b"shipped", Verdict.GOOD), (b"changed", Verdict.BAD), (None, Verdict.BAD)]
)
async def test_the_bundled_checkpoint_is_the_one_that_was_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, verdict: Verdict
) -> None:
    bundled = tmp_path / "gpu_daemon" / "demo" / "model.pt"
    bundled.parent.mkdir(parents=True)
    if content is not None:
        bundled.write_bytes(content)
    (tmp_path / "0001.sql").write_text(f"VALUES ('{hashlib.sha256(b'shipped').hexdigest()}')")
    monkeypatch.setattr("gpu_daemon.doctor.checkpoints.BUNDLED", bundled)
    monkeypatch.setattr("gpu_daemon.doctor.checkpoints.MIGRATIONS", tmp_path)
    findings = [finding async for finding in check_checkpoints(tmp_path)]
    assert findings[0].verdict is verdict
    assert (findings[0].fix == "git checkout -- gpu_daemon/demo/model.pt") == (verdict is Verdict.BAD)


async def test_whether_speakers_can_be_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    hub = FakeHub()
    await hub.start()
    hub.members.add("hf_good")
    hub.strangers.add("hf_other")
    hub.publish("somebody/pipeline", pipeline_files())

    async def said(token: str | None = None, model: str = "somebody/pipeline") -> tuple[Verdict, str]:
        given: dict[str, Any] = {"hf_token": token, "hf_endpoint": hub.url, "diarization_model": model}
        finding = await check_pipeline(Settings(_env_file=None, data_dir=tmp_path, **given))
        assert "hf_good" not in f"{finding}"
        assert "hf_other" not in f"{finding}"
        return finding.verdict, f"{finding.message} → {finding.fix}"

    verdict, words = await said()
    assert (verdict, hub.requests) == (Verdict.NOTE, [])
    assert "HF_TOKEN is not set" in words
    verdict, words = await said("hf_other")
    assert verdict is Verdict.NOTE
    assert "accept the conditions of somebody/pipeline at https://huggingface.co/somebody/pipeline" in words
    verdict, words = await said("hf_otherwise")
    assert verdict is Verdict.NOTE
    assert "the hub does not know this token" in words
    verdict, words = await said("hf_good")
    assert verdict is Verdict.GOOD
    assert "gives it to the account of HF_TOKEN" in words
    await hub.stop()

    verdict, words = await said(model=str(as_directory(tmp_path / "mine", pipeline_files())))
    assert verdict is Verdict.GOOD
    assert "every byte of it" in words
    verdict, words = await said(model=str(tmp_path / "nowhere"))
    assert verdict is Verdict.NOTE
