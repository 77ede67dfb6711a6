"""Through a transaction pooler: nothing is kept in a session, and all works as it does without."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from jobs_async import ConstantBackoff, Job, JobContext, JobQuery, JobState, Snooze, StoreError, Supervisor, worker
from jobs_async.core.query import MAX_PAGE
from jobs_async.stores.postgres import PostgresStore
from tests.cluster import PgCluster
from tests.postgres.fleet import FAST, supervisor
from tests.postgres.support import ask, connected, until

WAIT = 60.0
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"


@worker
async def work(n: int = 0) -> int:
    return n


snoozed: list[int] = []


@worker(retry_strategy=ConstantBackoff(0.05), context=True)
async def moody(ctx: JobContext) -> int:
    """Fails, is put off, and comes to its end."""
    if not ctx.job.errors:
        raise ConnectionError
    if not snoozed:
        snoozed.append(ctx.attempt)
        await ctx.progress(0.5)
        raise Snooze(0.05)
    return ctx.attempt


@worker(context=True, timeout_seconds=None)
async def linger(ctx: JobContext) -> str:
    await ctx.cancelled.wait()
    return "told"


@worker
async def block() -> None:
    """Longer than some heartbeats: the lease is kept from a thread."""
    time.sleep(0.8)


async def life(jobs: Supervisor, dsn: str) -> None:
    """Whatever a node does on a store, once."""
    jobs.register_cron("entry", "* * * * *", "work", {"n": 1})
    store = jobs.store
    assert isinstance(store, PostgresStore)
    snoozed.clear()
    async with jobs:
        many = await jobs.enqueue_many([work.draft(n) for n in range(60)])
        keyed = [await jobs.enqueue("work", {"n": n}, unique_key=f"k{n % 2}") for n in range(4)]
        same = [await jobs.enqueue("work", {"n": 9}, idempotency_key="once") for _ in range(2)]
        assert same[0].id == same[1].id
        tried = await jobs.enqueue("moody")
        assert [await jobs.result(job, timeout=WAIT) for job in many] == list(range(60))
        for job in [*keyed, *same, await jobs.enqueue("work", delay=0.1)]:
            await jobs.wait(job, timeout=WAIT)
        assert (await jobs.wait(tried, timeout=WAIT)).state is JobState.completed
        cut = await jobs.enqueue("linger")
        await until(lambda: runs(jobs, cut))
        await jobs.cancel(cut.id)
        assert (await jobs.wait(cut, timeout=WAIT)).result == "told"
        await jobs.pause_queue("default")
        await jobs.resume_queue("default")
        await jobs.scale_queue("default", 3)
        await jobs.wait(await jobs.enqueue("block"), timeout=WAIT)
        assert (await jobs.nodes())[0].alive
        async with connected(dsn, statement_cache_size=0) as connection, connection.transaction():
            within = await jobs.enqueue("work", {"n": 5}, connection=connection)
        assert await jobs.result(within, timeout=WAIT) == 5
        assert await jobs.counts()
        assert await jobs.diagnose()
        await store.delete_completed(0)


async def runs(jobs: Supervisor, job: Job[Any]) -> bool:
    return (await jobs.get(job.id)).state is JobState.executing


# ------------------------------------------------------------------------------------------- what the server hears


async def test_nothing_is_said_that_a_pooler_could_not_pass_on(tmp_path: Path) -> None:
    """As the server itself has it: no setting of a session, no LISTEN, no lock and no statement that outlives its
    transaction."""
    settings = {"log_statement": "all", "log_line_prefix": "<%c> "}
    with PgCluster.start(settings=settings) as server:
        dsn = server.create_database()
        await PostgresStore(dsn).migrate()
        mark = len(server.log)
        await life(supervisor(dsn, work, moody, linger, block, store=PostgresStore(dsn, pooler=True)), dsn)
        said = server.log[mark:]
    assert "INSERT INTO" in said
    assert "SET LOCAL statement_timeout" in said
    statements = [line for line in said.splitlines() if "statement:" in line or "execute " in line]
    for word in ("LISTEN", "UNLISTEN", "DECLARE", "PREPARE", "CREATE TEMP", "pg_advisory_lock", "SET SESSION"):
        assert not [line for line in statements if word in line], word
    settings_of_sessions = [line for line in statements if re.search(r"(?:statement: |; )(?:RE)?SET (?!LOCAL)", line)]
    assert settings_of_sessions == []
    named = [line for line in statements if "execute " in line and "execute <unnamed>" not in line]
    assert named == []


async def test_settings_are_those_of_a_transaction(pg_dsn: str) -> None:
    """A connection that goes back to the pooler is as it was."""
    made: list[asyncpg.Connection[Any]] = []

    async def connect() -> asyncpg.Connection[Any]:
        made.append(await asyncpg.connect(pg_dsn, statement_cache_size=0))
        return made[-1]

    name = "SELECT name, setting FROM pg_settings WHERE setting <> reset_val AND name <> ALL($1)"
    async with connected(pg_dsn, statement_cache_size=0) as stranger:
        usual = await stranger.fetch(name, ["application_name"])
    async with PostgresStore(connect=connect, pooler=True) as store:
        async with supervisor(pg_dsn, work, store=store) as jobs:
            await jobs.result(await jobs.enqueue("work"), timeout=WAIT)
            await jobs.enqueue("work", unique_key="k")
            await jobs.pause_queue("elsewhere")
        left = [connection for connection in made if not connection.is_closed()]  # and nobody uses them now
        assert len(left) >= 5
        for connection in left:
            assert await connection.fetchval("SELECT current_setting('jit')") == "on"
            assert await connection.fetch(name, ["application_name"]) == usual
            assert await connection.fetch("SELECT name FROM pg_prepared_statements") == []


# ------------------------------------------------------------------------------------------- a real one


@asynccontextmanager
async def pgbouncer(server: PgCluster, folder: Path, **settings: object) -> AsyncGenerator[str]:
    """The DSN of a database of this server through PgBouncer in transaction mode, with very few connections."""
    program = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")
    if program is None:
        pytest.fail("no pgbouncer: install it (Debian: apt-get install pgbouncer)", pytrace=False)
    dsn = server.create_database()
    database = urlsplit(dsn).path[1:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given: dict[str, object] = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": 3,
        "max_client_conn": 500,
        "unix_socket_dir": "",
        "logfile": folder / "log",
        **settings,
    }
    lines = [f"[databases]\n{database} = host=127.0.0.1 port={server.port} user=postgres", "[pgbouncer]"]
    (folder / "ini").write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in given.items()), ""]))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for path in (folder, folder / "ini"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        for parent in folder.parents:
            if parent.owner() == "root" and parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    running = subprocess.Popen([program, "-q", str(folder / "ini")], **user, stderr=subprocess.DEVNULL)
    pooled = f"postgresql://postgres@127.0.0.1:{port}/{database}"
    try:
        await until(lambda: answers(pooled))
        yield pooled
    finally:
        running.terminate()
        await asyncio.to_thread(running.wait, 30)


async def answers(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, statement_cache_size=0)
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


@pytest.fixture(scope="module")
def own() -> Iterator[PgCluster]:
    with PgCluster.start(settings={"max_connections": 30}) as server:
        yield server


@pytest.mark.soak
async def test_a_node_lives_its_life_through_pgbouncer(own: PgCluster, tmp_path: Path) -> None:
    async with pgbouncer(own, tmp_path) as dsn:
        store = PostgresStore(dsn, pooler=True)
        assert await store.migrate()
        await life(supervisor(dsn, work, moody, linger, block, store=store), dsn)


@pytest.mark.soak
async def test_ten_nodes_share_three_connections_and_run_every_job_once(
    own: PgCluster, tmp_path: Path, measured: Any
) -> None:
    count, ran = 3_000, list[int]()

    @worker
    async def once(n: int) -> None:
        ran.append(n)

    async with pgbouncer(own, tmp_path) as dsn:
        nodes = [
            supervisor(dsn, once, store=PostgresStore(dsn, pooler=True), **{**FAST, "lease": 10.0}) for _ in range(10)
        ]
        async with Supervisor(PostgresStore(dsn, pooler=True), queues={}) as other:
            await asyncio.gather(*(node.start() for node in nodes))
            for start in range(0, count, 100):
                await other.enqueue_many([once.draft(n) for n in range(start, start + 100)])
            await until(lambda: all_done(other), WAIT * 4)
            held = await ask(
                own.dsn(), "SELECT count(*) FROM pg_stat_activity WHERE datname = $1", urlsplit(dsn).path[1:]
            )
            reports = await asyncio.gather(*(node.stop() for node in nodes))
            jobs = await other.find(JobQuery(limit=MAX_PAGE))
    assert sorted(ran) == list(range(count))
    assert {job.attempt for job in jobs} == {1}
    assert all(report.is_clean for report in reports)
    assert held[0][0] <= 3
    measured("PgBouncer in transaction mode", f"10 nodes, 3 connections, {count:,} jobs", "each ran once")


async def all_done(jobs: Supervisor) -> bool:
    counts = await jobs.store.tally()
    return all(state is JobState.completed for _, state in counts)


@pytest.mark.soak
async def test_what_is_forgotten_to_be_said_of_a_pooler_is_found_out(own: PgCluster, tmp_path: Path) -> None:
    """Without pooler=True the settings of sessions leak, and hints are not heard: the diagnosis says so."""
    async with pgbouncer(own, tmp_path) as dsn:
        await PostgresStore(dsn, pooler=True).migrate()

        async def connect() -> asyncpg.Connection[Any]:
            return await asyncpg.connect(dsn, statement_cache_size=0)

        async with PostgresStore(connect=connect) as store:
            assert "postgres-deaf" in {one.code for one in await store.diagnose()}


@pytest.mark.soak
async def test_a_pooler_that_is_restarted_costs_nothing_but_time(own: PgCluster, tmp_path: Path) -> None:
    async with pgbouncer(own, tmp_path) as dsn:
        store = PostgresStore(dsn, pooler=True)
        await store.migrate()
        async with supervisor(dsn, work, store=store) as jobs:
            before = await jobs.enqueue("work", {"n": 1})
            assert await jobs.result(before, timeout=WAIT) == 1
            for _ in range(3):
                await ask(own.dsn(), END, urlsplit(dsn).path[1:])
                job_id = await until(lambda: stored(jobs))
                assert (await jobs.wait(job_id, timeout=WAIT)).result == 2


async def stored(jobs: Supervisor) -> int:
    try:
        return (await jobs.enqueue("work", {"n": 2})).id
    except StoreError:
        return 0
