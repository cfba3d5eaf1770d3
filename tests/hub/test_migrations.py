"""A hub of an older schema opens, with everything in it; one of a newer schema is left alone."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedlab import CorruptHub, Hub, HubUnavailable, IncompatibleHub
from fedlab.hub import migrations, schema
from fedlab.hub.directory import read_hub_id

SCHEMAS = range(1, schema.VERSION)


def empty(path: Path, version: int) -> sa.Engine:
    """A database with the tables of a schema, made by its migrations."""
    engine = schema.open_engine(path, "off", writer=True)
    with schema.begin(engine, "IMMEDIATE") as connection:
        migrations.migrate(connection, 0, version)
    return engine


def rows(database: Path, tables: list[str]) -> dict[str, list]:
    with schema.look(database) as connection:
        return {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}


@pytest.fixture(params=SCHEMAS)
def old(request, tmp_path, episode, vector) -> Path:
    """The directory of a hub as an older fedlab left it: its tables, with the rows of a life that was lived."""
    directory = tmp_path / "old"
    with Hub(directory, embedder="hashing") as hub:
        made = [episode(n, vector=vector(n), sources=("s1", "s2"), metadata={"n": n}) for n in range(50)]
        hub.put(made)
        hub.put(episode(tenant_id="other"))
        hub.forget("acme", [made[7].id], reason="wrong")
        hub.spawn_agent("acme", "a1", lifetime=60)
    now = directory / "hub.db"
    now.rename(directory / "now.db")
    empty(now, request.param).dispose()
    connection = sqlite3.connect(now, isolation_level=None)
    connection.execute("ATTACH ? AS now", (str(directory / "now.db"),))
    for (table,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
        connection.execute(f"INSERT INTO main.{table} SELECT * FROM now.{table}")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(request.param),))
    connection.close()
    (directory / "now.db").unlink()
    return directory


def tables(database: Path) -> list[str]:
    with schema.look(database) as connection:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'meta' ORDER BY name"
        return [name for (name,) in connection.execute(query)]


def test_an_old_hub_opens_with_everything_in_it_and_a_copy_beside_it(old, episode, vector, caplog):
    names = tables(old / "hub.db")
    before = rows(old / "hub.db", names)
    with Hub(old) as hub:
        assert hub.verify().problems == []
        assert hub.stats("acme").episodes == 49
        assert hub.recall("acme", vector(3), 1)[0].input == "input 3"
        assert hub.put(episode(99)) == hub.info().seq
        assert hub.info().hub_id == read_hub_id(old)
    [copy] = (old / migrations.COPIES).iterdir()
    assert str(copy) in caplog.text
    assert rows(copy, names) == before
    after = rows(old / "hub.db", names)
    assert [(name, row) for name in names for row in before[name] if row not in after[name]] == []
    caplog.clear()
    Hub(old).close()
    assert "schema" not in caplog.text


def test_the_copy_is_the_old_hub(old, tmp_path):
    with Hub(old) as hub:
        before = hub.episodes().rows(), hub.read_changes()
    [copy] = (old / migrations.COPIES).iterdir()
    (tmp_path / "again").mkdir()
    copy.rename(tmp_path / "again" / "hub.db")
    with Hub(tmp_path / "again") as hub:
        assert (hub.episodes().rows(), hub.read_changes()) == before
        assert hub.verify().problems == []


def test_an_erasure_takes_the_copy_too(old):
    with Hub(old) as hub:
        [copy] = (old / migrations.COPIES).iterdir()
        assert b"output 3" in copy.read_bytes()
        hub.erase_episodes("acme", [hub.episodes("acme")["id"][3]], reason="asked for")
        assert not copy.exists()


@pytest.mark.filterwarnings("ignore:.*expression-based index")
@pytest.mark.parametrize("version", [*SCHEMAS, schema.VERSION])
def test_the_migrations_add_up_to_the_tables_of_the_code(tmp_path, version):
    engine = empty(tmp_path / "hub.db", version)
    with schema.begin(engine, "IMMEDIATE") as connection:
        if version < schema.VERSION:
            migrations.migrate(connection, version, schema.VERSION)
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()
    # Alembic compares neither the expressions nor the condition of an index, nor WITHOUT ROWID, nor ON DELETE.
    Hub(tmp_path / "new", embedder="hashing").close()
    assert statements(tmp_path / "hub.db") == statements(tmp_path / "new" / "hub.db")


def statements(database: Path) -> dict[str, str]:
    with schema.look(database) as connection:
        made = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
    return {name: re.sub(r"\s+", " ", sql or "") for name, sql in made}


KILLED = {
    "between two changes": "alembic.op.create_index = die_after(0, alembic.op.create_index)",
    "while it copies": "os.fsync = die_after(0, os.fsync)",
    "before the commit": "migrations.logger, schema.begin = None, dying(schema.begin)",
}
KILL = """
import contextlib, os, signal, sys
import alembic.op
from fedlab import Hub
from fedlab.hub import migrations, schema

