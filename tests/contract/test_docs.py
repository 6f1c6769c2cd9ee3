"""What the documents say is what is there."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.routing import Route

from gpu_daemon.api.app import ROUTERS
from gpu_daemon.cli import app
from gpu_daemon.settings import Settings

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
PEERS = ROOT / "bench" / "peers"
"""What bench/queue.py compares with: run in an environment of its own."""
DOCUMENTS = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
SETTINGS = {name.upper() for name in Settings.model_fields}


@pytest.fixture
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def readme_settings() -> dict[str, str]:
    """Name and default of each row of the table."""
    section = README.split("\n## Settings\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", section, re.MULTILINE))


def example_settings() -> dict[str, str]:
    return dict(re.findall(r"^#([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))


def test_the_readme_lists_every_setting_and_no_other() -> None:
    assert set(readme_settings()) == SETTINGS


def test_the_example_lists_every_setting_and_no_other() -> None:
    assert set(example_settings()) == SETTINGS


def test_readme_and_example_name_the_same_defaults() -> None:
    said = {
        name: "" if default.strip() == "unset" else default.strip("` ") for name, default in readme_settings().items()
    }
    assert said == example_settings()


@pytest.mark.usefixtures("no_settings_in_the_environment")
def test_the_example_holds_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("".join(f"{name}={value}\n" for name, value in example_settings().items()), encoding="utf-8")
    defaults = Settings(_env_file=None)
    assert Settings(_env_file=file) == defaults
    assert defaults.db_pass == SecretStr("")


def test_every_setting_of_the_example_is_explained() -> None:
    lines = EXAMPLE.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#[A-Z_]+=", line):
            before = [above for above in lines[:number] if above == "" or above.startswith("# ")]
            assert before[-1].startswith("# "), f"{line}: no comment above it in its paragraph"


@pytest.mark.parametrize("text", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_every_make_target_that_is_named_exists(text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake (?:[A-Z]+=\S+ )?([a-z-]+)\b`?", "\n".join(_code(text)))) <= targets


@pytest.mark.parametrize("text", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_every_command_that_is_named_exists(text: str) -> None:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    assert set(re.findall(r"python -m gpu_daemon ([a-z]+)", text)) <= commands


@pytest.mark.parametrize("text", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_every_file_that_is_named_exists(text: str) -> None:
    paths = re.findall(r"(?:gpu_daemon|tests|bench|deploy|migrations|docs|static)/[\w/.-]*\w", "\n".join(_code(text)))
    paths += re.findall(r"(?<![\w/])[\w/]+/\w+\.py\b", "\n".join(_code(text)))
    assert [path for path in paths if not (ROOT / path).exists() and not (ROOT / "gpu_daemon" / path).exists()] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not any((base / link).exists() for base in (ROOT, ROOT / "docs"))] == []


def test_every_route_that_the_readme_lists_exists() -> None:
    there = {
        (method, re.sub(r"{\w+}", "{}", base_path + route.path))
        for base_path, routers in ROUTERS.items()
        for router in routers
        for route in router.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    there |= {("GET", base_path) for base_path in ROUTERS}
    there |= {("GET", path) for path in ("/openapi.json", "/docs", "/redoc")}  # of pages.py, which has no router
    section = README.split("\n## Routes\n")[1].split("\n## ")[0]
    said = re.findall(r"`(?:(GET|POST|PATCH|DELETE) )?(/[a-z0-9_./{}-]*)[?`]", section)
    assert len(said) > 15
    assert {(method or "GET", re.sub(r"{\w+}", "{}", path)) for method, path in said} - there == set()


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("requirements*.txt"), *ROOT.glob("bench/requirements*.txt")]), ids=lambda path: path.name
)
def test_every_requirement_is_pinned(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] not in "#-"]
    pin = re.compile(r"[a-z0-9-]+==[0-9][^ ;]*(; sys_platform == \"linux\")?")
    assert len(lines) > 5
    assert [line for line in lines if not pin.fullmatch(line)] == []


@pytest.mark.parametrize(
    ("rooms", "files"),
    [
        (["gpu_daemon"], ["requirements.txt", "requirements-cuda.txt"]),
        (["tests", "bench"], ["requirements.txt", "requirements-cuda.txt", "requirements-dev.txt"]),
        (["bench/peers"], ["bench/requirements-peers.txt"]),
    ],
    ids=["daemon", "tests", "peers"],
)
def test_whatever_is_imported_is_required(rooms: list[str], files: list[str]) -> None:
    required = {
        _normal(line.split("==")[0])
        for file in files
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    packages = metadata.packages_distributions()
    for room in rooms:
        for path in (ROOT / room).rglob("*.py"):
            if path.parent == PEERS != ROOT / room:
                continue
            beside = {neighbour.stem for neighbour in path.parent.glob("*.py")}
            for module in _imports(path) - sys.stdlib_module_names - {"gpu_daemon", "tests", "bench"} - beside:
                brought_by = {_normal(name) for name in packages.get(module, [module])}
                assert brought_by & required, f"{path.relative_to(ROOT)} imports {module}, which nothing requires"


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def _code(text: str) -> list[str]:
    """What stands in backticks or in a block."""
    return re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
