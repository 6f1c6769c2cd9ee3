"""A pipeline that is on the hub: which files make it, and their way to a directory that needs no hub any more."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from pydantic import SecretStr

from gpu_daemon.blocking import blocking
from gpu_daemon.catalogue.hub import Hub, HubFile, Listing
from gpu_daemon.catalogue.part import Busy
from gpu_daemon.catalogue.pipeline_config import CONFIG, MODEL, Unreadable, belongs, references, with_own_parts
from gpu_daemon.catalogue.pipeline_directory import MOST_FILES, Checked, Manifest
from gpu_daemon.durable import write
from gpu_daemon.errors import PipelineChanged, PipelineUnavailable
from gpu_daemon.logs import log

MANIFEST = "manifest.json"
BRANCH = "main"
MAX_CONFIG_CHARACTERS = 100_000

OnBytes = Callable[[int, int], None]
"""Bytes on the disk, and in all."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A file that the pipeline is to have."""

    sha256: str
    size_bytes: int
    content: bytes | None
    """Of a small one, which came with the plan."""
    listing: Listing
    file: HubFile


@dataclass(frozen=True, slots=True)
class _Plan:
    revision: str
    revisions: dict[str, str]
    parts: dict[str, _Part]
    """By path below the pipeline's directory."""

    @property
    def files(self) -> dict[str, str]:
        return {path: part.sha256 for path, part in self.parts.items()}


