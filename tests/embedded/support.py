"""What these tests share: processes whose output is waited for, and looks at the file they leave behind."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs_async import Draft, Job, JobOpts, JobState, SqliteStore, Supervisor
from jobs_async.clock import SystemClock
from tests.sqlite.support import ask, can_be_written_at_once

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds after which a fact that does not come is a failure."""


class Program:
    """A process that is talked to, and the lines it has said so far."""

    def __init__(self, *command: object, **environment: object) -> None:
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def says(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until so many lines match."""

        def found() -> list[re.Match[str]]:
            return [match for line in self._lines if (match := re.search(pattern, line))]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= count or not self._reader.is_alive(), PATIENCE)
            assert len(found()) >= count, f"{pattern!r} was not said {count} times:\n{self.text}"
            return found()[count - 1]

    def words(self, first: str) -> list[list[str]]:
        """What came after `first` in the lines that begin with it."""
        return [words[1:] for line in list(self._lines) if (words := line.split()) and words[0] == first]

    def tell(self, line: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for its end, having nothing more to tell it; its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.end()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def program(*command: object, **environment: object) -> Iterator[Program]:
    """A process that is gone at the end whatever happens."""
    one = Program(*command, **environment)
    try:
        yield one
    finally:
        one.kill()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is promised to take no longer than this."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took <= seconds, f"it took {took:.1f} s"


class File:
    """A file of jobs seen from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, *workers: str, **options: Any) -> list[int]:
        """Enqueue one job for each worker."""

        async def enqueue() -> list[int]:
            async with Supervisor(f"sqlite:///{self.path}", queues={}) as jobs:
                drafts = [Draft[Any](worker, None, JobOpts(**options)) for worker in workers]
                return [job.id for job in await jobs.enqueue_many(drafts)]

        return asyncio.run(enqueue())

    def job(self, job_id: int) -> Job[Any]:
        async def get() -> Job[Any]:
            async with SqliteStore(self.path) as store:
                return await store.get(job_id)

        return asyncio.run(get())

    def count(self, state: JobState) -> int:
        ((count,),) = ask(self.path, "SELECT count(*) FROM jobs_async_jobs WHERE state = ?", int(state))
        return int(count)

    def wait_for(self, state: JobState, count: int) -> None:
        """Until so many jobs are in a state."""
        give_up_at = time.monotonic() + PATIENCE
        while self.count(state) < count:
            assert time.monotonic() < give_up_at, f"{self.count(state)} of {count} jobs are {state.name}"
            time.sleep(0.01)

    def live_nodes(self) -> int:
        boot, uptime = SystemClock().uptime()
        rows = ask(self.path, "SELECT 1 FROM jobs_async_nodes WHERE boot = ? AND expires_at > ?", boot, uptime)
        return len(rows)

    def is_left_clean(self) -> None:
        """Nobody runs anything, no node claims to live, and a stranger may write at once."""
        assert self.count(JobState.executing) == 0
        assert self.live_nodes() == 0
        assert can_be_written_at_once(self.path)
        assert ask(self.path, "PRAGMA integrity_check") == [("ok",)]
