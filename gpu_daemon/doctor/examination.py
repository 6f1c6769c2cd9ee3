"""`doctor`: every check in turn, said in words as soon as it is known."""

from collections.abc import AsyncIterator
from importlib import metadata

from rich.console import Console

from gpu_daemon.doctor.checkpoints import check_checkpoints
from gpu_daemon.doctor.database import check_database
from gpu_daemon.doctor.engine import INSTALL, TorchBroken, judge_torch, probe_torch
from gpu_daemon.doctor.finding import Finding, Verdict, bad, good
from gpu_daemon.doctor.machine import check_data_dir, check_disk, check_ffmpeg, check_port, check_python
from gpu_daemon.doctor.pipeline import check_pipeline
from gpu_daemon.errors import SettingsError, StartupError
from gpu_daemon.gpu.detect import Device, detect
from gpu_daemon.logs import configure
from gpu_daemon.settings import Settings, load_settings

MARKS = {Verdict.GOOD: "[green]✓[/]", Verdict.NOTE: "[yellow]![/]", Verdict.BAD: "[red]✗[/]"}
SUBJECT_CHARACTERS = 9


async def examine() -> int:
    """The exit status: 1 if something will keep the daemon from working."""
    configure("ERROR", "pretty")
    out = Console(highlight=False, soft_wrap=True)
    found = 0
    async for finding in _findings():
        out.print(f"{MARKS[finding.verdict]} {finding.subject:<{SUBJECT_CHARACTERS}} ", end="")
        out.print(finding.message, markup=False)
        if finding.fix is not None:
            out.print(f"{'':<{SUBJECT_CHARACTERS + 3}}→ {finding.fix}", markup=False)
        found += finding.verdict is Verdict.BAD
    out.print("\nNothing keeps the daemon from working." if not found else f"\n{found} to mend, marked ✗.")
    return 1 if found else 0


async def _findings() -> AsyncIterator[Finding]:
    yield check_python()
    try:
        settings = load_settings()
    except SettingsError as error:
        for line in error.message.splitlines():
            yield bad("settings", line, "change it in the environment or in .env")
        return
    yield good("settings", "all of them can be read")
    yield check_ffmpeg()
    data_dir = check_data_dir(settings)
    yield data_dir
    if data_dir.verdict is Verdict.GOOD:
        yield check_disk(settings)
    if data_dir.verdict is Verdict.GOOD or settings.db_host is not None:
        yield await check_database(settings)
    yield check_port(settings)
    async for finding in _devices_and_torch(settings):
        yield finding
    async for finding in check_checkpoints(settings.models_dir):
        yield finding
    yield await check_pipeline(settings)


async def _devices_and_torch(settings: Settings) -> AsyncIterator[Finding]:
    devices: tuple[Device, ...] = ()
    try:
        devices = await detect(settings.devices)
        yield good("devices", ", ".join(f"{device.kind}:{device.index} {device.name}" for device in devices))
    except StartupError as error:
        yield bad("devices", error.message, "see above, or set DEVICES=cpu")
    try:
        metadata.version("torch")
        yield judge_torch(await probe_torch(), devices)
    except metadata.PackageNotFoundError:
        yield bad("torch", "is not installed: no job can run", INSTALL)
    except TorchBroken as error:
        yield bad("torch", f"cannot be imported: {error}", INSTALL)
