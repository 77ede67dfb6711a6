"""The processes of a scenario: forked from a program without threads, so that starting one costs next to nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

from jobs_async import Draft, Event, JobContext, StaleSettlement, Supervisor, Telemetry, WorkerDef
from tests.chaos.database import PATIENCE, Database, PostgresDatabase, SqliteFile
from tests.chaos.ledger import ALWAYS, History, Ledger, Mark, marks, now, violations
from tests.cluster import PgCluster

LEASE, HEARTBEAT, RESCUE_INTERVAL, POLL_INTERVAL = 2.0, 0.5, 0.5, 0.1

A_MOMENT = 3.0
"""Seconds that a thread has to end after the Supervisor that needed it."""

leftovers = logging.getLogger("chaos.leftovers")

Life = Callable[..., Coroutine[Any, Any, None]]


class Place:
    """The folder where a scenario happens: its ledger, its log and, unless a server has them, its jobs.

    All dice come from its seed.
    """

    def __init__(self, folder: Path, seed: int = 1, server: PgCluster | None = None) -> None:
        self.folder = folder
        self.seed = seed
        self.number = 0
        """Of the process: the scenario itself is 0, those it starts count from 1."""
        self.jobs = folder / "jobs.db"
        self.database: Database = SqliteFile(self.jobs) if server is None else PostgresDatabase(server)
        self.log = folder / "log"
        self.ledger = Ledger(folder / "ledger")
        self._enough = folder / "enough"

    def dice(self) -> Random:
        """This process's own."""
        return Random(f"{self.seed}.{self.number}")

    def supervisor(self, *workers: WorkerDef, limit: int = 8, **options: Any) -> Supervisor:
        """A Supervisor at the quick pace of the tests, which writes down the settlements it was refused."""

        async def tell(event: Event) -> None:
            if isinstance(event, StaleSettlement):
                self.ledger.mark("S", event.job)

        telemetry = Telemetry()
        telemetry.attach(tell)
        given: dict[str, Any] = {"lease": LEASE, "heartbeat": HEARTBEAT, "rescue_interval": RESCUE_INTERVAL}
        given |= {"queues": {"default": limit}, "poll_interval": POLL_INTERVAL, "rng": self.dice(), **options}
        return Supervisor(self.database.store(), workers=workers, telemetry=telemetry, **given)

    def worker(self, name: str, body: Callable[[Any], Coroutine[Any, Any, None]], **options: Any) -> WorkerDef:
        """A worker that writes down when it begins, and when it comes to its end or is broken off."""

        async def handle(args: Any, ctx: JobContext) -> None:
            self.ledger.mark("B", ctx.job)
            try:
                await body(args)
            except BaseException:
                self.ledger.mark("X", ctx.job)
                raise
            self.ledger.mark("E", ctx.job)

        return WorkerDef(name, handle, **options)

    @property
    def server(self) -> PgCluster:
        """That has the jobs, to be harmed."""
        assert isinstance(self.database, PostgresDatabase)
        return self.database.server

    @property
    def is_enough(self) -> bool:
        """Whether all are told to come to an end; by a file, for an Event could be held for ever by a dead process."""
        return self._enough.exists()

    def enough(self) -> None:
        self._enough.touch()

    # --- what can be seen from outside ---

    def ask(self, sql: str) -> list[Any]:
        """The answer of a connection that has nothing to do with the library."""
        return self.database.ask(sql)

    def count(self, where: str) -> int:
        [(number,)] = self.ask(f"SELECT count(*) FROM jobs_async_jobs WHERE {where}")
        return int(number)

    def is_done(self) -> bool:
        """Whether no job is live."""
        return not self.count("completed_at IS NULL")

    def history(self, lease: float = LEASE) -> History:
        """The ledger and the store, side by side."""
        history = History(lease)
        history.note(self.marks())
        history.look(self.database.snapshot())
        return history

    def marks(self, start: int = 0) -> Iterator[Mark]:
        """The lines of the ledger, from where it was so long."""
        with (self.folder / "ledger").open() as file:
            file.seek(start)
            return marks(file.read().splitlines())

    def check_now(self) -> list[str]:
        """What is wrong at this instant, with the database and with what is in it."""
        history = History(LEASE)
        history.look(self.database.snapshot())
        return violations(history, ALWAYS) + self.database.unsound()

    def left_behind(self) -> list[str]:
        """What processes that came to their end still had, and the server of them: I9."""
        held = sum(self.database.connections().values())
        left = [line["text"] for line in self.logged() if line["logger"] == leftovers.name]
        return [f"I9: {text}" for text in left + [f"{held} connections are left"] * bool(held)]

    def logged(self) -> list[dict[str, Any]]:
        """What all processes logged, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


class Fleet:
    """Starts processes, kills them, and leaves none behind."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._alive: list[BaseProcess] = []
        self.enqueue()

    def start(self, life: Life, *args: Any) -> BaseProcess:
        """A process that lives `life(place, *args)`."""
        self.place.number += 1
        process = multiprocessing.get_context("fork").Process(target=_live, args=(self.place, life, args))
        process.start()
        self._alive.append(process)
        return process

    def enqueue(self, *drafts: Draft[Any]) -> None:
        """All at once, from a process of its own."""
        producer = self.start(_enqueue, drafts)
        self.until("the jobs are accepted", lambda: not producer.is_alive())

    def kill(self, process: BaseProcess) -> None:
        """kill -9."""
        process.kill()
        self.bury(process)

    def bury(self, process: BaseProcess) -> None:
        """Take note of a process that was killed, or has killed itself."""
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL, _end_of(process)
        assert process.pid is not None
        self._alive.remove(process)
        self.place.ledger.killed(process.pid)

    def dismiss(self, process: BaseProcess) -> None:
        """Ask one to stop, and see it end well."""
        process.terminate()
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGTERM), _end_of(process)
        self._alive.remove(process)

    def until(self, what: str, fact: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait for a fact while nobody dies of a bug."""
        give_up_at = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            if fact():
                return
            took = time.monotonic() - began
            for process in self._alive:
                assert process.exitcode in (None, 0, -signal.SIGKILL), _end_of(process)
            if began > give_up_at:
                raise TimeoutError(f"after {seconds:g} seconds it is still not so that {what}")
            time.sleep(max(0.02, 3 * took))  # looking must not be most of what the machine does

    def stop(self) -> None:
        """Ask all to stop; each must end well, or before it began to listen."""
        for process in self._alive:
            process.terminate()
        for process in self._alive:
            process.join(PATIENCE)
            assert process.exitcode in (0, -signal.SIGTERM), _end_of(process)
        self._alive.clear()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self._alive:
            process.kill()
            process.join()


def _end_of(process: BaseProcess) -> str:
    return f"process {process.pid} ended with {process.exitcode}"


# --- inside the processes ---


def _live(place: Place, life: Life, args: Iterable[Any]) -> None:
    logging.getLogger().addHandler(Log(place.log))
    files = _files()
    asyncio.run(_whole(life(place, *args)))
    give_up_at = time.monotonic() + A_MOMENT
    while (left := _threads()) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    if left:
        leftovers.error("process %d leaves the threads %s", os.getpid(), left)
    if left := sorted(_files() - files):
        leftovers.error("process %d leaves the files %s", os.getpid(), left)


async def _whole(life: Coroutine[Any, Any, None]) -> None:
    await life
    if left := [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
        leftovers.error("process %d leaves the tasks %s", os.getpid(), left)


def _threads() -> list[str]:
    """Who is left beside the main thread, and beside one that waits for the end of the process and is meant to."""
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return [name for name in names if name != "jobs_async exit"]


def _files() -> set[str]:
    """What this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"{number}: {os.readlink(f'/proc/self/fd/{number}')}")
    return found


async def _enqueue(place: Place, drafts: Iterable[Draft[Any]]) -> None:
    async with place.supervisor(queues={}) as supervisor:
        place.ledger.mark("A", *await supervisor.enqueue_many(drafts))


async def until_asked_to_stop() -> None:
    """Until somebody sends SIGTERM to this process."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()


class Log(logging.Handler):
    """Appends what is logged as lines of JSON, each with one write; its times are those of the ledger."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def emit(self, record: logging.LogRecord) -> None:
        since = time.time() - record.created
        line = {
            "ns": now() - int(since * 1e9),
            "pid": record.process,
            "logger": record.name,
            "level": record.levelname,
            "text": self.format(record),
        }
        os.write(self._file, (json.dumps(line) + "\n").encode())