def die(*_args, **_keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(times, function):
    left = [times]
    def call(*args, **keywords):
        left[0] -= 1
        return die() if left[0] < 0 else function(*args, **keywords)
    return call

def dying(begin):
    @contextlib.contextmanager
    def begun(engine, mode="DEFERRED"):
        with begin(engine, mode) as connection:
            yield connection
            die()
    return begun

{}
Hub(sys.argv[1])
"""


@pytest.mark.parametrize("when", KILLED)
def test_a_hub_killed_in_its_upgrade_opens_the_next_time(old, when):
    names = tables(old / "hub.db")
    before = rows(old / "hub.db", [*names, "meta"])
    done = subprocess.run([sys.executable, "-c", KILL.format(KILLED[when]), old], check=False)
    assert done.returncode == -signal.SIGKILL
    assert tables(old / "hub.db") == names
    assert rows(old / "hub.db", [*names, "meta"]) == before
    with Hub(old) as hub:
        assert hub.verify().problems == []
        assert hub.stats("acme").episodes == 49
    [copy] = (old / migrations.COPIES).iterdir()
    assert rows(copy, [*names, "meta"]) == before


def test_a_newer_hub_is_refused_and_not_a_byte_of_it_changes(old):
    Hub(old).close()
    # Killed, so that it leaves a write-ahead log behind.
    newer = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        f" db.execute(\"UPDATE meta SET value = '{schema.VERSION + 1}' WHERE key = 'schema'\"); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", newer, old / "hub.db"], check=False)
    files = [old / "hub.db", old / "hub.db-wal"]
    before = [file.read_bytes() for file in files]
    assert before[1]
    with pytest.raises(IncompatibleHub, match=f"schema {schema.VERSION + 1} .*newer"):
        Hub(old)
    assert read_hub_id(old)
    assert [file.read_bytes() for file in files] == before


def test_an_old_hub_that_lacks_a_table_is_refused_and_stays_as_it_is(old):
    connection = sqlite3.connect(old / "hub.db", isolation_level=None)
    connection.execute("DROP TABLE vectors")
    connection.close()
    names = tables(old / "hub.db")
    with pytest.raises(CorruptHub, match="lacks vectors.*cp -a"):
        Hub(old)
    assert tables(old / "hub.db") == names
    assert not (old / migrations.COPIES).exists()


def test_without_room_for_the_copy_nothing_is_upgraded(old):
    names = tables(old / "hub.db")
    (old / migrations.COPIES).write_text("in the way")
    with pytest.raises(HubUnavailable, match="not upgraded"):
        Hub(old)
    assert tables(old / "hub.db") == names
    (old / migrations.COPIES).unlink()
    Hub(old).close()


def test_an_old_hub_gives_out_tokens_without_being_upgraded(old, tmp_path):
    names = tables(old / "hub.db")
    command = [sys.executable, "-m", "fedlab", "token", "--data", old, "--tenant", "acme", "--role", "agent"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.count(".") == 2
    assert tables(old / "hub.db") == names
