"""The demo as its users meet it: a process that is started, killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs_async import __version__
from jobs_async.cli.main import main
from jobs_async.stores.sqlite import SqliteStore

GUARD = 60.0
FILES = 150
COUNTED = ("folder", "files", "failed", "lines", "functions", "classes", "failures")

Process = subprocess.Popen[str]
started: list[Process] = []


@pytest.fixture(autouse=True)
def leave_none_behind():
    """A test that fails half way leaves a process; no later test is to meet it."""
    yield
    while started:
        with started.pop() as process:
            process.kill()


def command(folder: Path, database: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobs_async", "demo", str(folder), "--database", str(database), *options]


def start(folder: Path, database: Path, *options: str) -> Process:
    asked = command(folder, database, "--json", *options)
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    return process


def finish(process: Process) -> tuple[dict[str, Any], str]:
    """The summary, and what was said on the way."""
    with process:
        out, err = process.communicate(timeout=GUARD)
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out)
    return summary, err


def stop(process: Process, number: signal.Signals) -> str:
    """Send a signal and see the process end; what it had said."""
    with process:
        process.send_signal(number)
        _, err = process.communicate(timeout=GUARD)
    return err


def ask(database: Path, sql: str) -> int:
    """A number out of a database that may not be there yet."""
    if not database.exists():
        return 0
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute(sql).fetchone()[0] or 0)
        except sqlite3.OperationalError:  # no schema yet
            return 0


def claims(database: Path) -> int:
    """How often jobs were started so far: the clock of a run, which no kill sets back."""
    return ask(database, "SELECT sum(claim) FROM jobs_async_jobs WHERE queue = 'demo'")


def reached(process: Process, fact: Callable[[], bool]) -> bool:
    """Wait for a fact in the database; False where the process ended before."""
    deadline = time.monotonic() + GUARD
    while not fact():
        assert time.monotonic() < deadline, "it never came to that"
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def counted(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in COUNTED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real modules, the smaller ones of the standard library, and a few that no Python parses."""
    folder = tmp_path_factory.mktemp("source")
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: path.stat().st_size)
    for path in modules[:FILES]:
        shutil.copy(path, folder)
    package = folder / "package"
    package.mkdir()
    (package / "unclosed.py").write_text("x = (\n")
    (package / "unclosed_too.py").write_text("\n\ny = (1,\n")
    (package / "codec.py").write_text("# -*- coding: nonsense -*-\n")
    (package / "escapes.py").write_text("text = '\\d'\n")  # warns, which is nobody's business
    (folder / os.fsdecode(b"odd-\xff\x1b[31m.py")).write_text("def f(): pass\n")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run that nobody killed, in a database that held a job of somebody else."""
    database = tmp_path_factory.mktemp("undisturbed") / "jobs.db"

    async def prepare() -> None:
        async with SqliteStore(database) as store:
            await store.enqueue("somebody_elses")

    asyncio.run(prepare())
    summary, err = finish(start(folder, database))
    assert err.startswith(f"indexing {folder}\n")
    assert "Warning" not in err
    assert "Traceback" not in err
    return summary, database


def test_every_file_is_one_job_and_is_counted(undisturbed: tuple[dict[str, Any], Path], folder: Path) -> None:
    summary, database = undisturbed
    assert summary["files"] == ask(database, "SELECT count(*) FROM jobs_async_jobs WHERE queue = 'demo'")
    assert summary["files"] == len(list(folder.rglob("*.py"))) + 3
    assert summary["failed"] == sum(summary["failures"].values()) == 6
    assert summary["failures"]["SyntaxError: '(' was never closed"] == 2
    assert summary["jobs"] == summary["files"]
    assert summary["lines"] > summary["functions"] > summary["classes"] > 0
    assert 0 < summary["wait_p50"] <= summary["wait_p95"] < summary["seconds"]
    assert summary["slowest"][0]["cpu_seconds"] >= summary["slowest"][-1]["cpu_seconds"] > 0
    spent = "SELECT count(*) FROM jobs_async_jobs WHERE state = 4 AND attempt = 3 AND json_array_length(errors) = 3"
    assert ask(database, spent) == 6


def test_a_finished_run_is_followed_by_a_fresh_one_and_a_pipe_gets_plain_text(
    undisturbed: tuple[dict[str, Any], Path], folder: Path
) -> None:
    before, database = undisturbed
    last = ask(database, "SELECT max(id) FROM jobs_async_jobs")
    asked = command(folder, database)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=GUARD, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == f"indexing {folder}"
    for name in ("files", "lines", "functions", "classes", "failed"):
        assert f"{name:<12}{before[name]:>12,}" in lines
    for reason, count in before["failures"].items():
        assert f"{count:>8}  {reason}" in lines
    assert lines[-1].startswith(f"{before['files']} jobs in ")
    assert ask(database, "SELECT min(id) FROM jobs_async_jobs WHERE queue = 'demo'") > last
    assert ask(database, "SELECT count(*) FROM jobs_async_jobs WHERE worker = 'somebody_elses'") == 1


def test_killed_again_and_again_it_comes_to_the_same_end(
    undisturbed: tuple[dict[str, Any], Path], folder: Path, tmp_path: Path
) -> None:
    database = tmp_path / "jobs.db"
    moments = [0, *sorted(random.Random(7).sample(range(1, FILES), 5))]  # the first is before files are enqueued

    def has_come(moment: int) -> bool:
        return ask(database, "SELECT count(*) FROM jobs_async_jobs") > 0 and claims(database) >= moment

    for moment in moments:
        process = start(folder, database)
        assert reached(process, partial(has_come, moment))
        stop(process, signal.SIGKILL)
    summary, err = finish(start(folder, database))
    assert err.startswith("going on with ")
    assert summary["resumed"]
    assert counted(summary) == counted(undisturbed[0])


def test_a_kill_costs_no_file_its_last_attempt(
    undisturbed: tuple[dict[str, Any], Path], folder: Path, tmp_path: Path
) -> None:
    database = tmp_path / "jobs.db"
    process = start(folder, database)
    assert reached(process, lambda: claims(database) >= 30)
    stop(process, signal.SIGKILL)
    with closing(sqlite3.connect(database)) as connection, connection:
        # as if kills had met each of these in its last attempt, and that one even its often rescued reporter
        connection.execute(
            "UPDATE jobs_async_jobs SET state = 1, attempt = 3, rescues = 2, claim = claim + 1, node = 'killed' "
            "WHERE state IN (0, 3) AND (args LIKE '%broken_%' OR args LIKE '%package%' OR id % 10 = 0)"
        )
        connection.execute("UPDATE jobs_async_jobs SET state = 1, rescues = 5, node = 'killed' WHERE queue <> 'demo'")
    summary, _ = finish(start(folder, database))
    assert counted(summary) == counted(undisturbed[0])


def test_interrupted_it_stops_in_order_and_goes_on_next_time(
    undisturbed: tuple[dict[str, Any], Path], folder: Path, tmp_path: Path
) -> None:
    database = tmp_path / "jobs.db"
    process = start(folder, database)
    assert reached(process, lambda: claims(database) >= 40)
    err = stop(process, signal.SIGINT)
    assert process.returncode == 130
    assert err.endswith("interrupted; the same command goes on where this one stopped\n")
    assert "Traceback" not in err
    assert ask(database, "SELECT count(*) FROM jobs_async_jobs WHERE state = 1") == 0
    summary, err = finish(start(folder, database))
    assert err.startswith("going on with ")
    assert summary["jobs"] < summary["files"]
    assert counted(summary) == counted(undisturbed[0])


def test_another_folder_or_the_wish_to_begins_afresh(folder: Path, tmp_path: Path) -> None:
    database, small = tmp_path / "jobs.db", tmp_path / "small"
    small.mkdir()
    (small / "one.py").write_text("class One: pass\n")
    process = start(folder, database)
    assert reached(process, lambda: claims(database) >= 20)
    stop(process, signal.SIGKILL)
    process = start(small, database)
    indexed = "SELECT count(*) FROM jobs_async_jobs WHERE args LIKE '%/one.py%' AND state = 2"
    assert reached(process, lambda: ask(database, indexed) == 1)
    assert stop(process, signal.SIGKILL).startswith(f"drops an unfinished run over {folder}\nindexing {small}\n")
    summary, err = finish(start(small, database, "--fresh"))
    assert err.startswith("indexing ")
    assert not summary["resumed"]
    assert (summary["jobs"], summary["files"], summary["lines"], summary["classes"]) == (4, 4, 1, 1)


def test_a_terminal_gets_a_bar_and_a_summary(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def f(): pass\n")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(
        command(tmp_path, tmp_path / "jobs.db"), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := read(ours):
                shown += chunk
            assert process.wait(timeout=GUARD) == 0
        finally:
            process.kill()
            os.close(ours)
    assert b"\x1b[?25l" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is still hidden"
    assert "━".encode() in shown
    assert b"SyntaxError: invalid syntax" in shown
    assert b"4 jobs in " in shown


def read(terminal: int) -> bytes:
    if not select.select([terminal], [], [], GUARD)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side was closed
        return b""


@pytest.mark.parametrize("name", ["nowhere", "file.py", "sub\x1b[31m"])
def test_a_folder_that_is_none_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text("")
    result = CliRunner().invoke(main, ["demo", str(tmp_path / name), "--database", str(tmp_path / "jobs.db")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot read folder ")
    assert result.output.count("\n") == 1
    assert "\x1b" not in result.output
    assert not (tmp_path / "jobs.db").exists()


def test_a_database_that_is_none_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_text("no database " * 100)
    for name in ("jobs.db", "nowhere/jobs.db", ""):
        result = CliRunner().invoke(main, ["demo", str(tmp_path), "--database", name and str(tmp_path / name)])
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1


def test_help_and_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"jobs-async {__version__}\n"
    for arguments in (["--help"], ["-h"], []):
        assert "demo" in CliRunner().invoke(main, arguments).output
    text = CliRunner().invoke(main, ["demo", "--help"]).output
    for option in ("[FOLDER]", "--database", "--concurrency", "--fresh", "--json"):
        assert option in text
