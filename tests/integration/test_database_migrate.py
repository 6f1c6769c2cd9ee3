import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from gpu_daemon.database.migrate import migrate
from gpu_daemon.database.pool import ConnectionParameters, Pool, open_pool
from gpu_daemon.errors import StartupError
from gpu_daemon.store.models import ModelRow, ModelStore
from tests.conftest import MIGRATIONS

OURS = [path.stem for path in sorted(MIGRATIONS.glob("*.sql"))]


@pytest.fixture
async def empty(empty_database: ConnectionParameters) -> AsyncIterator[Pool]:
    pool = await open_pool(empty_database)
    yield pool
    await pool.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        sql = f"CREATE TABLE t{number}a (n int); CREATE TABLE t{number}b (n int);"
        (tmp_path / f"000{number}_t{number}.sql").write_text(sql)
    (tmp_path / "README.md").write_text("not a migration")
    return tmp_path


async def tables(pool: Pool) -> list[str]:
    rows = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    return [row["tablename"] for row in rows]


ALL = ["gpu_daemon_migrations", "t1a", "t1b", "t2a", "t2b", "t3a", "t3b"]


async def test_each_once_in_order(empty: Pool, directory: Path) -> None:
    assert await migrate(empty, directory) == ["0001_t1", "0002_t2", "0003_t3"]
    assert await tables(empty) == ALL
    assert await migrate(empty, directory) == []
    (directory / "0004_t4.sql").write_text("CREATE TABLE t4 ()")
    assert await migrate(empty, directory) == ["0004_t4"]


async def test_ours_from_nothing(empty: Pool) -> None:
    assert await migrate(empty, MIGRATIONS) == OURS
    assert await migrate(empty, MIGRATIONS) == []
    assert {row.name for row in await ModelStore(empty).rows() if row.enabled} == {"base", "demo"}


KILLED_AT = list(itertools.product(["0001_t1", "0002_t2", "0003_t3"], ["before", "between", "after"]))


@pytest.mark.parametrize(("killed", "point"), KILLED_AT)
async def test_a_crash_at_any_point_is_made_good_by_the_next_start(
    empty: Pool, empty_database: ConnectionParameters, directory: Path, tmp_path: Path, killed: str, point: str
) -> None:
    """The connection is cut while the migration stands still before, between or after its statements."""
    standing = Path(shutil.copytree(directory, tmp_path / "standing"))
    first, second = (standing / f"{killed}.sql").read_text().rstrip(";").split(";")
    pause = "SELECT pg_sleep(60)"
    statements = {
        "before": [pause, first, second],
        "between": [first, pause, second],
        "after": [first, second, pause],
    }[point]
    (standing / f"{killed}.sql").write_text(";".join(statements))
    other = await open_pool(empty_database)
    migrating = asyncio.create_task(migrate(other, standing))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = $1"
    while not await empty.fetch(cut, empty_database.database):
        assert not migrating.done()
    with pytest.raises((StartupError, asyncpg.InterfaceError, OSError)):
        await migrating
    await other.close()

    applied = await migrate(empty, directory)
    assert applied[0] == killed
    assert await tables(empty) == ALL


async def test_two_daemons_at_once(empty: Pool, empty_database: ConnectionParameters) -> None:
    other = await open_pool(empty_database)
    outcomes = await asyncio.gather(migrate(empty, MIGRATIONS), migrate(other, MIGRATIONS))
    assert sorted(outcomes) == [[], OURS]
    await other.close()


async def test_a_schema_newer_than_the_code(empty: Pool, directory: Path) -> None:
    await migrate(empty, directory)
    (directory / "0003_t3.sql").unlink()
    with pytest.raises(StartupError, match="newer than this daemon: it has the migration 0003_t3; update the daemon"):
        await migrate(empty, directory)


async def test_a_file_changed_after_it_was_applied(empty: Pool, directory: Path) -> None:
    await migrate(empty, directory)
    (directory / "0002_t2.sql").write_text("CREATE TABLE other ();")
    (directory / "0004_t4.sql").write_text("CREATE TABLE t4 ()")
    with pytest.raises(StartupError, match="0002_t2 was changed after it was applied"):
        await migrate(empty, directory)
    assert await tables(empty) == ALL


async def test_a_table_of_ours_that_is_somebody_elses(empty: Pool) -> None:
    await empty.execute("CREATE TABLE jobs (theirs text)")
    with pytest.raises(StartupError, match='0001_jobs cannot be applied to this database: relation "jobs" already ex'):
        await migrate(empty, MIGRATIONS)
    assert await empty.fetchval("SELECT count(*) FROM jobs") == 0


@dataclass(frozen=True, kw_only=True)
class Existing:
    """A database that others made, in one of the shapes that are met."""

    key: str
    settings_key: str
    key_type: str
    name_column: str | None

    def sql(self) -> str:
        values = {
            "int": {"base": "1", "small": "2", "mine": "3", "other": "4"},
            "text": {"base": "'base'", "small": "'small'", "mine": "'mine'", "other": "'other'"},
        }[self.key_type]
        name = f"{self.name_column} varchar(40)," if self.name_column else ""
        sources = {"base": "whisper", "small": "whisper", "mine": "file", "other": "cloud"}
        names = {model: f"'{model}'," if self.name_column else "" for model in sources}
        rows = ", ".join(f"({values[m]}, {names[m]} '{source}', 'kept')" for m, source in sources.items())
        return f"""
            CREATE TABLE whisper_models ({self.key} {self.key_type} PRIMARY KEY, {name} source text, note text);
            CREATE TABLE model_settings (
                {self.settings_key} {self.key_type} PRIMARY KEY REFERENCES whisper_models, enabled boolean NOT NULL,
                language text DEFAULT 'auto');
            CREATE INDEX theirs ON whisper_models (source);
            CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TRIGGER theirs BEFORE UPDATE ON model_settings FOR EACH ROW EXECUTE FUNCTION theirs();
            INSERT INTO whisper_models VALUES {rows};
            INSERT INTO model_settings VALUES ({values["base"]}, true), ({values["small"]}, false),
                ({values["other"]}, true);
        """

    def name(self, model: str) -> str:
        number = {"base": "1", "small": "2", "mine": "3"}[model]
        return model if self.name_column or self.key_type == "text" else number


