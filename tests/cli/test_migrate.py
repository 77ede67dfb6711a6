"""`jobs-async migrate`: what is to be done, done once, or printed for somebody else to do."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs_async import MemoryStore, SchemaError, SqliteStore, StoreError
from jobs_async.cli.main import main
from jobs_async.cli.schema import migrates
from jobs_async.core.schema import Migrates
from jobs_async.observe import ObservedStore
from jobs_async.stores.sqlite.file import NEWEST
from tests.sqlite.support import Holder, ask, change

ALL = list(range(1, NEWEST + 1))


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["migrate", *map(str, arguments)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def apply(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)


def schema(path: Path) -> list[Any]:
    return ask(
        path,
        "SELECT type, name, trim(sql, char(10)) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name",
    )


def test_a_new_file_is_made_once(path: Path, url: str) -> None:
    result = invoke("--store", url, "--check")
    assert (result.exit_code, result.output) == (5, f"behind: schema 0, {NEWEST} is the newest\n")
    assert not path.exists(), "a check creates nothing"
    assert invoke("--store", url).output == f"applied {', '.join(map(str, ALL))}: schema {NEWEST}\n"
    result = invoke("--store", url)
    assert (result.exit_code, result.output) == (0, f"up to date: schema {NEWEST}\n")
    assert (invoke("--store", url, "--check").exit_code) == 0
    assert ask(path, "SELECT version FROM jobs_async_migrations ORDER BY version") == [(number,) for number in ALL]


def test_programs_read_json(url: str) -> None:
    result = invoke("--store", url, "--check", "--json")
    assert (result.exit_code, json.loads(result.output)) == (5, {"stored": 0, "newest": NEWEST, "applied": []})
    assert json.loads(invoke("--store", url, "--json").output) == {"stored": NEWEST, "newest": NEWEST, "applied": ALL}
    assert json.loads(invoke("--store", "memory://", "--json").output)["stored"] is None


@pytest.mark.parametrize("since", [0, 1, NEWEST - 1])
def test_the_script_does_what_the_command_does(path: Path, tmp_path: Path, url: str, since: int) -> None:
    """Also to a file that an earlier version has made."""
    invoke("--store", f"sqlite:///{tmp_path}/other.db")
    if since:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            script = invoke("--store", url, "--sql").output
            cut = script.index(f"-- migration {since + 1}\n")
            connection.executescript(script[:cut] + "COMMIT;")
    assert asyncio.run(SqliteStore(path).schema_version()) == (since, NEWEST)
    script = invoke("--store", url, "--sql", "--since", since).output
    apply(path, script)
    assert schema(path) == schema(tmp_path / "other.db")
    result = invoke("--store", url)
    assert (result.exit_code, result.output) == (0, f"up to date: schema {NEWEST}\n")
    assert invoke("--store", url, "--sql", "--since", NEWEST).output == ""


def test_a_script_that_fails_leaves_the_file_as_it_was(path: Path, url: str) -> None:
    script = invoke("--store", url, "--sql").output
    with pytest.raises(sqlite3.OperationalError):
        apply(path, script.replace("COMMIT;", "SELECT nothing;\nCOMMIT;"))
    assert schema(path) == []
    assert script.startswith("BEGIN IMMEDIATE;\n")


def test_an_old_file_is_brought_up_to_date_with_what_is_in_it(path: Path, url: str) -> None:
    script = SqliteStore(path).migration_sql()
    apply(path, script[: script.index("-- migration 2\n")] + "COMMIT;")
    columns = "state, queue, worker, args, priority, attempt, max_attempts, scheduled_at, inserted_at, rescues, claim"
    change(
        path,
        f"INSERT INTO jobs_async_jobs ({columns}, cancel_requested) VALUES (0, 'q', 'w', '1', 0, 0, 1, 0, 0, 0, 0, 0)",
    )
    result = invoke("--store", url, "--check")
    assert (result.exit_code, result.output) == (5, f"behind: schema 1, {NEWEST} is the newest\n")
    assert json.loads(invoke("--store", url, "--json").output)["applied"] == ALL[1:]

    async def read() -> Any:
        async with SqliteStore(path) as store:
            return (await store.get(1)).args

    assert asyncio.run(read()) == 1


def test_a_store_without_a_schema_has_nothing_to_migrate() -> None:
    for options in ([], ["--check"], ["--sql"]):
        result = invoke("--store", "memory://", *options)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr.startswith("nothing to migrate")
    assert migrates(MemoryStore()) is None


def test_what_cannot_be_migrated_is_named_in_one_line(path: Path, url: str, tmp_path: Path) -> None:
    invoke("--store", url)
    change(path, "INSERT INTO jobs_async_migrations VALUES (999, 'now')")
    result = invoke("--store", url, "--check")
    assert (result.exit_code, result.output) == (5, f"too new: schema 999, {NEWEST} is the newest known here\n")
    result = invoke("--store", url)
    assert (result.exit_code, result.output.count("\n")) == (5, 1)
    assert result.output.startswith("Error: the file has schema 999")
    (tmp_path / "text.db").write_text("no database " * 100)
    for more in ([], ["--check"]):
        result = invoke("--store", f"sqlite:///{tmp_path}/text.db", *more)
        assert (result.exit_code, result.output.count("\n")) == (5, 1)
    assert invoke("--store", url, "--sql", "--check").exit_code == 2


async def test_a_store_is_left_as_it_was_open_or_closed(path: Path) -> None:
    store = SqliteStore(path)
    assert isinstance(store, Migrates)
    assert migrates(ObservedStore(ObservedStore(store))) is store
    assert await asyncio.gather(*(SqliteStore(path).migrate() for _ in range(5))) != [ALL] * 5
    assert not store.is_open
    async with store:
        assert await store.migrate() == []
        assert await store.schema_version() == (NEWEST, NEWEST)
        await store.enqueue("work")
    assert not store.is_open
    change(path, "INSERT INTO jobs_async_migrations VALUES (999, 'now')")
    with pytest.raises(SchemaError):
        await store.migrate()
    with pytest.raises(StoreError):
        await SqliteStore(path.parent).schema_version()


async def test_a_lock_is_waited_for(path: Path) -> None:
    with Holder(path) as holder:
        migrating = asyncio.create_task(SqliteStore(path).migrate())
        assert not (await asyncio.wait({migrating}, timeout=0.1))[0]
        await asyncio.to_thread(holder.let_go)
        assert await migrating == ALL
