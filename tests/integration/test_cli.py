"""The commands as a shell sees them: standard output, standard error, exit status."""

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gpu_daemon import __version__
from gpu_daemon.database.pool import ConnectionParameters
from gpu_daemon.settings import Settings
from tests.relay import Relay
from tests.running import FAKE_ENGINE, ONE_AT_A_TIME, ROOT, running_daemon
from tests.serving import tone
from tests.speech import conversation, write
from tests.web import Site, answer

SETTINGS = {name.upper() for name in Settings.model_fields}


@dataclass(frozen=True, slots=True)
class Ended:
    status: int
    stdout: str
    stderr: str


async def start(*arguments: str | Path, cwd: Path, **settings: str) -> asyncio.subprocess.Process:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gpu_daemon", *map(str, arguments)),
        env=clean | {"PYTHONPATH": str(ROOT)} | settings,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process, timeout_s: float = 60) -> Ended:
    stdout, stderr = await asyncio.wait_for(process.communicate(), timeout_s)
    assert process.returncode is not None
    return Ended(process.returncode, stdout.decode(), stderr.decode())


async def command(*arguments: str | Path, cwd: Path, **settings: str) -> Ended:
    return await ended(await start(*arguments, cwd=cwd, **settings))


async def test_a_url_is_submitted_like_a_file(tmp_path: Path, database: ConnectionParameters, site: Site) -> None:
    url = site.put("/calls/talk%201.wav", answer(body=tone()))
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, FETCH_ALLOWED_NETWORKS="loopback") as daemon:
        said = await command(
            "submit", f"{url}?signature=secret", "--output", tmp_path, cwd=tmp_path, GPU_DAEMON_URL=daemon.url
        )
        assert said.status == 0, said.stderr
        assert "/calls/talk%201.wav" in said.stderr
        assert "secret" not in said.stdout + said.stderr
        assert (tmp_path / "talk 1.txt").read_text()
    missing = await command("submit", "nothing.wav", cwd=tmp_path)
    assert (missing.status, "'nothing.wav' does not exist" in " ".join(missing.stderr.split())) == (2, True)


async def test_submit_and_models(tmp_path: Path, database: ConnectionParameters) -> None:
    talk = write(conversation("en", 500_801, 1), tmp_path / "talk.wav", "wav")
    other = write(conversation("en", 500_802, 1), tmp_path / "other.wav", "wav")
    text = tmp_path / "notes.mp3"
    text.write_text("not audio")
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        at = {"GPU_DAEMON_URL": daemon.url}

        sent = await command("submit", talk, cwd=tmp_path, **at)
        assert sent.status == 0, sent.stderr
        job = await daemon.finished(sent.stdout.strip())
        assert job["status"] == "completed"
        assert job["file_name"] == "talk.wav"

        shown = await command("submit", talk, "--wait", "--language", "English", cwd=tmp_path, **at)
        assert shown.status == 0, shown.stderr
        assert shown.stdout.strip() == job["result"]["text"] != ""
        assert shown.stderr.splitlines()[0] == f"{talk}: uploading"
        assert shown.stderr.splitlines()[-1] == f"{talk}: completed"

        (tmp_path / "out").mkdir()
        several = await command(
            *("submit", talk, text, other, "--format", "srt", "--output", tmp_path / "out"), cwd=tmp_path, **at
        )
        assert several.status == 1, "one of the files is no audio"
        assert several.stdout == ""
        assert f"{text}: refused: " in several.stderr
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"talk.srt", "other.srt"}
        assert (tmp_path / "out" / "talk.srt").read_text().startswith("1\n00:00:00,")

        refused = await command("submit", talk, "--model", "nonesuch", "--wait", cwd=tmp_path, **at)
        assert (refused.status, refused.stdout) == (1, "")
        assert "nonesuch" in refused.stderr

        listed = await command("models", cwd=tmp_path, **at)
        assert listed.status == 0, listed.stderr
        assert listed.stdout.splitlines()[1].split()[:3] == ["demo", "file", "ready"]


