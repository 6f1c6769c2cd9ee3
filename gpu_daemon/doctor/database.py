"""Can the database be used, the one that the daemon would use? Nothing is left behind, nothing in it is changed."""

import tempfile
from pathlib import Path

from gpu_daemon import clock
from gpu_daemon.database.embedded import EmbeddedPostgres
from gpu_daemon.database.pool import ConnectionParameters, answers, open_pool
from gpu_daemon.doctor.finding import Finding, bad, good
from gpu_daemon.errors import StartupError
from gpu_daemon.settings import Settings

ANSWER_TIMEOUT_S = 10.0


async def check_database(settings: Settings) -> Finding:
    try:
        return await (_embedded(settings.data_dir) if settings.db_host is None else _given(settings, settings.db_host))
    except StartupError as error:
        fix = "look at DB_HOST, DB_PORT, DB_NAME, DB_USER and DB_PASS" if settings.db_host else "or set DB_HOST"
        return bad("database", error.message, fix)


async def _embedded(data_dir: Path) -> Finding:
    """A new one beside the daemon's own, which may be in use: same disk, same permissions."""
    begun = clock.monotonic()
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=data_dir) as directory:
        server = EmbeddedPostgres(Path(directory) / "postgres")
        try:
            await _ask(await server.start())
        finally:
            await server.stop()
    return good("database", f"embedded (DB_HOST is not set); a new one took {clock.monotonic() - begun:.1f} s")


async def _given(settings: Settings, host: str) -> Finding:
    await _ask(
        ConnectionParameters(
            host=host,
            port=settings.db_port,
            database=settings.db_name,
            user=settings.db_user,
            password=settings.db_pass.get_secret_value(),
        )
    )
    return good("database", f"{settings.db_name} on {host}:{settings.db_port} answers")


async def _ask(parameters: ConnectionParameters) -> None:
    pool = await open_pool(parameters)
    try:
        if not await answers(pool, ANSWER_TIMEOUT_S):
            raise StartupError(f"the database on {parameters.host} lets us in but does not answer")
    finally:
        await pool.close()
