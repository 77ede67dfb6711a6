"""What blocks the event loop is named and costs no lease; what will not end keeps its slot, and is told of."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from jobs_async import (
    Event,
    Job,
    JobRescued,
    JobStarted,
    JobState,
    JobStuck,
    LeaseLost,
    LoopStalled,
    MemoryStore,
    QueueHandler,
    QueuePaused,
    SqliteStore,
    StaleSettlement,
    StoreError,
    Supervisor,
    Telemetry,
    current_context,
)
from jobs_async.core.job import FINAL
from jobs_async.core.store import Beat, JobQuery
from jobs_async.core.store import Node as NodeRecord
from jobs_async.runtime import patience, watchdog
from jobs_async.telemetry import background
from jobs_async.testing.loop import BEGINNING
from tests.runtime.support import Seen, World, now, virtual
from tests.sqlite.support import open_files, until

PATIENCE = 20.0
"""Real seconds after which a fact that does not come is a failure."""
FAST: dict[str, Any] = {"heartbeat": 0.2, "lease": 0.8, "rescue_interval": 0.2, "poll_interval": 0.05}
THREE_LEASES = 2.5


@pytest.fixture
def path() -> Iterator[Path]:
    """A database in memory where the system has one: a disk that is slow could cost a short lease by itself."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder) / "jobs.db"


class Told(logging.Handler):
    """Waits for a line of the log; a handler that blocks until it has come has proved that it came meanwhile."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._came = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.lines.append(record.getMessage())
            self._came.set()

    def wait(self) -> None:
        assert self._came.wait(PATIENCE), "nothing was said"


@contextmanager
def told(text: str) -> Iterator[Told]:
    handler, logger = Told(text), logging.getLogger("jobs_async")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall is reported sooner, for those tests to which a second means nothing."""
    monkeypatch.setattr(watchdog, "STALL", 0.3)
    monkeypatch.setattr(watchdog, "TICK", 0.05)


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "jobs_async watchdog"]


async def until_no_watchdog_is_left() -> None:
    async def gone() -> bool:
        return not watchdogs()

    await until(gone, PATIENCE)


# --- the lease while the loop is blocked ---


class LookedAtMemory(MemoryStore):
    """Counts how often somebody looked for the jobs of dead nodes."""

    looked = 0

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        self.looked += query.orphaned
        return await super().select(query)


class LookedAtSqlite(SqliteStore):
    looked = 0

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        self.looked += query.orphaned
        return await super().select(query)


Stored = LookedAtMemory | LookedAtSqlite


class Rival:
    """Another Supervisor on the same file, in a thread and an event loop of its own: it is not blocked."""

    def __init__(self, path: Path, handler: Callable[[Any, Any], Awaitable[Any]], **options: Any) -> None:
        self.store = LookedAtSqlite(path)
        self.seen: list[Event] = []
        self._options = options
        self._handler = handler
        self._up = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._enough: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="rival", daemon=True)

    async def _live(self) -> None:
        self._loop, self._enough = asyncio.get_running_loop(), asyncio.Event()
        telemetry = Telemetry()
        telemetry.attach(self.seen.append)
        jobs = Supervisor(self.store, telemetry=telemetry, **FAST, **self._options)
        jobs.register_worker("block", self._handler)
        async with jobs:
            self._up.set()
            await self._enough.wait()

    async def __aenter__(self) -> Rival:
        self._thread.start()
        assert await asyncio.to_thread(self._up.wait, PATIENCE)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._enough.set)
        await asyncio.to_thread(self._thread.join, PATIENCE)
        assert not self._thread.is_alive()


