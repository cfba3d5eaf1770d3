"""The way from each schema of a hub to the next: one module a schema, run by Alembic.

A database is as old as `meta.schema` says. What a schema was when it was released stands in its module and
never changes again; `fedlab.hub.schema` is what all of them add up to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from fedlab.errors import CorruptHub, HubUnavailable
from fedlab.hub import schema

COPIES = "before-upgrade"
"""The folder, in a hub's directory, of databases as they were before an upgrade."""

logger = logging.getLogger("fedlab.hub")


def upgrade(engine: sa.Engine, database: Path, held: int) -> None:
    """Bring a database of an older schema to the present one, in one transaction, and keep a copy of the old one.

    Raises:
        CorruptHub: If what belongs to a hub is missing from it; then it is as it was.
        HubUnavailable: If there is no room on the disk; the same.
    """
    with schema.begin(engine, "IMMEDIATE") as connection:
        migrate(connection, held, schema.VERSION)
        missing = set(schema.metadata.tables) - set(sa.inspect(connection).get_table_names())
        if missing:
            raise CorruptHub(f"{database} is no hub's database: it lacks {', '.join(sorted(missing))}.")
        seq = connection.scalar(sa.select(sa.func.max(schema.changes.c.seq))) or 0
        copy = database.parent / COPIES / f"schema-{held}-change-{seq}.db"
        try:
            _copy(database, copy)
        except OSError as error:
            raise HubUnavailable(
                f"{database} can not be copied before its upgrade, so it was not upgraded: {error}"
            ) from error
    logger.warning(
        "%s had schema %d and has %d now; it is kept as it was in %s until you delete that file",
        database,
        held,
        schema.VERSION,
        copy,
    )


def migrate(connection: sa.Connection, held: int, wanted: int) -> None:
    """Change the tables from one schema to a later one, inside a write transaction.

    Args:
        connection: To the database.
        held: Its schema; 0 for an empty database.
        wanted: A later one.
    """
    # Imported here: it takes 0.3 s, and almost no start of a hub needs it.
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    here = str(Path(__file__).parent)
    scripts = ScriptDirectory(here, version_locations=[here])
    # Alembic keeps a table of its own of where a database stands. That is in `meta`, where older versions of
    # fedlab look too, and shall not be in two places: Alembic's lives as long as this connection.
    connection.exec_driver_sql("CREATE TEMP TABLE alembic_version (version_num TEXT NOT NULL)")
    if held:
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (str(held),))
    context = MigrationContext.configure(
        connection,
        opts={"script": scripts, "fn": lambda at, _context: scripts._upgrade_revs(str(wanted), at)},  # as its `upgrade`
    )
    with Operations.context(context):
        context.run_migrations()
    connection.exec_driver_sql("DROP TABLE temp.alembic_version")
    connection.execute(sa.update(schema.meta).where(schema.meta.c.key == "schema").values(value=str(wanted)))


def delete_copies(directory: Path) -> None:
    """Remove the databases from before an upgrade: they hold what was erased since."""
    if (directory / COPIES).exists():
        shutil.rmtree(directory / COPIES)


def _copy(database: Path, copy: Path) -> None:
    """A copy of what is committed."""
    copy.parent.mkdir(exist_ok=True)
    fresh = copy.with_suffix(".tmp")
    fresh.unlink(missing_ok=True)  # of an upgrade that was killed
    with schema.look(database) as source, contextlib.closing(sqlite3.connect(fresh)) as target:
        source.backup(target)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(copy)
