"""The schema: made once by whoever comes first, the same whichever way it came about, and refused where it does not
fit; and what a newcomer gets wrong about a server is one line that holds no address.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from click.testing import CliRunner

from jobs_async import SchemaError, StoreError, Supervisor, worker
from jobs_async.cli.main import main
from jobs_async.core.errors import OptionError
from jobs_async.core.options import NewJob
from jobs_async.stores import sql
from jobs_async.stores.postgres import PostgresStore, migrations, server
from tests.cluster import PgCluster, PgServer, _binaries
from tests.postgres.fleet import FAST, GRANTS, all_ears, hints_of, script, supervisor, with_role
from tests.postgres.support import ROOT, ask, connected, until

SECRET = "hunter2-secret"
WAIT = 40.0

HOSTILE = {
    "upper case": "MyJobs",
    "spaces": "my jobs",
    "quotes": 'a"b\'c"";--',
    "a dot": "public.jobs",
    "a parameter": ":queue $1 %s {x}",
    "a reserved word": "select",
    "a table's name": "jobs_async_jobs",
    "63 bytes": "x" * 63,
    "unicode": "schéma_żółć_数据",
}

COLUMNS = """
    SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
        coalesce(co.collname, ''), coalesce(pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    LEFT JOIN pg_collation co ON co.oid = a.attcollation
    WHERE c.relnamespace = to_regnamespace($1) AND c.relkind = 'r'
    ORDER BY 1, 2
"""
TABLES = """
    SELECT relname, relkind::text, array_to_string(ARRAY(SELECT unnest(reloptions) ORDER BY 1), ' ')
    FROM pg_class WHERE relnamespace = to_regnamespace($1) ORDER BY 1
"""
INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = $2 ORDER BY 1"
CONSTRAINTS = """
    SELECT conname, contype::text, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = to_regnamespace($1) ORDER BY 1
"""
OTHERS = """
    SELECT 'function', proname::text FROM pg_proc WHERE pronamespace = to_regnamespace($1)
    UNION ALL
    SELECT 'trigger', tgname::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE relnamespace = to_regnamespace($1)
    ORDER BY 1, 2
"""


def quoted(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '"'


async def shape(dsn: str, schema: str = "public") -> dict[str, list[Any]]:
    """All that makes a schema of ours, as the server's own catalogue has it."""
    name = quoted(schema)
    found = {
        what: await ask(dsn, sql, name)
        for what, sql in {"columns": COLUMNS, "tables": TABLES, "constraints": CONSTRAINTS, "others": OTHERS}.items()
    }
    indexes = await ask(dsn, INDEXES.replace("$2", "$1"), schema)
    bare = schema if re.fullmatch("[a-z_0-9]+", schema) and schema != "select" else name
    found["indexes"] = [definition.replace(f" {bare}.", " ") for (definition,) in indexes]
    found["applied"] = await ask(
        dsn, f"SELECT version, compatible_with FROM {name}.jobs_async_migrations ORDER BY version"
    )
    return found


async def psql(server: PgCluster, dsn: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What an administrator does with a script."""
    command = [str(_binaries(server.version, server.folder) / "psql"), "-X", "-q", *options, dsn]
    return await asyncio.to_thread(subprocess.run, command, input=script, capture_output=True, text=True, timeout=60)


@worker
async def add(a: int, b: int) -> int:
    return a + b


async def works(dsn: str, **options: Any) -> None:
    """A job comes to its end here."""
    async with supervisor(dsn, add, store=PostgresStore(dsn, **options)) as jobs:
        assert await jobs.result(await jobs.enqueue("add", {"a": 2, "b": 3}), timeout=WAIT) == 5


@pytest.fixture(scope="module")
def own() -> Iterator[PgCluster]:
    """A server with a psql beside it, which wants a password of everybody but its owner."""
    with PgCluster.start() as server:
        path = server.folder / "data" / "pg_hba.conf"
        asyncio.run(script(server.dsn(), f"CREATE ROLE ada LOGIN PASSWORD '{SECRET}'"))
        path.write_text("host all postgres 127.0.0.1/32 trust\nhost all ada 127.0.0.1/32 scram-sha-256\n")
        asyncio.run(script(server.dsn(), "SELECT pg_reload_conf()"))
        yield server


# ------------------------------------------------------------------------------------------------ who comes first


PROGRAM = """
import asyncio, sys
from jobs_async.stores.postgres import PostgresStore

async def main():
    sys.stdin.readline()
    async with PostgresStore(sys.argv[1]) as store:
        await store.enqueue("work")

asyncio.run(main())
"""


async def test_two_dozen_nodes_that_open_an_empty_database_at_once_migrate_it_once(pg_dsn: str) -> None:
    applied = await asyncio.gather(*(PostgresStore(pg_dsn).migrate() for _ in range(24)))
    assert sorted(applied) == [[]] * 23 + [[*range(1, migrations.NEWEST + 1)]]
    again = await asyncio.gather(*(opened(pg_dsn) for _ in range(24)))
    assert all(again)
    assert await ask(pg_dsn, "SELECT version FROM jobs_async_migrations") == [
        (n + 1,) for n in range(migrations.NEWEST)
    ]


async def opened(dsn: str) -> bool:
    async with PostgresStore(dsn) as store:
        return (await store.enqueue("work")).id > 0


@pytest.mark.parametrize("count", [3, pytest.param(24, marks=pytest.mark.soak)])
async def test_processes_that_open_an_empty_database_at_once_migrate_it_once(pg_dsn: str, count: int) -> None:
    command = [sys.executable, "-c", PROGRAM, pg_dsn]
    processes = [
        await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(count)
    ]
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [stderr.decode() for _, stderr in answers] == [""] * count
    assert [process.returncode for process in processes] == [0] * count
    assert await ask(pg_dsn, "SELECT count(*) FROM jobs_async_jobs") == [(count,)]
    assert await ask(pg_dsn, "SELECT count(*) FROM jobs_async_migrations") == [(migrations.NEWEST,)]


# ------------------------------------------------------------------------------------------------ the same schema


async def test_a_fresh_schema_and_one_brought_up_step_by_step_are_alike(
    pg_cluster: PgServer, pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await PostgresStore(pg_dsn).migrate()
    every = sql.migrations(migrations.PACKAGE)
    with pg_cluster.database() as stepwise:
        for number in range(1, len(every) + 1):
            monkeypatch.setattr(migrations, "migrations", lambda _package, until=number: every[:until])
            assert await PostgresStore(stepwise).migrate() == [number]
        monkeypatch.undo()
        assert await PostgresStore(stepwise).migrate() == []
        assert await shape(stepwise) == await shape(pg_dsn)


async def test_a_schema_that_is_behind_is_brought_up_and_keeps_what_it_holds(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a migration of tomorrow, for today there is but one."""
    async with PostgresStore(pg_dsn) as store:
        kept = await store.enqueue("work", {"n": 1})
    tomorrow = (migrations.NEWEST + 1, "-- compatible with: 1\nALTER TABLE jobs_async_jobs ADD COLUMN mood text;\n")
    every = (*sql.migrations(migrations.PACKAGE), tomorrow)
    monkeypatch.setattr(migrations, "migrations", lambda _package: every)
    monkeypatch.setattr(migrations, "NEWEST", tomorrow[0])
    with pytest.raises(SchemaError, match="is at version 1, this jobs_async needs 2: run `jobs-async migrate`"):
        await PostgresStore(pg_dsn, migrate=False).open()
    assert await PostgresStore(pg_dsn).schema_version() == (1, 2)
    async with PostgresStore(pg_dsn) as store:
        assert await store.get(kept.id) == kept
    assert await PostgresStore(pg_dsn).schema_version() == (2, 2)
    monkeypatch.undo()
    await works(pg_dsn)  # yesterday's code on tomorrow's schema, which says that it may
    await works(pg_dsn, migrate=False)


async def test_the_script_gives_psql_the_same_schema_whatever_its_name(own: PgCluster) -> None:
    pasted, opened = own.create_database(), own.create_database()
    names = ["public", *HOSTILE.values()]
    scripts = [PostgresStore(pasted, schema=name).migration_sql() for name in names]
    done = await psql(own, pasted, "".join(scripts), "-v", "ON_ERROR_STOP=1")
    assert (done.returncode, done.stderr) == (0, "")
    for name in names:
        store = PostgresStore(pasted, schema=name)
        await PostgresStore(opened, schema=name).migrate()
        assert await shape(pasted, name) == await shape(opened, name), name
        assert await store.schema_version() == (migrations.NEWEST, migrations.NEWEST)
        assert await store.migrate() == []
        assert store.migration_sql(migrations.NEWEST) == ""
        if name in ("public", HOSTILE["quotes"], HOSTILE["a parameter"], HOSTILE["unicode"]):
            await works(pasted, schema=name, migrate=False)
    own.drop_database(pasted)
    own.drop_database(opened)


async def test_a_script_that_fails_half_way_leaves_nothing_behind(pg_dsn: str) -> None:
    async with connected(pg_dsn) as connection:
        await connection.execute("CREATE TABLE jobs_async_records (mine int)")
        with pytest.raises(Exception, match="already exists"):
            await connection.execute(PostgresStore(pg_dsn).migration_sql())
    with pytest.raises(StoreError, match="DuplicateTableError"):
        await PostgresStore(pg_dsn).open()
    names = await ask(pg_dsn, "SELECT relname FROM pg_class WHERE relname LIKE 'jobs_async%'")
    assert names == [("jobs_async_records",)]


# ------------------------------------------------------------------------------------------------ what does not fit


async def test_migrate_false_refuses_a_missing_and_a_too_new_schema_and_makes_nothing(pg_dsn: str) -> None:
    for store in (PostgresStore(pg_dsn, migrate=False), PostgresStore(pg_dsn, schema="else", migrate=False)):
        with pytest.raises(
            SchemaError, match=one_line("is at version 0, this jobs_async needs .*`jobs-async migrate`")
        ):
            await store.open()
    assert await ask(pg_dsn, "SELECT 1 FROM pg_class WHERE relname LIKE 'jobs_async%'") == []
    await PostgresStore(pg_dsn).migrate()
    await works(pg_dsn, migrate=False)
    await ask(pg_dsn, "INSERT INTO jobs_async_migrations VALUES (7, 1)")
    await works(pg_dsn)  # newer, and compatible
    await works(pg_dsn, migrate=False)
    await ask(pg_dsn, "INSERT INTO jobs_async_migrations VALUES (8, 8)")
    for migrate in (False, True):
        with pytest.raises(SchemaError, match=one_line("needs a jobs_async that knows version 8, this one knows")):
            await PostgresStore(pg_dsn, migrate=migrate).open()
    assert await PostgresStore(pg_dsn).schema_version() == (8, migrations.NEWEST)


def test_the_command_line_goes_by_whether_a_newer_schema_fits(pg_dsn: str) -> None:
    def said(*words: str) -> tuple[int, str]:
        ran = CliRunner().invoke(main, [*words, "--store", pg_dsn])
        return ran.exit_code, ran.output

    asyncio.run(PostgresStore(pg_dsn).migrate())
    asyncio.run(ask(pg_dsn, "INSERT INTO jobs_async_migrations VALUES (7, 1)"))
    assert said("migrate", "--check") == (0, f"up to date: schema 7, newer than {migrations.NEWEST}, and it fits\n")
    assert said("migrate")[0] == 0
    assert said("health")[0] == 0
    assert "schema-behind" not in said("doctor")[1]
    asyncio.run(ask(pg_dsn, "INSERT INTO jobs_async_migrations VALUES (8, 8)"))
    for command in (["migrate", "--check"], ["migrate"], ["doctor"]):
        code, text = said(*command)
        assert (code, "8" in text) == (5, True), text
    assert said("health")[0] == 1


def one_line(pattern: str) -> str:
    return rf"\A[^\n]*{pattern}[^\n]*\Z"


async def test_tables_that_went_away_below_us_are_a_schema_error(pg_dsn: str) -> None:
    async with PostgresStore(pg_dsn) as store:
        await ask(pg_dsn, "DROP TABLE jobs_async_jobs")
        with pytest.raises(SchemaError, match=one_line("missing or old")):
            await store.enqueue("work")


@pytest.mark.parametrize("name", ["", "x" * 64, "ż" * 32, "a\x00b", "a\nb", 7, None])
def test_a_name_that_postgresql_would_cut_or_refuse_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="schema must"):
        PostgresStore("postgresql://h/d", schema=name)


async def test_two_schemas_in_one_database_do_not_know_of_each_other(pg_dsn: str) -> None:
    async with (
        PostgresStore(pg_dsn, schema="one") as one,
        PostgresStore(pg_dsn, schema="One") as other,
        PostgresStore(pg_dsn, schema="one") as same,
    ):
        heard = {id(store): hints_of(store) for store in (other, same)}
        await until(lambda: both(heard))
        for words in heard.values():
            words.clear()
        job = await one.enqueue("work")
        await one.pause("default")
        await one.put_records([])
        await until(lambda: both({0: heard[id(same)]}))
        assert heard[id(other)] == []
        assert (await same.get(job.id)).id == job.id
        assert await other.tally() == {}
        assert not await other.is_paused("default")
    assert await ask(pg_dsn, "SELECT 1 FROM pg_class WHERE relname LIKE 'jobs_async%' AND relnamespace = 2200") == []


async def both(heard: dict[int, list[Any]]) -> bool:
    return all(heard.values())


# ------------------------------------------------------------------------------------------------ rights


async def test_who_may_not_create_anything_can_run_on_a_schema_that_is_up_to_date(pg_dsn: str) -> None:
    await PostgresStore(pg_dsn, schema="jobs").migrate()
    async with with_role(pg_dsn, GRANTS) as poor:
        await runs_all(supervisor(poor, add, store=PostgresStore(poor, schema="jobs")))


async def runs_all(jobs: Supervisor) -> None:
    """Much of what a node does."""
    async with jobs:
        await all_ears(jobs)
        jobs.register_cron("tick", "* * * * *", "add", {"a": 1, "b": 1})
        assert await jobs.result(await jobs.enqueue("add", {"a": 2, "b": 3}, unique_key="k"), timeout=WAIT) == 5
        await jobs.pause_queue("default")
        assert await jobs.diagnose()
        await jobs.store.delete_completed(0)


async def test_who_may_not_create_anything_is_told_what_is_missing(pg_dsn: str) -> None:
    async with with_role(pg_dsn, "") as poor:
        for schema in ("public", "jobs"):
            with pytest.raises(StoreError, match=one_line("permission denied")) as refused:
                await PostgresStore(poor, schema=schema).open()
            assert type(refused.value) is StoreError
        await PostgresStore(pg_dsn, schema="jobs").migrate()
        with pytest.raises(StoreError, match=one_line("permission denied for schema jobs")):
            await PostgresStore(poor, schema="jobs").open()


# ------------------------------------------------------------------------------------------------ a standby


async def test_a_server_that_only_reads_is_one_line_and_no_hang(pg_cluster: PgServer) -> None:
    with pg_cluster.database() as dsn:
        name = urlsplit(dsn).path[1:]
        await ask(pg_cluster.dsn(), f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        with pytest.raises(StoreError, match=one_line("refuses to write.*connect to the primary")):
            await PostgresStore(dsn).open()
        await script(dsn, "SET default_transaction_read_only = off", PostgresStore(dsn).migration_sql())
        async with PostgresStore(dsn) as store:
            assert await store.tally() == {}, "reading is allowed"
            for call in (store.enqueue("work"), store.pause("default"), store.enqueue("work")):
                with pytest.raises(StoreError, match=one_line("read-only")):
                    await call
        with pytest.raises(StoreError, match=one_line("read-only")):
            await supervisor(dsn, add).start()


@pytest.mark.soak
async def test_a_real_standby_is_refused_and_welcome_once_it_is_promoted(measured: Any) -> None:
    with PgCluster.start(settings={"wal_level": "replica", "max_wal_senders": 4}) as primary:
        dsn = primary.create_database()
        await PostgresStore(dsn).migrate()
        with Standby(primary) as standby:
            copy = f"postgresql://postgres@127.0.0.1:{standby.port}{urlsplit(dsn).path}"
            await until(lambda: has_schema(copy))
            async with PostgresStore(copy) as store:
                with pytest.raises(StoreError, match=one_line("read-only standby")):
                    await store.enqueue("work")
            codes = [one.code for one in await findings(copy)]
            assert "postgres-standby" in codes
            with pytest.raises(StoreError, match=one_line("read-only standby")):
                await supervisor(copy, add).start()
            await ask(copy, "SELECT pg_promote()")
            await works(copy)
    measured("a standby is connected to, then promoted", "one node", "refused in one line, works after pg_promote()")


async def has_schema(dsn: str) -> bool:
    try:
        return (await PostgresStore(dsn).schema_version())[0] == migrations.NEWEST
    except StoreError:
        return False


async def findings(dsn: str) -> list[Any]:
    async with PostgresStore(dsn) as store:
        return await store.diagnose()


class Standby:
    """A copy of a server that follows it, made by pg_basebackup, in the folder of the first."""

    def __init__(self, primary: PgCluster) -> None:
        self._primary = primary
        self._copy = PgCluster(primary.version, primary.folder.parent, None)
        self.port = self._copy.port

    def __enter__(self) -> Standby:
        from tests.cluster import _give_away

        _give_away(self._copy.folder)
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        self._copy._run("pg_basebackup", "-d", source, "-R", "-X", "stream", "-c", "fast")
        with (self._copy.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\n")
        self._copy.start_again()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._copy.close()


# ------------------------------------------------------------------------------------------------ no way in


def blackhole() -> tuple[str, Callable[[], None]]:
    """An address where connections are taken and nothing is ever said."""
    hole = socket.socket()
    hole.bind(("127.0.0.1", 0))
    hole.listen(64)
    return f"127.0.0.1:{hole.getsockname()[1]}", hole.close


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def wrong_ways(port: int, hole: str) -> dict[str, tuple[str, str]]:
    """Addresses that lead nowhere, and what is said of each."""
    here = f"127.0.0.1:{port}"
    return {
        "a wrong password": (f"postgresql://ada:{SECRET}-not@{here}/postgres", "password authentication failed"),
        "no password": (f"postgresql://ada@{here}/postgres", "password"),
        "no such database": (f"postgresql://ada:{SECRET}@{here}/nowhere", "database .* does not exist"),
        "no such role": (f"postgresql://bob:{SECRET}@{here}/postgres", "no pg_hba.conf entry"),
        "nobody there": (f"postgresql://ada:{SECRET}@{closed_port()}/postgres", "not reachable"),
        "no such host": (f"postgresql://ada:{SECRET}@nowhere.invalid/postgres", "not reachable"),
        "a black hole": (f"postgresql://ada:{SECRET}@{hole}/postgres", "in time"),
        "another protocol": (f"postgresql://ada:{SECRET}@{here}/postgres?sslmode=require", "PostgreSQL"),
        "an option unknown": (f"postgresql://ada:{SECRET}@{here}/postgres?nonsense={SECRET}", "PostgreSQL"),
        "a bad port": (f"postgresql://ada:{SECRET}@127.0.0.1:port/postgres", "PostgreSQL|dsn"),
    }


WAYS = [*wrong_ways(1, "")]


@pytest.fixture(autouse=True)
def _impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "a black hole" in request.node.name:
        monkeypatch.setattr(server, "CONNECT_SECONDS", 0.5)


@pytest.mark.parametrize("way", WAYS)
async def test_what_leads_nowhere_is_one_line_without_the_address(
    own: PgCluster, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    hole, close = blackhole()
    dsn, said = wrong_ways(own.port, hole)[way]
    try:
        for start in (lambda: PostgresStore(dsn).open(), lambda: Supervisor(dsn, **FAST).start()):
            with pytest.raises((StoreError, OptionError), match=one_line(said)) as refused:
                async with asyncio.timeout(WAIT):
                    await start()
            told = "".join(map(str, (refused.value, repr(refused.value), caplog.text)))
            assert SECRET not in told
            assert "postgresql://" not in told
    finally:
        close()


@pytest.mark.parametrize("way", ["a wrong password", "nobody there", "a black hole", "an option unknown"])
@pytest.mark.parametrize("command", ["migrate", "doctor"])
def test_what_leads_nowhere_is_one_line_of_the_command_line_too(own: PgCluster, way: str, command: str) -> None:
    hole, close = blackhole()
    dsn, said = wrong_ways(own.port, hole)[way]
    try:
        result = CliRunner().invoke(main, [command, "--store", dsn])
    finally:
        close()
    assert result.exit_code in (2, 5), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    if command == "migrate":
        lines = [line for line in result.output.splitlines() if line.strip()]
        assert re.search(said, lines[-1])


def test_a_server_that_takes_no_connection_is_given_up_after_3_seconds() -> None:
    assert server.CONNECT_SECONDS == 3.0


NO_DRIVER = """
import sys
sys.modules["asyncpg"] = None
from jobs_async.cli.main import main
main(["migrate", "--store", "postgresql://ada:{secret}@localhost/shop"])
"""
IMPORTED = 'import sys; sys.modules["asyncpg"] = None; import jobs_async.stores.postgres'


@pytest.mark.parametrize(
    ("code", "status", "said"), [(NO_DRIVER, 2, "asyncpg"), (IMPORTED, 1, "asyncpg: install jobs-async[postgres]")]
)
def test_without_the_driver_it_is_said_what_to_install(code: str, status: int, said: str) -> None:
    command = [sys.executable, "-c", code.replace("{secret}", SECRET)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ran.returncode == status, ran.stderr
    assert said in ran.stderr.strip().splitlines()[-1]
    assert SECRET not in ran.stderr


async def test_a_password_with_signs_of_its_own_can_be_given(own: PgCluster) -> None:
    word = "p@ss/w:rd?%"
    await script(own.dsn(), f"ALTER ROLE ada PASSWORD '{word}'")
    try:
        dsn = f"postgresql://ada:{quote(word, safe='')}@127.0.0.1:{own.port}/postgres"
        assert await PostgresStore(dsn).schema_version() == (0, migrations.NEWEST)
    finally:
        await script(own.dsn(), f"ALTER ROLE ada PASSWORD '{SECRET}'")


async def test_a_transaction_goes_on_where_a_migration_has_outdated_what_its_connection_had_prepared(
    pg_dsn: str,
) -> None:
    async with PostgresStore(pg_dsn, pool_size=1) as store:
        await store.insert([NewJob("work", "{}", unique_key="before")])
        await ask(pg_dsn, "ALTER TABLE jobs_async_jobs ALTER max_attempts TYPE bigint")
        (job,) = await store.insert([NewJob("work", "{}", unique_key="after")])
    assert await ask(pg_dsn, "SELECT id FROM jobs_async_jobs WHERE unique_key = 'after'") == [(job.id,)]
