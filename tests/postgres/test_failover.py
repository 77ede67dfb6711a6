"""Several hosts in one dsn, and a server that answers but no longer takes a write."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from jobs_async.core.errors import StoreError
from jobs_async.stores.postgres import PostgresStore
from jobs_async.stores.postgres import server as dialing
from tests.cluster import PgCluster
from tests.postgres.support import ask, new, until


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[PgCluster, PgCluster]]:
    with PgCluster.start() as first, PgCluster.start() as second:
        yield first, second


def both(hosts: tuple[PgCluster, PgCluster], wanted: str) -> str:
    """The dsn of a database that both have under the same name, and that is no replica."""
    name = f"both_{wanted.replace('-', '_')}"
    for host in hosts:
        host.create_database(name)
    addresses = ",".join(f"127.0.0.1:{host.port}" for host in hosts)
    return f"postgresql://postgres@{addresses}/{name}?target_session_attrs={wanted}"


async def test_a_host_that_does_not_answer_leaves_time_for_the_next(hosts: tuple[PgCluster, PgCluster]) -> None:
    dsn = both(hosts, "primary")
    hosts[0].freeze()
    try:
        async with PostgresStore(dsn) as store:
            (job,) = await store.insert([new()])
    finally:
        hosts[0].thaw()
    assert await ask(hosts[1].dsn("both_primary"), "SELECT id FROM jobs_async_jobs") == [(job.id,)]


async def test_a_server_that_no_longer_takes_writes_is_left_for_one_that_does(
    hosts: tuple[PgCluster, PgCluster],
) -> None:
    dsn = both(hosts, "read-write")
    first, second = (host.dsn("both_read_write") for host in hosts)
    await PostgresStore(second).migrate()
    async with PostgresStore(dsn) as store:
        await store.insert([new()])
        await ask(first, "ALTER SYSTEM SET default_transaction_read_only = on")
        await ask(first, "SELECT pg_reload_conf()")

        async def arrives() -> bool:
            with suppress(StoreError):
                await store.insert([new()])
            return await ask(second, "SELECT count(*) FROM jobs_async_jobs") != [(0,)]

        await until(arrives)


@pytest.mark.parametrize(
    ("dsn", "each"),
    [
        ("postgresql://u:p%2C@a:1,b:2/d?x=y", ["postgresql://u:p%2C@a:1/d?x=y", "postgresql://u:p%2C@b:2/d?x=y"]),
        ("postgresql://u:p,w@a/d", ["postgresql://u:p,w@a/d"]),
        ("postgresql:///d?host=/run", ["postgresql:///d?host=/run"]),
        ("postgresql://[::1]:1,b/d", ["postgresql://[::1]:1/d", "postgresql://b/d"]),
        ("postgresql://[a/d", ["postgresql://[a/d"]),
    ],
)
def test_each_host_of_a_dsn_is_one_of_its_own(dsn: str, each: list[str]) -> None:
    assert dialing.one_by_one(dsn) == each


async def test_large_args_travel_in_statements_of_a_few_megabytes(pg_dsn: str) -> None:
    large = '"' + "x" * 1_000_000 + '"'
    async with PostgresStore(pg_dsn) as store:
        await asyncio.gather(*(store.insert([new(args_json=large)]) for _ in range(12)))
    shares = await ask(pg_dsn, "SELECT count(*) FROM jobs_async_jobs GROUP BY inserted_at")
    assert sum(count for (count,) in shares) == 12
    assert max(count for (count,) in shares) <= 5
