"""Are the models that are on the disk what they claim to be? Reads every byte of them."""

from collections.abc import AsyncIterator
from pathlib import Path

from gpu_daemon.catalogue.hashing import sha256_of
from gpu_daemon.catalogue.official import ALIASES, OFFICIAL_URLS, file_name_in, sha256_in
from gpu_daemon.doctor.finding import Finding, bad, good, note

CHECKOUT = Path(__file__).parent.parent.parent
BUNDLED = CHECKOUT / "gpu_daemon" / "demo" / "espeak-whisper.pt"
MIGRATIONS = CHECKOUT / "migrations"
"""Where the SHA-256 of the bundled model is written down."""


async def check_checkpoints(models_dir: Path) -> AsyncIterator[Finding]:
    yield await _bundled(BUNDLED, MIGRATIONS)
    found = 0
    for name, url in OFFICIAL_URLS.items():
        path = models_dir / file_name_in(url)
        if name in ALIASES or not path.exists():
            continue
        found += 1
        if await sha256_of(path) == sha256_in(url):
            yield good("model", f"{name} is on the disk, every byte of it")
        else:
            yield note("model", f"{path} is damaged", "none needed: the daemon downloads it again")
    if not found:
        yield note("model", "none of openai's is on the disk yet", "none needed: the daemon downloads those enabled")


async def _bundled(path: Path, migrations: Path) -> Finding:
    fix = f"git checkout -- {path.relative_to(path.parents[2])}"
    try:
        sha256 = await sha256_of(path)
    except OSError as error:
        return bad("model", f"the bundled demo model cannot be read: {error.strerror}", fix)
    if not any(sha256 in migration.read_text(encoding="utf-8") for migration in migrations.glob("*.sql")):
        return bad("model", f"the bundled demo model is not the one that was shipped (SHA-256 {sha256[:12]}…)", fix)
    return good("model", "demo is bundled, every byte of it")