class Node:
    """A Supervisor one of whose jobs blocks the loop while others, its neighbours, run beside it."""

    def __init__(self, store: Stored, **options: Any) -> None:
        self.store = store
        self.seen = Seen()
        telemetry = Telemetry()
        telemetry.attach(self.seen)
        self.jobs = Supervisor(store, telemetry=telemetry, **FAST, **options)
        self.runs: Counter[str] = Counter()
        self.go = asyncio.Event()
        self.jobs.register_worker("block", self._block)
        self.jobs.register_worker("neighbour", self._live_on)
        self.during: Callable[[], None] = lambda: None

    async def _live_on(self, _args: Any, _ctx: Any) -> None:
        self.runs["neighbour"] += 1
        await self.go.wait()

    async def _block(self, _args: Any, _ctx: Any) -> str:
        self.runs["block"] += 1
        await self.go.wait()
        self.during()
        return "late"

    async def begin(self, neighbours: int) -> list[Job[Any]]:
        jobs = [await self.jobs.enqueue("neighbour") for _ in range(neighbours)] + [await self.jobs.enqueue("block")]
        await self.seen.wait(JobStarted, count=len(jobs))
        return jobs

    async def end(self, jobs: list[Job[Any]]) -> list[Job[Any]]:
        """Let the block happen, and all end."""
        self.go.set()
        return [await self.jobs.wait(job, timeout=PATIENCE) for job in jobs]


def untouched(node: Node, ended: list[Job[Any]]) -> None:
    """Each ran once, here, and nobody took it for lost."""
    assert node.runs == Counter(neighbour=len(ended) - 1, block=1)
    assert {(job.state, job.attempt, job.claim, job.rescues) for job in ended} == {(JobState.completed, 1, 1, 0)}
    assert node.seen.of(LeaseLost) + node.seen.of(JobRescued) + node.seen.of(StaleSettlement) == []


async def looked_again(store: Stored) -> None:
    """By now both nodes have looked for lost jobs."""
    before = store.looked

    async def twice() -> bool:
        return store.looked >= before + 4

    await until(twice, PATIENCE)


async def test_row_64_f21_a_block_of_three_leases_costs_nobody_anything_in_memory() -> None:
    store = LookedAtMemory()
    node = Node(store)
    node.during = lambda: time.sleep(THREE_LEASES)
    async with node.jobs, Supervisor(store, queues={"elsewhere": 1}, **FAST):
        ended = await node.end(await node.begin(neighbours=3))
        await looked_again(store)
        untouched(node, ended)


async def test_row_64_f21_a_block_of_three_leases_costs_nobody_anything_in_a_file(path: Path) -> None:
    async def steal(_args: Any, _ctx: Any) -> str:
        return "stolen"

    store, files, looked = LookedAtSqlite(path), list[int](), list[int]()
    node = Node(store)
    async with node.jobs, Rival(path, steal, queues={"elsewhere": 1}) as rival:

        def block() -> None:
            files.append(len(open_files(path)))
            looked.append(rival.store.looked)
            time.sleep(THREE_LEASES)
            looked.append(rival.store.looked)
            files.append(len(open_files(path)))

        node.during = block
        ended = await node.end(await node.begin(neighbours=3))
        untouched(node, ended)
        assert not [event for event in rival.seen if isinstance(event, JobRescued | LeaseLost)]
        assert looked[1] >= looked[0] + 3, "the other one has tried"
        assert files[1] > files[0], "the lease was kept on a connection of its own"
    await until_no_watchdog_is_left()

    async def closed() -> bool:
        return not open_files(path)

    await until(closed, PATIENCE)


async def test_row_64_f21_beyond_max_stall_another_node_takes_over_and_the_late_end_is_refused(path: Path) -> None:
    ran_there = threading.Event()

    async def rescue(_args: Any, _ctx: Any) -> str:
        ran_there.set()
        return "rescued"

    node = Node(LookedAtSqlite(path), max_stall=0.5)
    with told("the lease is given up") as given_up:

        def block() -> None:
            assert ran_there.wait(PATIENCE), "nobody has rescued it"

        node.during = block
        async with node.jobs:
            (job,) = await node.begin(neighbours=0)
            async with Rival(path, rescue):
                node.go.set()
                stale = await node.seen.wait(StaleSettlement)
                lost = await node.seen.wait(LeaseLost)
                ended = await node.jobs.wait(job, timeout=PATIENCE)
        assert (stale.job.id, stale.job.claim) == (job.id, 1)
        assert lost.node == stale.job.node != lost.new_node
        assert (ended.state, ended.result, ended.attempt, ended.rescues) == (JobState.completed, "rescued", 2, 1)
        assert node.runs == Counter(block=1)
        assert len(given_up.lines) == 1


