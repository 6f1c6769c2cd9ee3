"""The scripts that `make` leans on, where something is missing: programs are stand-ins in a directory of their own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import ROOT

NEEDED = ("sh", "sed", "mktemp", "tail", "rm", "echo")


class Machine:
    """Where only some programs exist, and apt-get writes down what it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked = directory / "asked"
        for name in NEEDED:
            real = shutil.which(name)
            assert real is not None
            (directory / name).symlink_to(real)

    def add(self, name: str, does: str = "") -> None:
        (self.directory / name).write_text(f"#!/bin/sh\n{does}\n")
        (self.directory / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.directory / "sh", ROOT / "deploy" / script, *arguments],
            env={"PATH": str(self.directory)} | environment,
            capture_output=True,
            text=True,
            timeout=30,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.add("id", "echo 1000")
    machine.add("apt-get", f'echo "$@" >>{machine.asked}')
    return machine


def test_what_is_there_needs_nothing(machine: Machine) -> None:
    machine.add("ffmpeg")
    ran = machine.run("system-packages.sh", "ffmpeg")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not machine.asked.exists()


def test_an_ordinary_user_is_told_in_one_line_what_to_type(machine: Machine) -> None:
    machine.add("ffmpeg")
    ran = machine.run("system-packages.sh", "ffmpeg", "espeak-ng")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "Missing: espeak-ng. Type: sudo apt-get install espeak-ng\n"
    assert not machine.asked.exists()


def test_on_fedora_another_line(machine: Machine) -> None:
    (machine.directory / "apt-get").unlink()
    machine.add("dnf")
    ran = machine.run("system-packages.sh", "ffmpeg", "espeak-ng")
    assert ran.stderr == "Missing: ffmpeg espeak-ng. Type: sudo dnf install ffmpeg-free espeak-ng\n"


def test_root_gets_it_installed(machine: Machine) -> None:
    machine.add("id", "echo 0")
    ran = machine.run("system-packages.sh", "ffmpeg", "espeak-ng")
    assert ran.returncode == 0, ran.stderr
    assert machine.asked.read_text().splitlines() == [
        "-qq update",
        "-qq install -y --no-install-recommends ffmpeg espeak-ng",
    ]


def test_a_failed_installation_is_no_success(machine: Machine) -> None:
    machine.add("id", "echo 0")
    machine.add("apt-get", "echo E: no route to the archive; exit 100")
    ran = machine.run("system-packages.sh", "espeak-ng")
    assert ran.returncode == 1
    assert "E: no route to the archive" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "Missing: espeak-ng. Type: sudo apt-get install espeak-ng"


@pytest.mark.parametrize("user", ["0", "1000"])
def test_what_is_optional_is_never_in_the_way(machine: Machine, user: str) -> None:
    machine.add("id", f"echo {user}")
    machine.add("apt-get", "exit 100")
    ran = machine.run("system-packages.sh", "--optional", "ffmpeg")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_no_suitable_python_is_said(machine: Machine) -> None:
    machine.add("python3", "exit 1")  # too old
    ran = machine.run("make-venv.sh", "cuda")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Python 3.11, 3.12 or 3.13 is needed.")


def test_a_python_without_venv_is_said(machine: Machine) -> None:
    machine.add("python3", 'case "$2" in *ensurepip*) exit 1 ;; *print*) echo 3.12 ;; esac')
    ran = machine.run("make-venv.sh", "cuda")
    assert ran.returncode == 1
    assert ran.stderr == "Python's venv module is missing. Type: sudo apt-get install python3.12-venv\n"


def test_without_node_tests_of_javascript_are_skipped(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "deploy", checkout / "deploy")
    shutil.copytree(ROOT / "tests" / "javascript", checkout / "tests" / "javascript")
    for name in ("cat", "cksum", "cut", "mkdir", "cp", "touch"):
        real = shutil.which(name)
        assert real is not None
        (machine.directory / name).symlink_to(real)

    def run() -> "subprocess.CompletedProcess[str]":
        script = [str(machine.directory / "sh"), "deploy/javascript.sh"]
        path = {"PATH": str(machine.directory)}
        return subprocess.run(script, env=path, cwd=checkout, capture_output=True, text=True, timeout=30)

    cache = checkout / ".cache" / "javascript"
    ran = run()
    assert (ran.returncode, cache.exists()) == (0, False)
    assert "Node.js and npm are missing" in ran.stderr
    machine.add("node")
    machine.add("npm", "exit 1")
    ran = run()
    assert (ran.returncode, cache.exists()) == (0, False)
    assert "npm could not install" in ran.stderr
    machine.add("npm", f'echo "$@" >>{machine.asked}')
    assert (run().stderr, run().stderr) == ("", "")
    assert machine.asked.read_text().splitlines() == [
        "ci --prefix .cache/javascript --ignore-scripts --no-progress --silent"
    ]
    assert (cache / ".npmrc").exists()
    assert "resolved" not in (cache / "package-lock.json").read_text()