class HubPipeline:
    """`owner/name`. Its files are in `directory`/owner/name/REVISION, its manifest beside them.

    The first commit that came is the one that is used from then on: a branch that moves replaces nothing, and what the
    hub gives later must be the same byte for byte.
    """

    def __init__(self, name: str, directory: Path, hub: Hub, pins: Mapping[str, Listing]) -> None:
        self.name = name
        self._directory = directory.absolute() / name
        self._hub = hub
        self._pins = pins

    async def on_disk(self) -> Checked | None:
        """None: it has not come, or not all of it is as it came."""
        manifest = await self._manifest()
        if manifest is None:
            return None
        directory = self._directory / manifest.revisions[self.name]
        try:
            checked = await Checked.of(self.name, directory, sorted(manifest.files))
        except OSError as error:
            log.warning("pipeline.incomplete", pipeline=self.name, directory=str(directory), error=str(error))
            return None
        damaged = [path for path, sha256 in checked.spec.files.items() if manifest.files[path] != sha256]
        if damaged:
            log.warning("pipeline.damaged", pipeline=self.name, directory=str(directory), files=damaged)
        return None if damaged else checked

    async def ask(self, token: SecretStr | None) -> None:
        """Whether the hub would give it; next to nothing is fetched. Raises as `fetch` does."""
        await self._plan(await self._manifest(), token)

    async def fetch(self, token: SecretStr | None, on_bytes: OnBytes) -> Checked:
        """What is there already and right is kept. Raises PipelineGated, PipelineUnavailable, PipelineChanged."""
        manifest = await self._manifest()
        plan = await self._plan(manifest, token)
        if manifest is not None and manifest.files != plan.files:
            raise PipelineChanged(
                f"the hub gives other files for {self.name} than those that came first. If that is meant to be, "
                f"remove its {MANIFEST}"
            )
        directory = self._directory / plan.revision
        try:
            await self._obtain_all(directory, plan, token, on_bytes)
            await blocking(
                partial(Manifest(revisions=plan.revisions, files=plan.files).write, self._directory / MANIFEST)
            )
            checked = await Checked.of(self.name, directory, sorted(plan.parts))
        except OSError as error:
            raise PipelineUnavailable(f"cannot write the pipeline below DATA_DIR: {error.strerror}") from error
        if checked.spec.files != plan.files:
            raise PipelineChanged(f"the files of {self.name} change while they are looked at")
        return checked

    async def _manifest(self) -> Manifest | None:
        """None as well when it is of other commits than those that this version knows."""
        manifest = await blocking(partial(Manifest.read, self._directory / MANIFEST))
        if manifest is None or self.name not in manifest.revisions:
            return None
        for repository, revision in manifest.revisions.items():
            pin = self._pins.get(repository)
            if pin is not None and pin.revision != revision:
                return None
        return manifest

    async def _plan(self, manifest: Manifest | None, token: SecretStr | None) -> _Plan:
        """Everything that is to be there, with its SHA-256, before anything large is fetched."""
        own = await self._listing(self.name, manifest, token)
        config_file = own.file(CONFIG)
        if config_file is None:
            raise PipelineUnavailable(f"{self.name} has no {CONFIG}: it is no pipeline; look at DIARIZATION_MODEL")
        config = (await self._hub.read(own, config_file, token)).decode(errors="replace")
        if len(config) > MAX_CONFIG_CHARACTERS:
            raise PipelineUnavailable(f"{self.name} cannot be used: its {CONFIG} is too long")
        try:
            elsewhere = references(config)
        except Unreadable as error:
            raise PipelineUnavailable(f"{self.name} cannot be used: {error}") from error
        ours = with_own_parts(config).encode()
        parts = {CONFIG: _Part(hashlib.sha256(ours).hexdigest(), len(ours), ours, own, config_file)}
        revisions = {self.name: own.revision}
        for file in own.files:
            if file.path != CONFIG and belongs(PurePosixPath(file.path)):
                parts[file.path] = await self._part(own, file, token)
        for part, repository in elsewhere.items():
            listing = await self._listing(repository, manifest, token)
            revisions[repository] = listing.revision
            if (model := listing.file(MODEL)) is None:
                raise PipelineUnavailable(f"{self.name} cannot be used: its {part}, {repository}, has no {MODEL}")
            parts[f"{part}/{MODEL}"] = await self._part(listing, model, token)
        if len(parts) > MOST_FILES:
            raise PipelineUnavailable(f"{self.name} has more than {MOST_FILES} files: no pipeline")
        return _Plan(own.revision, revisions, parts)

    async def _listing(self, repository: str, manifest: Manifest | None, token: SecretStr | None) -> Listing:
        if (pin := self._pins.get(repository)) is not None:
            return pin
        known = None if manifest is None else manifest.revisions.get(repository)
        return await self._hub.listing(repository, known or BRANCH, token)

    async def _part(self, listing: Listing, file: HubFile, token: SecretStr | None) -> _Part:
        if file.sha256 is not None:
            return _Part(file.sha256, file.size_bytes, None, listing, file)
        content = await self._hub.read(listing, file, token)
        sha256 = await blocking(lambda: hashlib.sha256(content).hexdigest())
        return _Part(sha256, len(content), content, listing, file)

    async def _obtain_all(self, directory: Path, plan: _Plan, token: SecretStr | None, on_bytes: OnBytes) -> None:
        """Raises OSError, and what the hub raises."""
        all_bytes, done_bytes = sum(part.size_bytes for part in plan.parts.values()), 0

        def obtained(some_bytes: int) -> None:
            on_bytes(done_bytes + some_bytes, all_bytes)

        for path, part in plan.parts.items():
            obtained(0)
            await self._obtain(directory / path, part, token, obtained)
            done_bytes += part.size_bytes
        obtained(0)

    async def _obtain(
        self, target: Path, part: _Part, token: SecretStr | None, on_bytes: Callable[[int], None]
    ) -> None:
        """Raises OSError, and what the hub raises."""
        if await _is_there(self.name, target, part):
            return
        await blocking(partial(_make_room, target))
        if part.content is not None:
            await blocking(partial(write, target, part.content))
            return
        try:
            await self._hub.fetch(part.listing, part.file, target, lambda some, _: on_bytes(some), token)
        except Busy as error:
            raise PipelineUnavailable(f"{self.name} is being downloaded by another process") from error


async def _is_there(name: str, target: Path, part: _Part) -> bool:
    try:
        there = await Checked.of(name, target.parent, [target.name])
    except FileNotFoundError:
        return False
    return there.spec.files[target.name] == part.sha256


def _make_room(target: Path) -> None:
    """Blocks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
