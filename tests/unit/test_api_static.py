"""What the browser is given."""

import hashlib
import json
import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parent.parent.parent / "static"
VENDORED = json.loads((STATIC / "vendor" / "VENDOR.json").read_text())


@pytest.mark.parametrize("package", VENDORED, ids=lambda package: package["name"])
def test_vendored_files_are_the_ones_that_were_brought_in(package: dict[str, object]) -> None:
    directory = STATIC / "vendor" / f"{package['name']}-{package['version']}"
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    assert hashes == package["files"]
    assert "LICENSE" in hashes
    assert package["licence"]


def test_nothing_vendored_is_unlisted() -> None:
    listed = {f"{package['name']}-{package['version']}" for package in VENDORED} | {"VENDOR.json"}
    assert {path.name for path in (STATIC / "vendor").iterdir()} == listed


@pytest.mark.parametrize("page", ["index.html", "docs.html", "redoc.html"])
def test_pages_have_no_script_or_style_of_their_own_and_ask_no_other_host(page: str) -> None:
    html = (STATIC / page).read_text()
    assert not re.findall(r"<script(?![^>]*\bsrc=)", html)
    assert not re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', html):
        assert address.startswith("/")
        assert not address.startswith("//")


@pytest.mark.parametrize("script", sorted(path.name for path in STATIC.glob("*.js")))
def test_our_scripts_make_no_markup_from_text_and_ask_no_other_host(script: str) -> None:
    text = (STATIC / script).read_text()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert re.findall(r"https?://[^\s\"'`]+", text) in ([], ["https://example.org/done"])