async def everything_about(pool: Pool) -> dict[str, list[tuple[object, ...]]]:
    """The two tables as the catalogue of the database knows them, and their rows."""
    seen = {}
    for view in ("columns", "table_constraints", "key_column_usage", "constraint_column_usage"):
        seen[view] = await pool.fetch(
            f"""SELECT * FROM information_schema.{view} WHERE table_name IN ('whisper_models', 'model_settings')
                ORDER BY {view}::text"""
        )
    seen["triggers"] = await pool.fetch(
        """SELECT * FROM information_schema.triggers
           WHERE event_object_table IN ('whisper_models', 'model_settings') ORDER BY triggers::text"""
    )
    seen["indexes"] = await pool.fetch(
        "SELECT * FROM pg_indexes WHERE tablename IN ('whisper_models', 'model_settings') ORDER BY indexname"
    )
    seen["relations"] = await pool.fetch(
        """SELECT relname, oid, relfilenode, relacl, relowner, reloptions FROM pg_class
           WHERE relname IN ('whisper_models', 'model_settings') ORDER BY relname"""
    )
    for table in ("whisper_models", "model_settings"):
        seen[table] = await pool.fetch(f"SELECT ctid::text, xmin::text, t.* FROM {table} t ORDER BY ctid")
    return {what: [tuple(row) for row in rows] for what, rows in seen.items()}


EXISTING = [
    Existing(key=key, settings_key=settings_key, key_type=key_type, name_column=name_column)
    for key in ("id_model", "model_id")
    for settings_key in ("id_model", "model_id")
    for key_type, name_column in [("int", "name"), ("int", None), ("text", "model_name"), ("text", None)]
]


@pytest.mark.parametrize("existing", EXISTING, ids=lambda e: "-".join(str(getattr(e, s)) for s in vars(e)))
async def test_an_existing_database_is_read_as_it_is_and_not_altered(empty: Pool, existing: Existing) -> None:
    await empty.execute(existing.sql())
    before = await everything_about(empty)
    assert len(before["columns"]) >= 6
    assert before["triggers"]
    assert await migrate(empty, MIGRATIONS) == OURS
    store = ModelStore(empty)
    rows = await store.rows()
    assert await everything_about(empty) == before

    def row(model: str, source: str, enabled: bool) -> ModelRow:
        return ModelRow(name=existing.name(model), source=source, path=None, sha256=None, enabled=enabled)

    assert sorted(rows, key=lambda r: r.name) == sorted(
        [row("base", "whisper", True), row("small", "whisper", False), row("mine", "file", False)], key=lambda r: r.name
    )

    # A change that was asked for changes the one value, or adds the row that is missing.
    assert await store.set_enabled(existing.name("small"), True)
    assert await store.set_enabled(existing.name("mine"), True)
    assert not await store.set_enabled("nonesuch", True)
    assert all(row.enabled for row in await store.rows())
    after = await everything_about(empty)
    assert {what for what in before if after[what] != before[what]} == {"model_settings"}
    assert len(after["model_settings"]) == len(before["model_settings"]) + 1


async def test_keys_of_different_types(empty: Pool) -> None:
    await empty.execute(
        """CREATE TABLE whisper_models (model_id int PRIMARY KEY, model text, source text, path text, sha256 text);
           CREATE TABLE model_settings (id_model varchar(9), enabled boolean);
           INSERT INTO whisper_models VALUES (7, 'mine', 'file', '/m.pt', 'ab'), (8, 'base', 'whisper', NULL, NULL);
           INSERT INTO model_settings VALUES ('7', true)"""
    )
    await migrate(empty, MIGRATIONS)
    store = ModelStore(empty)
    assert await store.rows() == [
        ModelRow(name="mine", source="file", path="/m.pt", sha256="ab", enabled=True),
        ModelRow(name="base", source="whisper", path=None, sha256=None, enabled=False),
    ]
    assert await store.set_enabled("base", True)
    assert [row.enabled for row in await store.rows()] == [True, True]


@pytest.mark.parametrize(
    ("sql", "missing"),
    [
        (
            "CREATE TABLE whisper_models (id_model int, source text)",
            "model_settings has no column id_model or model_id",
        ),
        (
            "CREATE TABLE model_settings (id_model int, enabled bool)",
            "whisper_models has no column id_model or model_i",
        ),
        (
            "CREATE TABLE whisper_models (key int, source text); CREATE TABLE model_settings (id_model int)",
            "whisper_models has no column id_model or model_id",
        ),
    ],
)
async def test_half_a_catalogue_is_said_in_words(empty: Pool, sql: str, missing: str) -> None:
    await empty.execute(sql)
    await migrate(empty, MIGRATIONS)
    with pytest.raises(StartupError, match=missing):
        await ModelStore(empty).rows()