async def test_patterns_a_directory_and_a_job_to_watch(tmp_path: Path, database: ConnectionParameters) -> None:
    for directory in ("monday", "tuesday"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "call.wav").write_bytes(tone(7.0))
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")  # as old disks have them: no UTF-8
    Path(strange).write_bytes(tone(7.0))
    (tmp_path / "monday" / "broken.wav").write_bytes(b"no audio")
    async with running_daemon(tmp_path, database, **FAKE_ENGINE) as daemon:
        at = {"GPU_DAEMON_URL": daemon.url}
        out = tmp_path / "new" / "out"
        many = await command(
            *("submit", "**/call.wav", "monday/*.wav", "--format", "vtt", "--output-dir", out), cwd=tmp_path, **at
        )
        assert (many.status, many.stdout) == (1, ""), "one of three was refused"
        assert "monday/broken.wav: refused: " in many.stderr
        assert {path.name for path in out.iterdir()} == {"call.vtt", "call-2.vtt"}
        assert (out / "call.vtt").read_text() == (out / "call-2.vtt").read_text()
        assert (out / "call.vtt").read_text().startswith("WEBVTT\n")
        old = await command("submit", "caf*", "--format", "vtt", "--output-dir", "old", cwd=tmp_path, **at)
        assert (old.status, "Traceback" in old.stderr) == (0, False), old.stderr
        assert [os.fsencode(path.name) for path in (tmp_path / "old").iterdir()] == [b"caf\xe9.vtt"]

        sent = await daemon.submit(tmp_path / "monday" / "call.wav", prompt="fake:sleep=1")
        watched = await command("watch", sent["job_id"], cwd=tmp_path, **at)
        assert watched.status == 0, watched.stderr
        lines = watched.stdout.splitlines()
        assert [line[:24] for line in lines] == ["[00:00.000 --> 00:05.000", "[00:05.000 --> 00:07.000"]
        assert watched.stderr.splitlines()[-1] == "call.wav: completed"
        (tmp_path / "ada.wav").write_bytes(tone(2.0))
        named = await command(
            *("submit", "monday/call.wav", "--speakers", "2", "--known-speaker", "Ada=ada.wav", "--format", "srt"),
            cwd=tmp_path,
            **at,
        )
        assert named.status == 0, named.stderr
        assert [line.partition("]: ")[0] for line in named.stdout.splitlines()[2::4]] == ["[Ada", "[SPEAKER_00"]
        sent = await daemon.submit(tmp_path / "monday" / "call.wav", diarize="true")
        await daemon.finished(sent["job_id"])
        watched = await command("watch", sent["job_id"], cwd=tmp_path, **at)
        assert [line.split()[3] for line in watched.stdout.splitlines()] == ["SPEAKER_00:", "SPEAKER_01:"]
        nobody = await command("submit", "monday/call.wav", "--known-speaker", "Ada", cwd=tmp_path, **at)
        assert nobody.status == 2
        failed = await daemon.submit(tmp_path / "monday" / "call.wav", prompt="fake:error")
        watched = await command("watch", failed["job_id"], cwd=tmp_path, **at)
        assert (watched.status, watched.stdout) == (1, "")
        assert watched.stderr.splitlines()[-1] == "call.wav: failed: this job cannot be done"
        unknown = await command("watch", "nonesuch", cwd=tmp_path, **at)
        assert (unknown.status, unknown.stderr) == (1, "there is no job 'nonesuch'\n")


async def test_an_interrupted_wait_leaves_the_job_alone(tmp_path: Path, database: ConnectionParameters) -> None:
    talk = write(conversation("en", 500_803, 1), tmp_path / "talk.wav", "wav")
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, **ONE_AT_A_TIME, DRAIN_TIMEOUT_S="0") as daemon:
        await daemon.submit(talk, prompt="fake:hang")
        waiting = await start("submit", talk, "--wait", "--url", daemon.url, cwd=tmp_path)
        assert waiting.stderr is not None
        async with asyncio.timeout(30):
            while b"waiting" not in await waiting.stderr.readline():
                pass
        waiting.send_signal(signal.SIGINT)
        interrupted = await ended(waiting)
        assert interrupted.status == 130
        [queued] = (await daemon.json("/queue"))["queued"]
        assert interrupted.stderr.splitlines()[-2:] == [
            "interrupted; jobs that were accepted go on",
            f"accepted: {queued}",
        ]


