"""PostgreSQL refuses to run as root. A daemon that is root (in a container, say) runs it as a user made for that."""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gpu_daemon.errors import StartupError
from gpu_daemon.logs import log

SYSTEM_USER = "pgserver"


@dataclass(frozen=True, slots=True)
class RunAs:
    """-1: as the daemon itself."""

    uid: int = -1
    gid: int = -1


def run_as(directory: Path, binaries: Path) -> RunAs:
    """Who the server on `directory` runs as; sees to it that this user gets there. Blocks; raises StartupError."""
    if os.geteuid() != 0:
        return RunAs()
    user = _system_user()
    if directory.exists() and directory.stat().st_uid != user.pw_uid:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    for parent in {*directory.parents, *binaries.parents}:
        _let_through(parent)
    return RunAs(user.pw_uid, user.pw_gid)


def _let_through(directory: Path) -> None:
    """Whoever works in a directory must be able to pass those above it: /root usually lets nobody through."""
    mode = directory.stat().st_mode
    if mode & 0o001:
        return
    try:
        directory.chmod(mode | 0o001)
    except OSError as error:
        raise StartupError(
            f"the embedded PostgreSQL runs as the user {SYSTEM_USER}, who cannot pass through {directory}: "
            f"chmod o+x {directory}, or choose another DATA_DIR, or start the daemon as an ordinary user"
        ) from error
    log.warning("database.directory_opened", directory=str(directory), reason=f"{SYSTEM_USER} must pass through: o+x")


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartupError(
            f"the embedded PostgreSQL cannot run as root, and the user {SYSTEM_USER} cannot be made: "
            "start the daemon as an ordinary user, or set DB_HOST"
        ) from error
    return pwd.getpwnam(SYSTEM_USER)