@pytest.mark.usefixtures("soon")
async def test_row_64_f14_a_handler_that_holds_up_the_thread_costs_no_lease_either() -> None:
    over = threading.Event()

    class Slow:
        any_thread = True

        def __call__(self, event: Event) -> None:
            if isinstance(event, LoopStalled):
                assert over.wait(PATIENCE)

    store = LookedAtMemory()
    node = Node(store)
    node.during = lambda: time.sleep(2 * FAST["lease"])
    assert node.jobs.telemetry is not None
    node.jobs.telemetry.attach(Slow())
    async with node.jobs, Supervisor(store, queues={"elsewhere": 1}, **FAST):
        ended = await node.end(await node.begin(neighbours=1))
        over.set()
        await looked_again(store)
        untouched(node, ended)


@pytest.mark.usefixtures("soon")
async def test_row_64_a_block_inside_a_log_handler_whose_lock_the_thread_needs_too_costs_no_lease() -> None:
    class Clogged(logging.Handler):
        """A full pipe: whoever logs waits, and whoever logs meanwhile waits for that."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "into the pipe":
                time.sleep(THREE_LEASES)

    store, clogged = LookedAtMemory(), Clogged()
    node = Node(store)
    node.during = lambda: logging.getLogger("jobs_async.app").warning("into the pipe")
    logging.getLogger("jobs_async").addHandler(clogged)
    try:
        async with node.jobs, Supervisor(store, queues={"elsewhere": 1}, **FAST):
            ended = await node.end(await node.begin(neighbours=1))
            await looked_again(store)
            untouched(node, ended)
    finally:
        logging.getLogger("jobs_async").removeHandler(clogged)


@pytest.mark.usefixtures("soon")
async def test_row_64_the_lease_is_kept_though_no_thread_is_to_be_had_for_telling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused: list[str] = []
    start = threading.Thread.start

    def scarce(thread: threading.Thread) -> None:
        if thread.name == "jobs_async alarm":
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    store = LookedAtMemory()
    node = Node(store)
    node.during = lambda: time.sleep(THREE_LEASES)
    async with node.jobs, Supervisor(store, queues={"elsewhere": 1}, **FAST):
        ended = await node.end(await node.begin(neighbours=1))
        await looked_again(store)
        untouched(node, ended)
    assert refused


async def test_row_65_the_thread_keeps_no_lease_for_ever_for_a_node_that_turns_and_cannot_beat() -> None:
    class Broken(MemoryStore):
        takes_beats = True

        async def beat(self, node: NodeRecord, ttl: float, *, join: bool = False) -> Beat:
            if not self.takes_beats and ttl:
                raise StoreError("the writer is gone")
            return await super().beat(node, ttl, join=join)

    store = Broken()
    async with Supervisor(store, max_stall=0.5, **FAST):
        (node,) = await store.nodes()
        store.takes_beats = False

        async def lost() -> bool:
            return not any(one.alive for one in await store.nodes() if one.id == node.id)

        await until(lost, PATIENCE)


async def test_row_64_a_store_s_answer_that_came_while_the_loop_was_blocked_counts(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setattr(patience, "STORE_SECONDS", 0.3)
    async with Supervisor(SqliteStore(path), queues={}) as jobs:
        stored = asyncio.get_running_loop().create_task(jobs.enqueue("work"))
        while not jobs.store._writer._queue:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        for _ in range(2):  # the statement is on its way
            await asyncio.sleep(0)
        time.sleep(0.3 + patience.LATE + 0.2)
        assert (await stored).state is JobState.available
        assert len(await jobs.find()) == 1


# --- who it is ---


async def test_row_64_a_stall_is_told_while_it_lasts_and_to_each_handler_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "LINGER", 0.01)

    class Alarm:
        any_thread = True

        def __init__(self) -> None:
            self.heard: list[Event] = []
            self.stalled = threading.Event()

        def __call__(self, event: Event) -> None:
            self.heard.append(event)
            if isinstance(event, LoopStalled):
                self.stalled.set()

    seen, direct, queued, heard, telemetry = Seen(), Alarm(), Alarm(), list[Event](), Telemetry()
    for handler in (heard.append, direct, QueueHandler(queued), seen):
        telemetry.attach(handler)
    jobs = Supervisor(telemetry=telemetry)

    @jobs.worker
    async def block() -> None:
        assert direct.stalled.wait(PATIENCE)  # here it blocks
        assert queued.stalled.wait(PATIENCE)
        assert not [event for event in heard if isinstance(event, LoopStalled)], "it needs the loop"

    with told("held up by") as log:
        async with jobs:
            job = await block.enqueue()
            final = await seen.wait(LoopStalled)
            await jobs.wait(job, timeout=PATIENCE)
    for everybody in (direct.heard, queued.heard, heard, seen.events):
        assert len([event for event in everybody if isinstance(event, LoopStalled)]) == 1
    (meanwhile,) = [event for event in direct.heard if isinstance(event, LoopStalled)]
    assert 1.0 <= meanwhile.seconds <= final.seconds
    assert meanwhile.blocker == final.blocker == f"job {job.id} (block)"
    (call,) = [call for call in final.stack if call.startswith("test_watchdog.py:")]
    assert call.endswith(":block")
    (line,) = log.lines
    assert f"held up by job {job.id} (block)" in line
    assert f'test_watchdog.py", line {call.split(":")[1]}, in block' in line
    assert "# here it blocks" in line


@pytest.mark.usefixtures("soon")
async def test_row_64_each_stall_is_told_anew() -> None:
    seen, telemetry = Seen(), Telemetry()
    telemetry.attach(seen)
    jobs = Supervisor(telemetry=telemetry)

    @jobs.worker
    async def block(n: int) -> None:
        with told(f"job {current_context().job.id} (block)") as log:
            log.wait()

    async with jobs:
        for n in range(2):
            await jobs.wait(await block.enqueue(n), timeout=PATIENCE)
        await seen.wait(LoopStalled, count=2)
    assert {"job 1 (block)", "job 2 (block)"} <= {event.blocker for event in seen.of(LoopStalled)}


@pytest.mark.usefixtures("soon")
async def test_row_64_how_long_it_took_is_right_though_the_thread_was_busy_telling_of_it() -> None:
    stalled, turned = threading.Event(), threading.Event()

    class Slow:
        any_thread = True

        def __call__(self, event: Event) -> None:
            if isinstance(event, LoopStalled):
                stalled.set()
                assert turned.wait(PATIENCE)

    seen, telemetry = Seen(), Telemetry()
    telemetry.attach(Slow())
    telemetry.attach(seen)
    jobs = Supervisor(telemetry=telemetry)

    @jobs.worker
    async def block() -> None:
        assert stalled.wait(PATIENCE)

    async with jobs:
        job = await jobs.wait(await block.enqueue(), timeout=PATIENCE)
        turned.set()
        final = await seen.wait(LoopStalled)
    assert final.blocker == f"job {job.id} (block)"
    assert final.seconds >= watchdog.STALL


@pytest.mark.usefixtures("soon")
async def test_row_64_a_telemetry_handler_that_blocks_is_named() -> None:
    def hang(event: Event) -> None:
        if isinstance(event, QueuePaused):
            log.wait()

    seen, telemetry = Seen(), Telemetry()
    telemetry.attach(hang)
    telemetry.attach(seen)
    with told("telemetry handler <function") as log:
        async with Supervisor(telemetry=telemetry):
            await telemetry.emit(QueuePaused("q", at=BEGINNING))
            stalled = await seen.wait(LoopStalled)
    assert stalled.blocker == f"telemetry handler {hang!r}"


@pytest.mark.usefixtures("soon")
async def test_row_64_a_job_that_blocks_is_named_though_a_telemetry_handler_is_waiting_for_something() -> None:
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> None:
        if isinstance(event, QueuePaused):
            waits.set()
            await goes_on.wait()

    telemetry = Telemetry()
    telemetry.attach(slow)
    jobs = Supervisor(telemetry=telemetry)

    @jobs.worker
    async def block() -> None:
        await waits.wait()
        log.wait()
        goes_on.set()

    with told("held up by") as log:
        async with jobs:
            job = await block.enqueue()
            await telemetry.emit(QueuePaused("q", at=BEGINNING))
            await jobs.wait(job, timeout=PATIENCE)
    assert f"held up by job {job.id} (block)" in log.lines[0]


@pytest.mark.usefixtures("soon")
async def test_row_64_a_callback_that_blocks_is_named() -> None:
    def block() -> None:
        log.wait()  # the callback

    with told("a callback of the event loop") as log:
        async with Supervisor():
            asyncio.get_running_loop().call_soon(block)
            await asyncio.sleep(0)
    assert "# the callback" in log.lines[0]


@pytest.mark.usefixtures("soon")
async def test_row_64_a_task_of_the_application_that_blocks_is_named() -> None:
    async def block() -> None:
        log.wait()

    with told("task 'nightly report'") as log:
        async with Supervisor():
            await asyncio.get_running_loop().create_task(block(), name="nightly report")
    assert log.lines


# --- the thread itself ---


async def test_without_max_stall_there_is_no_thread(path: Path) -> None:
    before = set(watchdogs())
    async with Supervisor(SqliteStore(path), max_stall=None):
        assert not set(watchdogs()) - before
    async with Supervisor(SqliteStore(path)):
        assert len(set(watchdogs()) - before) == 1


async def test_a_producer_has_no_thread() -> None:
    before = set(watchdogs())
    async with Supervisor(queues={}):
        assert not set(watchdogs()) - before


async def test_after_a_stop_the_thread_is_gone_and_each_start_has_a_new_one() -> None:
    jobs = Supervisor()
    for _ in range(3):
        async with jobs:
            assert watchdogs()
        await until_no_watchdog_is_left()


def test_a_loop_that_ends_without_a_stop_takes_the_thread_with_it() -> None:
    async def main() -> None:
        await Supervisor().start()
        assert watchdogs()

    asyncio.run(main())
    asyncio.run(until_no_watchdog_is_left())


def test_a_process_that_was_suspended_blames_nobody() -> None:
    program = """