async def test_who_waits_says_that_the_daemon_is_away_and_goes_on_when_it_is_back(
    tmp_path: Path, database: ConnectionParameters
) -> None:
    (tmp_path / "talk.wav").write_bytes(tone(1.0))
    async with running_daemon(tmp_path, database, **FAKE_ENGINE, **ONE_AT_A_TIME) as daemon:
        address = urlsplit(daemon.url)
        relay = Relay(replace(database, host=str(address.hostname), port=address.port or 0))
        at = await relay.start()
        url = f"http://{at.host}:{at.port}"
        hanging = await daemon.submit(tmp_path / "talk.wav", prompt="fake:hang")
        waiting = await start("submit", "talk.wav", "--output", "/dev/full", "--url", url, cwd=tmp_path)
        watching = await start("watch", hanging["job_id"], "--url", url, cwd=tmp_path)
        async with asyncio.timeout(60):
            for process, seen in ((waiting, b"waiting"), (watching, b"transcribing")):
                assert process.stderr is not None
                while seen not in await process.stderr.readline():
                    pass
            relay.go_away()
            for process in (waiting, watching):
                assert process.stderr is not None
                while not (await process.stderr.readline()).endswith(b"; asking again\n"):
                    pass
        relay.refuse = False
        await daemon.client.post(f"/jobs/{hanging['job_id']}/cancel")
        done, watched = await ended(waiting), await ended(watching)
        await relay.stop()
        assert done.stderr.splitlines()[-1] == "talk.wav: done, but not written: /dev/full: No space left on device"
        assert watched.stderr.splitlines()[-1] == "talk.wav: cancelled"
        assert (done.status, watched.status) == (1, 1)


async def test_without_a_daemon(tmp_path: Path, free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    (tmp_path / "talk.wav").write_bytes(b"RIFF")
    for arguments in (("models",), ("submit", "talk.wav")):
        failed = await command(*arguments, "--url", url, cwd=tmp_path)
        assert (failed.status, failed.stdout) == (1, "")
        assert failed.stderr.splitlines()[-1].startswith(f"no daemon answers at {url}: ")
    assert await command("--version", cwd=tmp_path) == Ended(0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit",),
        ("submit", "nowhere.wav"),
        ("submit", "."),
        ("submit", "a.wav", "--format", "docx"),
        ("submit", "a.wav", "--output", "no/where.srt"),
        ("submit", "a.wav", "b.wav", "--output", "one.srt"),
        ("submit", "a.wav", "--output", "one.srt", "--output-dir", "."),
        ("submit", "a.wav", "b.wav", "--output-dir", "a.wav"),
        ("submit", "*.mp3"),
        ("watch",),
        ("transcribe",),
    ],
)
async def test_wrong_arguments(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    wrong = await command(*arguments, cwd=tmp_path)
    assert (wrong.status, wrong.stdout) == (2, "")
    assert "Usage: gpu_daemon" in wrong.stderr


async def test_serve_says_in_plain_words_why_it_does_not_start(tmp_path: Path) -> None:
    wrong = await command("serve", cwd=tmp_path, MAX_QUEUE="many", DEVICES="tpu")
    assert (wrong.status, wrong.stdout) == (1, "")
    assert "MAX_QUEUE: " in wrong.stderr
    assert "Traceback" not in wrong.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = await command("serve", cwd=tmp_path, HOST="127.0.0.1", PORT=str(port), DATA_DIR=str(tmp_path / "data"))
    assert busy.status == 1
    assert busy.stderr.startswith(f"PORT: cannot listen on 127.0.0.1:{port}: Address already in use")
    assert len(busy.stderr.splitlines()) == 1
