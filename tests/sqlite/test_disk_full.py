"""A disk that is full for a while: nothing crashes, nothing accepted is lost, and work goes on when there is room."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs_async import Job, JobStarted, JobState, MemoryStore, StoreError, StoreFailing, StoreRecovered
from jobs_async.core.lifecycle import Transition
from jobs_async.core.options import NewJob
from jobs_async.core.store import Beat, Fetched, Node
from tests.conftest import Measured
from tests.embedded.support import Program, program
from tests.runtime.support import World, now, virtual
from tests.sqlite.support import PROGRAMS, ask

RESUMES_WITHIN = 5.0


@contextmanager
def working(path: Path) -> Iterator[Program]:
    """The program in full swing."""
    with program("-W", "error", PROGRAMS / "full_disk.py", path) as one:
        one.says("^ran", 5)
        one.says("^read$", 5)
        yield one


def numbers(worker: Program, word: str) -> Counter[int]:
    return Counter(int(words[0]) for words in worker.words(word))


def assert_that_it_bears_a_full_disk(worker: Program, full_for: float) -> None:
    """What holds in the full phase, which has begun."""
    worker.says("^refused", 20)
    for verb in ("edit", "cancel", "delete", "pause", "scale", "open"):
        worker.says(f"^failed {verb} ", 1)
    reads = len(worker.words("read"))
    worker.says("^read$", reads + 5)
    worker.says("^event store_failing")
    time.sleep(full_for)


def assert_that_it_recovered(worker: Program, path: Path) -> None:
    """What holds in the end, when there has been room again for a while."""
    worker.tell("go")
    worker.says("^event store_recovered")
    assert worker.end() == 0, worker.text
    stored, refused, ran = (numbers(worker, word) for word in ("stored", "refused", "ran"))
    assert ran == stored, "each job that was accepted ran once, and no other"
    assert not stored & refused
    assert not worker.words("unread")
    errors = {words[-1] for word in ("refused", "failed") for words in worker.words(word)}
    assert errors == {"StoreError"}, "what a user meets is typed"
    events = Counter(event for (event,) in worker.words("event"))
    assert events == {"store_failing": 1, "store_recovered": 1}, "told once, and nothing was taken from this node"
    assert "never retrieved" not in worker.text
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    rows = ask(path, "SELECT args, state, attempt, rescues FROM jobs_async_jobs")
    assert Counter(json.loads(args) for args, *_ in rows) == stored, "and no refused one is found"
    assert {tuple(rest) for _, *rest in rows} == {(int(JobState.completed), 1, 0)}


def test_f7_row_74_a_process_whose_writes_fail_for_a_while_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    """Without a disk of our own: a limit on the size of files makes each of its writes fail, until it is lifted."""
    path = tmp_path / "jobs.db"
    with working(path) as worker:
        worker.tell("full")
        worker.says("^full$")
        ran = len(worker.words("ran"))
        worker.tell("try")
        assert_that_it_bears_a_full_disk(worker, full_for=0)
        assert len(worker.words("ran")) <= ran + 10, "claiming did not stop"
        ran = len(worker.words("ran"))
        worker.tell("go")
        worker.says("^ran", ran + 3)
        worker.says("^refused", len(worker.words("refused")) + 10)  # their settlements were refused meanwhile, too
        worker.tell("free")
        worker.says("^free$")
        resumes(worker)
        assert_that_it_recovered(worker, path)


def resumes(worker: Program) -> float:
    """Claims come back in time, and enqueues; how long the claims took."""
    began, stored, ran = time.monotonic(), len(worker.words("stored")), len(worker.words("ran"))
    worker.says("^ran", ran + 1)
    took = time.monotonic() - began
    assert took <= RESUMES_WITHIN
    worker.says("^stored", stored + 1)
    return took


class FullStore(MemoryStore):
    """What a full disk is to the runtime: reads are answered, each write is refused."""

    full = False

    def _write(self) -> None:
        if self.full:
            raise StoreError("database or disk is full")

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        self._write()
        return await super().fetch(queue, limit, node=node)

    async def apply(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        self._write()
        return await super().apply(steps)

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        self._write()
        return await super().beat(node, ttl, join=join)


@pytest.mark.parametrize(
    ("seconds", "limit"), [(2, RESUMES_WITHIN), (13, RESUMES_WITHIN), (26, RESUMES_WITHIN), (1000, 2 * RESUMES_WITHIN)]
)
def test_f7_claims_resume_soon_after_the_store_however_long_it_refused_to_write(seconds: float, limit: float) -> None:
    """Beyond its lease a node has to join again first, which takes until its next heartbeat."""

    @virtual
    async def scenario(world: World) -> None:
        store = FullStore(clock=world.clock)
        async with world.supervisor(store) as jobs:

            @jobs.worker
            async def work() -> None: ...

            await jobs.wait(await work.enqueue())
            store.full = True
            (waiting,) = await store.insert([NewJob("work", "{}")])  # by somebody else: it wakes nobody here
            await asyncio.sleep(seconds)
            assert len(world.seen.of(JobStarted)) == 1
            store.full = False
            began = now()
            await world.seen.wait(JobStarted, waiting)
            assert now() - began <= limit
            assert (await jobs.wait(waiting)).state is JobState.completed
            await world.seen.wait(StoreRecovered)
            assert len(world.seen.of(StoreFailing)) == len(world.seen.of(StoreRecovered)) == 1

    scenario()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory that is mounted for this test alone."""
    assert os.geteuid() == 0, "this test mounts a file system: run it as root (`sudo make soak`)"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def blow_up(balloon: Path) -> None:
    """Take all the room there is, down to the last byte."""
    with balloon.open("ab", buffering=0) as file:
        for block in (65_536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * block)
            except OSError:
                continue


@pytest.mark.soak
def test_f7_row_74_a_full_disk_stops_claiming_and_enqueueing_until_there_is_room_again(
    tmp_path: Path, measured: Measured
) -> None:
    """16 MB, so that the log of SQLite, which grows to 4 MB, has its place."""
    full_for = 14
    with small_disk(tmp_path / "disk", "16m") as disk:
        path, balloon = disk / "jobs.db", disk / "balloon"
        with working(path) as worker:
            blow_up(balloon)
            worker.says("^refused")
            worker.tell("try")
            assert_that_it_bears_a_full_disk(worker, full_for)
            balloon.unlink()
            after = resumes(worker)
            assert_that_it_recovered(worker, path)
            stored, refused = len(worker.words("stored")), len(worker.words("refused"))
    measured("F7", f"disk of 16 MB full for {full_for} s", f"claims back after {after:.1f} s")
    measured("F7", f"{stored:,} jobs accepted, {refused:,} refused", "lost 0, found though refused 0, run twice 0")