import asyncio, logging, sys
from jobs_async import Supervisor

async def main():
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    jobs = Supervisor(shutdown_timeout=0)

    @jobs.worker
    async def innocent():
        await asyncio.sleep(3600)

    async with jobs:
        await innocent.enqueue()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await asyncio.sleep(0.5)
    print("bye")

asyncio.run(main())
"""
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGSTOP)
            time.sleep(2)
            process.send_signal(signal.SIGCONT)
            assert "the whole process stood still" in process.stdout.readline()
            process.stdin.close()
            rest = process.stdout.read()
        finally:
            process.kill()
    assert "bye" in rest
    assert "held up by" not in rest


# --- handlers that go on after they were told to end, on virtual time ---


class Deaf:
    """A handler that swallows every cancellation until it is let go."""

    def __init__(self) -> None:
        self.enough = asyncio.Event()

    async def __call__(self) -> str:
        while not self.enough.is_set():
            with suppress(asyncio.CancelledError):
                await self.enough.wait()
        return "much later"


def stuck_for(cause: str, told_at: float, ends_as: JobState, error: str) -> Callable[[], None]:
    @virtual
    async def scenario(world: World) -> None:
        async with world.supervisor(queues={"default": 1}) as jobs:
            deaf = Deaf()

            @jobs.worker(max_attempts=1)
            async def work() -> str:
                return await deaf()

            @jobs.worker
            async def waits_for_the_slot() -> float:
                return now()

            job = await work.options(timeout_seconds=told_at if cause == "timeout" else None).enqueue()
            await world.seen.wait(JobStarted, job)
            other = await waits_for_the_slot.enqueue()
            if cause != "timeout":
                await jobs.cancel(job.id)
            assert list(jobs.stuck) == []
            stuck = await world.seen.wait(JobStuck)
            assert now() == pytest.approx(told_at + 3)
            assert (stuck.job.id, stuck.cause, list(jobs.stuck)) == (job.id, cause, [job.id])
            await asyncio.sleep(600)
            assert len(world.seen.of(JobStuck)) == 1
            assert list(jobs.stuck) == [job.id]
            assert (await jobs.get(other.id)).state is JobState.available, "the slot is taken"
            assert (await jobs.get(job.id)).state is JobState.executing
            deaf.enough.set()
            assert await jobs.result(other) > 600
            assert list(jobs.stuck) == []
            ended = await jobs.get(job.id)
            assert ended.state is ends_as
            assert ended.last_error is None or ended.last_error.type == error
            assert not world.seen.of(StaleSettlement)

    return scenario


@pytest.mark.parametrize(
    ("cause", "told_at", "ends_as", "error"),
    [
        ("timeout", 10.0, JobState.discarded, "Timeout"),
        ("cancelled on request", 5.0, JobState.cancelled, "Cancelled"),
    ],
)
def test_row_62_a_handler_that_swallows_its_cancellation_is_told_of_once_and_keeps_its_slot(
    cause: str, told_at: float, ends_as: JobState, error: str
) -> None:
    stuck_for(cause, told_at, ends_as, error)()


@virtual
async def test_a_handler_that_swallows_the_cancellation_of_a_stop_is_told_of_before_the_stop_ends(
    world: World,
) -> None:
    jobs, deaf = world.supervisor(shutdown_timeout=5), Deaf()

    @jobs.worker
    async def work() -> str:
        return await deaf()

    await jobs.start()
    job = await work.enqueue()
    await world.seen.wait(JobStarted)
    report = await jobs.stop()
    assert report.still_running == (job.id,)
    assert [(event.job.id, event.cause) for event in world.seen.of(JobStuck)] == [(job.id, "stop")]
    deaf.enough.set()


@virtual
async def test_a_handler_that_ends_within_3_seconds_is_not_stuck(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker(max_attempts=1, timeout_seconds=1)
        async def work() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(2.9)

        await jobs.wait(await work.enqueue())
        await asyncio.sleep(10)
        assert list(jobs.stuck) == []
    assert not world.seen.of(JobStuck)


@virtual
async def test_row_62_threads_past_their_timeout_keep_their_slots_until_they_end(world: World) -> None:
    LIMIT = 2
    gate, inside, most = threading.Event(), list[int](), list[int]()

    async with world.supervisor(queues={"default": LIMIT}) as jobs:

        @jobs.worker(max_attempts=1, timeout_seconds=10)
        def work(n: int) -> int:
            inside.append(n)
            most.append(len(inside))
            assert gate.wait(PATIENCE)
            inside.remove(n)
            return n

        stored = await jobs.enqueue_many([work.draft(n) for n in range(2 * LIMIT)])
        while len(inside) < LIMIT:  # threads begin in real time, and none of the other passes meanwhile
            await asyncio.sleep(0)
        await world.seen.wait(JobStuck, count=LIMIT)
        assert now() == pytest.approx(13)
        assert list(jobs.stuck) == [job.id for job in stored[:LIMIT]]
        await asyncio.sleep(60)
        assert len(world.seen.of(JobStarted)) == len(world.seen.of(JobStuck)) == LIMIT
        gate.set()
        ended = [await jobs.wait(job) for job in stored]
        assert list(jobs.stuck) == []
    assert max(most) == LIMIT
    assert {job.state for job in ended} <= FINAL
    for job in ended[:LIMIT]:
        assert job.last_error is not None
        assert (job.last_error.type, job.attempt) == ("Timeout", 1)
