"""What the store of a real server finds out about it: each finding where it is due, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from jobs_async import Finding
from jobs_async.cli.main import main
from jobs_async.clock import SystemClock
from jobs_async.core.options import NewJob
from jobs_async.stores.postgres import PostgresStore, diagnosis, dialect, listener
from jobs_async.stores.postgres.migrations import NEWEST
from tests.cluster import PgCluster, PgServer
from tests.postgres.fleet import FAST, GRANTS, supervisor, with_role
from tests.postgres.proxy import Proxy
from tests.postgres.support import ask, connected, until

OURS = f"this one knows {NEWEST}"


@pytest.fixture(scope="module")
def own() -> Iterator[PgCluster]:
    """A server with few connections and all that can hold back a vacuum."""
    settings = {"max_connections": 20, "max_prepared_transactions": 4, "wal_level": "logical", "autovacuum": "off"}
    with PgCluster.start(settings=settings) as server:
        yield server


async def found(store: PostgresStore) -> dict[str, Finding]:
    every = await store.diagnose()
    assert all(one.text and "\n" not in one.text + one.advice for one in every)
    assert all(one.advice for one in every)
    assert not any("postgresql://" in one.text + one.advice for one in every)
    return {one.code: one for one in every}


async def test_where_all_is_well_there_is_nothing_to_find(pg_dsn: str) -> None:
    async with PostgresStore(pg_dsn) as store:
        assert await found(store) == {}
        listening = store.wakes(lambda _: None)
        assert await found(store) == {}
        listening()


async def test_a_schema_that_does_not_fit(pg_dsn: str) -> None:
    async with PostgresStore(pg_dsn) as store:
        await ask(pg_dsn, "INSERT INTO jobs_async_migrations VALUES (8, 1)")
        assert (await found(store))["postgres-schema-newer"].level == "info"
        await ask(pg_dsn, "INSERT INTO jobs_async_migrations VALUES (9, 9)")
        newer = (await found(store))["postgres-schema-newer"]
        assert (newer.level, newer.text) == (
            "error",
            "the schema needs a jobs_async that knows version 9, this one knows 1",
        )
        await ask(pg_dsn, "DELETE FROM jobs_async_migrations")
        assert (await found(store))["postgres-schema-behind"].level == "error"


async def test_how_others_are_heard(pg_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with PostgresStore(pg_dsn, listen=False) as store:
        assert {code: one.level for code, one in (await found(store)).items()} == {"postgres-hints-off": "info"}
    async with PostgresStore(pg_dsn, pooler=True) as store:
        assert {code: one.level for code, one in (await found(store)).items()} == {"postgres-pooler": "info"}
    monkeypatch.setattr("jobs_async.stores.postgres.store.HEARING_SECONDS", 0.5)
    async with Proxy(pg_dsn) as proxy, PostgresStore(proxy.dsn) as store:
        listening = store.wakes(lambda _: None)
        assert await found(store) == {}
        monkeypatch.setattr(listener, "ECHO_SECONDS", 0.2)
        monkeypatch.setattr(listener, "ECHO_EVERY", 0.1)
        listening()
    async with Proxy(pg_dsn) as proxy, PostgresStore(proxy.dsn) as store:
        proxy.chunk = 1_000_000
        swallowing = asyncio.create_task(swallow(proxy))
        assert (await found(store))["postgres-deaf"].level == "warning"
        swallowing.cancel()


async def swallow(proxy: Proxy) -> None:
    """Whoever listens is told nothing, from its first word on."""
    while True:
        proxy.swallow(b"LISTEN")
        await asyncio.sleep(0)


async def test_a_server_that_only_reads(pg_cluster: PgServer, pg_dsn: str) -> None:
    await PostgresStore(pg_dsn).migrate()
    await ask(pg_cluster.dsn(), f'ALTER DATABASE "{urlsplit(pg_dsn).path[1:]}" SET default_transaction_read_only = on')
    async with PostgresStore(pg_dsn) as store:
        assert (await found(store))["postgres-standby"].level == "error"


async def test_an_old_transaction(pg_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with PostgresStore(pg_dsn) as store, connected(pg_dsn) as connection:
        async with connection.transaction(isolation="repeatable_read"):
            pid = await connection.fetchval("SELECT pg_backend_pid() FROM pg_class LIMIT 1")
            assert await found(store) == {}, "it is young"
            monkeypatch.setattr(diagnosis, "OLD_TRANSACTION", 0.0)
            old = (await found(store))["postgres-old-transaction"]
            assert f"process {pid} " in old.text
            assert str(pid) in old.advice
        assert await found(store) == {}


async def test_what_waits_for_a_second_phase_or_a_slow_reader(own: PgCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with own.database() as dsn:
        async with PostgresStore(dsn) as store, connected(dsn) as connection:
            await connection.execute("SELECT pg_create_logical_replication_slot('stuck', 'pgoutput')")
            await connection.execute("BEGIN; CREATE TABLE mine (); PREPARE TRANSACTION 'mine'")
            assert await found(store) == {}
            monkeypatch.setattr(diagnosis, "OLD_TRANSACTION", 0.0)
            monkeypatch.setattr(diagnosis, "MANY_TRANSACTIONS", 0)
            await ask(dsn, "SELECT pg_current_xact_id()")
            codes = await found(store)
            assert {"postgres-prepared-transaction", "postgres-slot"} <= codes.keys()
            assert "'stuck'" in codes["postgres-slot"].text
            await connection.execute("ROLLBACK PREPARED 'mine'")
            await connection.execute("SELECT pg_drop_replication_slot('stuck')")
            assert await found(store) == {}


async def test_more_dead_rows_than_live_ones(own: PgCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MANY_DEAD", 10)
    with own.database() as dsn:
        async with PostgresStore(dsn, schema="a'b") as store:
            jobs = await store.insert([NewJob("work", "{}")] * 50)
            await store.delete([job.id for job in jobs])
            monkeypatch.setattr(diagnosis, "OLD_VACUUM", 0.0)
            told = await until(lambda: dead_rows(store))
            assert told is not None
            assert told.text.startswith("the jobs table has 50 dead rows beside 0 live ones, and it was never vacuumed")
            await ask(dsn, """VACUUM "a'b".jobs_async_jobs""")
            await until(lambda: no_dead_rows(store))


async def dead_rows(store: PostgresStore) -> Finding | None:
    return (await found(store)).get("postgres-dead-rows")


async def no_dead_rows(store: PostgresStore) -> bool:
    return await dead_rows(store) is None


async def test_nearly_all_connections(own: PgCluster) -> None:
    with own.database() as dsn:
        async with PostgresStore(dsn) as store, AsyncExitStack() as crowd:
            assert await found(store) == {}
            for _ in range(14):
                await crowd.enter_async_context(connected(dsn))
            told = (await found(store))["postgres-connections"]
            assert told.text.endswith("of the server's 17 connections are in use: new nodes may be refused")


@pytest.mark.parametrize(("hours", "way"), [(3, "3 h ahead of"), (-3, "3 h behind")])
async def test_a_clock_that_is_wrong(pg_dsn: str, monkeypatch: pytest.MonkeyPatch, hours: int, way: str) -> None:
    right = SystemClock.now

    def wrong(self: SystemClock) -> datetime:
        return right(self) + timedelta(hours=hours)

    async with PostgresStore(pg_dsn) as store:
        assert await found(store) == {}
        monkeypatch.setattr(SystemClock, "now", wrong)
        assert (await found(store))["clock-skew"].text == f"this machine's clock is {way} the server's"


async def test_a_role_that_may_see_little_finds_less_and_fails_nowhere(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for statement in diagnosis.QUESTIONS:
        monkeypatch.setitem(dialect.SQL, statement, "SELECT rolpassword, 1, 1 FROM pg_authid")
    await PostgresStore(pg_dsn, schema="jobs").migrate()
    async with with_role(pg_dsn, GRANTS) as poor:
        async with PostgresStore(poor, schema="jobs", listen=False) as store:
            assert {*await found(store)} == {"postgres-hints-off"}
        async with PostgresStore(poor, schema="jobs", pooler=True) as store:
            assert {*await found(store)} == {"postgres-pooler"}


async def test_the_doctor_tells_of_it(pg_dsn: str) -> None:
    async with supervisor(pg_dsn) as jobs:
        assert {one.code for one in await jobs.diagnose()} == {"jobs-flow"}
    await ask(pg_dsn, "INSERT INTO jobs_async_migrations VALUES (8, 1)")
    async with supervisor(pg_dsn, **FAST) as jobs:
        assert "postgres-schema-newer" in {one.code for one in await jobs.diagnose()}
        result = await asyncio.to_thread(CliRunner().invoke, main, ["doctor", "--store", pg_dsn])
        assert "Traceback" not in result.output


@pytest.mark.soak
async def test_a_diagnosis_of_a_frozen_server_ends() -> None:
    with PgCluster.start() as server:
        async with PostgresStore(server.create_database()) as store:
            assert await found(store) == {}
            server.freeze()
            try:
                with pytest.raises(Exception, match="did not answer"):
                    async with asyncio.timeout(60):
                        await store.diagnose()
            finally:
                server.thaw()
