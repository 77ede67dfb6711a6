"""What the tests of the SQLite store share: guards, foreign locks, programs, and looks at the file from outside."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from jobs_async.core.job import Job
from jobs_async.core.lifecycle import Transition, decide
from jobs_async.core.options import NewJob
from jobs_async.core.outcome import Completed

T = TypeVar("T")

PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 30.0
"""Seconds after which a fact that does not come is a failure."""


def new(worker: str = "work", args_json: str = "{}", **options: Any) -> NewJob:
    return NewJob(worker, args_json, **options)


def done(job: Job[Any]) -> Transition:
    return decide(job, Completed('"done"'))


async def until(fact: Callable[[], Awaitable[T]], seconds: float = PATIENCE) -> T:
    """The first true answer to a question that is asked again and again."""
    async with asyncio.timeout(seconds):
        while True:
            if answer := await fact():
                return answer
            await asyncio.sleep(0.005)


# --- the file, seen from outside ---


def ask(path: Path, sql: str, *params: Any) -> list[Any]:
    """The answer of a connection that has nothing to do with the library."""
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
        return connection.execute(sql, params).fetchall()


def change(path: Path, sql: str, *params: Any) -> None:
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection, connection:
        connection.execute(sql, params)


def can_be_written_at_once(path: Path) -> bool:
    """Whether a stranger gets the write lock without waiting."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


class Holder:
    """An application that holds a write transaction in a thread of its own until it is told to commit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held, self._release = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._hold, name="holder", daemon=True)

    def _hold(self) -> None:
        try:
            with closing(sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY)")
                connection.execute("INSERT INTO orders DEFAULT VALUES")
                self._held.set()
                self._release.wait(PATIENCE)
                connection.execute("COMMIT")
        except BaseException as error:
            self._error = error
        finally:
            self._held.set()

    @property
    def holds(self) -> bool:
        return self._thread.is_alive() and not self._release.is_set()

    def let_go(self) -> None:
        self._release.set()
        self._thread.join(PATIENCE)
        assert self._error is None, self._error

    def __enter__(self) -> Holder:
        self._thread.start()
        assert self._held.wait(PATIENCE)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.let_go()


# --- what a process holds ---


def threads() -> set[threading.Thread]:
    """The live threads, without the one watcher that all stores of a process share."""
    return {thread for thread in threading.enumerate() if thread.name != "jobs_async exit"}


def open_files(path: Path) -> list[str]:
    """The descriptors of this process that lead to a database or to what belongs to it."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(str(path)):
            found.append(target)
    return found


# --- programs ---


def start(program: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """A program of this folder in a process of its own."""
    command = [sys.executable, "-W", "error", str(PROGRAMS / f"{program}.py"), *map(str, args)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, **pipes)


@contextmanager
def running(program: str, *args: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """As `start`, and gone at the end whatever happens."""
    process = start(program, *args, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def output(process: subprocess.Popen[str], seconds: float = 60.0) -> str:
    """What a program printed, once it has ended well."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out
