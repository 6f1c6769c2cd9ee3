"""The hub's HTTP API, as far as it is needed: which files a commit has, and the files themselves."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.download import Downloader, DownloadFailed, NotAsPublished, OnProgress
from gpu_daemon.errors import PipelineChanged, PipelineGated, PipelineUnavailable

PUBLIC = "https://huggingface.co"
"""Where people accept conditions, whatever mirror the files come from."""
MAX_LISTING_BYTES = 1 << 20
MAX_SMALL_BYTES = 16 << 20
"""More than the hub takes outside of its large file storage, whose files say their SHA-256."""
UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    path: str
    size_bytes: int
    sha256: str | None = None
    """None: of a small one the hub knows only what git makes of it."""
    git_sha1: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A commit."""

    repository: str
    revision: str
    """40 hexadecimal digits: what it stands for cannot change."""
    files: tuple[HubFile, ...]

    def file(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)


class Hub:
    def __init__(self, endpoint: str, downloader: Downloader) -> None:
        """`endpoint`: the hub's own address, or a mirror's."""
        self._endpoint = endpoint.rstrip("/")
        self._downloader = downloader

    @property
    def host(self) -> str:
        return urlsplit(self._endpoint).hostname or self._endpoint

    async def listing(self, repository: str, revision: str, token: SecretStr | None) -> Listing:
        """`revision`: a commit or a branch. Raises PipelineGated, PipelineUnavailable."""
        url = f"{self._endpoint}/api/models/{quote(repository)}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            body = await self._downloader.read(url, MAX_LISTING_BYTES, headers=_headers(token))
        except DownloadFailed as error:
            raise _meaning(error, repository, token) from error
        try:
            return _listing(repository, json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PipelineUnavailable(f"{self.host} does not answer as a hub does; look at HF_ENDPOINT") from error

    async def read(self, listing: Listing, file: HubFile, token: SecretStr | None) -> bytes:
        """A small file, checked. Raises PipelineGated, PipelineUnavailable, PipelineChanged."""
        try:
            content = await self._downloader.read(self._url(listing, file), MAX_SMALL_BYTES, headers=_headers(token))
        except DownloadFailed as error:
            raise _meaning(error, listing.repository, token) from error
        if not await blocking(partial(_is, content, file)):
            raise _changed(listing, file)
        return content

    async def fetch(
        self, listing: Listing, file: HubFile, target: Path, on_progress: OnProgress, token: SecretStr | None
    ) -> None:
        """A file whose SHA-256 is known, to `target`; what an earlier try left is taken up.

        Raises PipelineGated, PipelineUnavailable, PipelineChanged, and Busy while another process is at it.
        """
        assert file.sha256 is not None
        url = self._url(listing, file)
        try:
            await self._downloader.fetch(url, file.sha256, target, on_progress, headers=_headers(token))
        except NotAsPublished as error:
            raise _changed(listing, file) from error
        except DownloadFailed as error:
            raise _meaning(error, listing.repository, token) from error

    def _url(self, listing: Listing, file: HubFile) -> str:
        return f"{self._endpoint}/{quote(listing.repository)}/resolve/{listing.revision}/{quote(file.path)}"


def _headers(token: SecretStr | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def _listing(repository: str, said: dict[str, Any]) -> Listing:
    """Raises ValueError and its like when a hub would not say that."""
    revision = said["sha"]
    if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
        raise ValueError("no commit")
    files = []
    for sibling in said["siblings"]:
        path, large = sibling["rfilename"], sibling.get("lfs")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("a file elsewhere")
        size_bytes = int((large or sibling)["size"])
        sha256 = None if large is None else str(large["sha256"]).lower()
        git_sha1 = str(sibling["blobId"]).lower() if large is None else None
        files.append(HubFile(path=path, size_bytes=size_bytes, sha256=sha256, git_sha1=git_sha1))
    return Listing(repository=repository, revision=revision, files=tuple(files))


def _is(content: bytes, file: HubFile) -> bool:
    if file.sha256 is not None:
        return hashlib.sha256(content).hexdigest() == file.sha256
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)  # as git names it
    return blob.hexdigest() == file.git_sha1


def _changed(listing: Listing, file: HubFile) -> PipelineChanged:
    return PipelineChanged(
        f"{file.path} of {listing.repository} is not the file that its revision {listing.revision[:12]} is known "
        "to have; it was thrown away"
    )


def _meaning(
    error: DownloadFailed, repository: str, token: SecretStr | None
) -> PipelineGated | PipelineUnavailable | PipelineChanged:
    page = f"{PUBLIC}/{repository}"
    if error.status in (UNAUTHORIZED, FORBIDDEN) and error.error_code != "RepoNotFound":
        if token is None:
            return PipelineGated(
                f"{repository} needs a token: accept its conditions at {page}, then set HF_TOKEN or send hf_token"
            )
        if error.status == UNAUTHORIZED:
            # So the hub answers whatever is asked with a token that it does not know, be it free for everybody.
            return PipelineGated(
                f"the hub does not know this token: make another at {PUBLIC}/settings/tokens, and where {page} "
                "has conditions accept them with its account"
            )
        return PipelineGated(f"accept the conditions of {repository} at {page} with the account of this token")
    if error.error_code == "RevisionNotFound":
        return PipelineChanged(f"the revision of {repository} that is to be used is no longer there")
    if error.error_code == "RepoNotFound" or error.status == NOT_FOUND:
        return PipelineUnavailable(
            f"there is no {repository} at {urlsplit(PUBLIC).hostname}, or not for this token; look at DIARIZATION_MODEL"
        )
    return PipelineUnavailable(f"the pipeline could not be downloaded: {error}")
