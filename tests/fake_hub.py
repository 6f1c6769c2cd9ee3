"""A hub of models on loopback, and the other host that its large files come from: what ours is asked, as it answers."""

import asyncio
import hashlib
import json
from pathlib import Path, PurePosixPath

from tests.origin import Origin
from tests.web import Page, Site, answer, redirect

CDN_HOST = "127.0.0.2"
LARGE = frozenset({".bin", ".npz"})
"""Kept apart from git, as the hub does."""
CONFIG = b"""\
version: 3.1.0

pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: AgglomerativeClustering
    embedding: $model/embedding
    segmentation: $model/segmentation

params:
  segmentation:
    min_duration_off: 0.0
"""


def pipeline_files(seed: bytes = b"") -> dict[str, bytes]:
    """Of a pipeline that has everything in its own repository; they are not to be loaded."""
    return {
        "config.yaml": CONFIG,
        "README.md": b"# for people",
        "embedding/pytorch_model.bin": b"embedding" * 40_000 + seed,
        "segmentation/pytorch_model.bin": b"segmentation" * 10_000 + seed,
    }


def as_directory(directory: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


class FakeHub:
    def __init__(self) -> None:
        self.site, self.cdn = Site(), Origin()
        self.members: set[str] = set()
        """Tokens of accounts that have accepted every condition."""
        self.strangers: set[str] = set()
        """Of accounts that have accepted none."""

    @property
    def url(self) -> str:
        return self.site.url

    @property
    def requests(self) -> list[str]:
        """Paths that were asked of the hub itself."""
        return [request.path for request in self.site.requests]

    async def start(self) -> None:
        await self.site.start()
        await self.cdn.start(host=CDN_HOST)

    async def stop(self) -> None:
        await self.site.stop()
        await self.cdn.stop()

    def publish(self, name: str, files: dict[str, bytes], *, gated: bool = True, branch: str = "main") -> str:
        """The commit, which the branch now means; earlier ones stay."""
        commit = hashlib.sha1(json.dumps([(path, _git_sha1(files[path])) for path in files]).encode()).hexdigest()
        self.replace(name, commit, files, gated=gated)
        said = self.site.pages[f"/api/models/{name}/revision/{commit}"]
        self.site.pages[f"/api/models/{name}/revision/{branch}"] = said
        return commit

    def replace(self, name: str, commit: str, files: dict[str, bytes], *, gated: bool = True) -> None:
        """What a true hub cannot do: a commit that has other files from now on."""
        siblings = [_sibling(path, content) for path, content in files.items()]
        listing = json.dumps({"id": name, "sha": commit, "gated": gated and "auto", "siblings": siblings}).encode()
        headers = {"Content-Type": "application/json"}
        self.site.put(f"/api/models/{name}/revision/{commit}", answer(body=listing, headers=headers))
        for path, content in files.items():
            self.site.put(f"/{name}/resolve/{commit}/{path}", self._file(commit, path, content, gated))

    def _file(self, commit: str, path: str, content: bytes, gated: bool) -> Page:
        headers = {"X-Repo-Commit": commit}
        page = answer(body=content, headers=headers)
        if PurePosixPath(path).suffix in LARGE:
            sha256 = hashlib.sha256(content).hexdigest()
            self.cdn.files[f"/{commit}/{sha256}"] = content
            page = redirect(f"{self.cdn.url}/{commit}/{sha256}", headers=headers | {"X-Linked-ETag": f'"{sha256}"'})

        async def write(writer: asyncio.StreamWriter) -> None:
            await (self._refusal(gated) or page)(writer)

        return write

    def _refusal(self, gated: bool) -> Page | None:
        """None: the account of the request that is being answered may have it."""
        token = self.site.requests[-1].headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.members | self.strangers:
            return answer(
                401, b"Invalid credentials", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        if token in self.members or not gated:
            return None
        said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
        return answer(403 if token else 401, b"Access is restricted.", said)


def _sibling(path: str, content: bytes) -> dict[str, object]:
    said: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": _git_sha1(content)}
    if PurePosixPath(path).suffix in LARGE:
        said["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 131}
    return said


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
