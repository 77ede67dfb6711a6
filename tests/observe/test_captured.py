"""The lines of each attempt are kept with its job, within bounds, and nothing that goes wrong there harms a job."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs_async import (
    Cancel,
    ConstantBackoff,
    Discard,
    JobEnqueued,
    JobState,
    MemoryStore,
    OptionError,
    Snooze,
    SqliteStore,
    Supervisor,
    Telemetry,
    UniqueStrategy,
)
from jobs_async.core.codec import MAX_BYTES as RECORD_BYTES
from jobs_async.core.context import current
from jobs_async.core.records import Record
from jobs_async.observe import captured as module
from jobs_async.observe.attempts import MAX_LINE_BYTES, AttemptLog
from jobs_async.observe.captured import (
    KIND,
    MAX_ATTEMPTS,
    MAX_BYTES,
    MAX_LINES,
    CapturedLogs,
)
from jobs_async.telemetry import background
from jobs_async.testing.loop import LoopClock
from tests.runtime.support import World, now, virtual

log = logging.getLogger("tests.shop")


@pytest.fixture(autouse=True)
def leave_logging_as_it_was() -> Iterator[None]:
    handlers = list(logging.getLogger().handlers)
    log.setLevel(logging.INFO)
    yield
    log.setLevel(logging.NOTSET)
    for handler in set(logging.getLogger().handlers) - set(handlers):
        logging.getLogger().removeHandler(handler)
    log.handlers.clear()
    log.propagate = True


def alone() -> CapturedLogs:
    """What captures all it can of a logger that nobody else hears: pytest does not take what some tests log."""
    log.propagate = False
    log.addHandler(logging.NullHandler())
    return CapturedLogs(MemoryStore(), lines=MAX_LINES, bytes=MAX_BYTES, logger=log.name)


def capturing(world: World, store: Any = None, **options: Any) -> tuple[Supervisor, CapturedLogs]:
    """A Supervisor whose log lines are captured."""
    kept = {name: options.pop(name) for name in ("lines", "bytes", "level", "keep", "logger") if name in options}
    captured = CapturedLogs(store or world.store, **kept)
    telemetry = Telemetry()
    telemetry.attach(captured)
    return world.supervisor(store, telemetry=telemetry, instruments=[captured], **options), captured


def said(logs: Sequence[AttemptLog], logger: str = "tests.shop") -> list[list[str]]:
    """What the application itself has said in each attempt."""
    return [[line.text for line in log.lines if line.logger == logger] for log in logs]


# --- what is kept ---


@virtual
async def test_each_attempt_keeps_its_own_lines(world: World) -> None:
    jobs, captured = capturing(world)

    @jobs.worker(max_attempts=3, retry_strategy=ConstantBackoff(60))
    async def send(who: str) -> None:
        log.info("to %s", who)
        log.debug("not this")
        if (await jobs.get(1)).attempt < 3:
            raise ValueError("no answer")
        log.warning("at last")

    async with jobs:
        job = await jobs.wait(await send.enqueue("Ann"))
    logs = await captured.of(job)
    assert said(logs) == [["to Ann"], ["to Ann"], ["to Ann", "at last"]]
    assert [(log.job_id, log.attempt, log.claim, log.dropped) for log in logs] == [(1, n, n, 0) for n in (1, 2, 3)]
    assert logs == await captured.of(job.id) == await CapturedLogs(world.store).of(job), "all is in the store"
    failed = logs[0].lines[-1]
    assert (failed.logger, failed.level) == ("jobs_async", "WARNING")
    assert "attempt 1 of 3" in failed.text
    assert failed.text.endswith("ValueError: no answer")
    assert str(logs[2].lines[1]).endswith("Z WARNING tests.shop at last")


async def test_they_are_kept_in_a_file_and_from_threads(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    with CapturedLogs(store) as captured:
        telemetry = Telemetry()
        telemetry.attach(captured)
        jobs = Supervisor(store, queues={"default": 20}, telemetry=telemetry, instruments=[captured])

        @jobs.worker
        def count(name: str) -> None:
            for number in range(50):
                log.info("%s %d", name, number)

        async with jobs, asyncio.timeout(30):
            batch = await jobs.enqueue_many([count.draft(str(number)) for number in range(20)])
            for job in batch:
                await jobs.wait(job)
    async with store:
        kept = [said(await CapturedLogs(store).of(job)) for job in batch]
    assert kept == [[[f"{name} {number}" for number in range(50)]] for name in range(20)]
    assert captured.lost == 0


@virtual
async def test_a_hundred_jobs_at_once_never_mix_their_lines(world: World) -> None:
    jobs, captured = capturing(world, queues={"default": 100})

    async def helper(name: str) -> None:
        await asyncio.sleep(0.5)
        log.info("helper of %s", name)

    @jobs.worker
    async def work(name: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(helper(name))
            for number in range(5):
                log.info("%s %d", name, number)
                await asyncio.sleep(int(name) % 7 / 10)

    async with jobs:
        batch = await jobs.enqueue_many([work.draft(str(number)) for number in range(100)])
        for job in batch:
            await jobs.wait(job)
    for name, job in enumerate(batch):
        ((*lines,),) = said(await captured.of(job))
        assert sorted(lines) == sorted([*(f"{name} {number}" for number in range(5)), f"helper of {name}"])


@virtual
async def test_however_an_attempt_ends_its_lines_are_kept(world: World) -> None:
    jobs, captured = capturing(world, shutdown_timeout=1)

    @jobs.worker(max_attempts=1, timeout_seconds=100)
    async def end(how: str) -> None:
        log.info(how)
        match how:
            case "fails":
                raise ValueError("no")
            case "snoozes":
                raise Snooze(10_000)
            case "cancels":
                raise Cancel("no more")
            case "discards":
                raise Discard("never")
            case "returns":
                return
            case _:
                await asyncio.Event().wait()

    ways = ["fails", "snoozes", "cancels", "discards", "returns"]
    async with jobs:
        ended = [await end.enqueue(how) for how in ways]
        replaced = await end.options(unique_key="one").enqueue("is replaced")
        await asyncio.sleep(1)
        new = end.options(unique_key="one", unique_strategy=UniqueStrategy.CANCEL_EXISTING)
        interrupted = await new.enqueue("is interrupted")
        await asyncio.sleep(10)
    assert [said(await captured.of(job)) for job in (*ended, replaced, interrupted)] == [
        [[how]] for how in (*ways, "is replaced", "is interrupted")
    ]
    assert not captured._attempts, "none is left in memory"


@virtual
async def test_what_runs_can_be_read_and_what_comes_too_late_is_not_kept(world: World) -> None:
    jobs, captured = capturing(world)
    go_on, late = asyncio.Event(), asyncio.Event()

    async def straggle() -> None:
        await late.wait()
        log.info("too late")

    @jobs.worker
    async def work() -> None:
        tasks.append(asyncio.get_running_loop().create_task(straggle()))
        log.info("begun")
        await go_on.wait()
        log.info("done")

    tasks: list[asyncio.Task[None]] = []
    async with jobs:
        job = await work.enqueue()
        await asyncio.sleep(1)
        assert said(await captured.of(job)) == [["begun"]]
        go_on.set()
        await jobs.wait(job)
        assert said(await captured.of(job)) == [["begun", "done"]]
        await captured.flush()
        late.set()
        await tasks[0]
    assert said(await captured.of(job)) == [["begun", "done"]]
    assert await captured.of(job.id + 1) == []


@virtual
async def test_what_has_ended_takes_no_line_while_it_waits_for_the_store(world: World) -> None:
    jobs, captured = capturing(world, FaultyRecords("hangs"))
    tasks: list[asyncio.Task[None]] = []

    async def straggle() -> None:
        await asyncio.sleep(2)
        log.info("too late")

    @jobs.worker
    async def work() -> None:
        tasks.append(asyncio.get_running_loop().create_task(straggle()))
        log.info("in time")

    async with jobs:
        job = await work.enqueue()
        await asyncio.sleep(3)
        assert tasks[0].done()
        assert said(await captured.of(job)) == [["in time"]]
        await asyncio.sleep(3)
        assert await captured.of(job) == [], "given up"


@virtual
async def test_stored_and_running_attempts_are_told_in_their_order(world: World) -> None:
    jobs, captured = capturing(world)

    @jobs.worker
    async def work() -> None:
        claim = (await jobs.get(1)).claim
        log.info("run %d", claim)
        if claim < 3:
            raise Snooze(1)
        await asyncio.sleep(100)

    async with jobs:
        job = await work.enqueue()
        await asyncio.sleep(50)
        assert said(await captured.of(job)) == [["run 1"], ["run 2"], ["run 3"]]
        assert said(await captured.of(job, limit=2)) == [["run 1"], ["run 2"]]
        assert len(await world.store.get_records(KIND)) == 2


@virtual
async def test_level_and_logger_choose_what_is_kept(world: World) -> None:
    jobs, captured = capturing(world, level="WARNING", logger="tests.shop.mail")

    @jobs.worker
    async def work() -> None:
        for name in ("tests.shop", "tests.shop.mail", "tests.shop.mail.smtp"):
            logging.getLogger(name).info("quiet")
            logging.getLogger(name).warning("loud")

    async with jobs:
        job = await jobs.wait(await work.enqueue())
    (kept,) = await captured.of(job)
    assert [(line.logger, line.text) for line in kept.lines] == [
        ("tests.shop.mail", "loud"),
        ("tests.shop.mail.smtp", "loud"),
    ]


@virtual
async def test_what_logs_nothing_costs_no_record(world: World) -> None:
    jobs, captured = capturing(world)

    @jobs.worker
    async def quiet() -> None: ...

    async with jobs:
        job = await jobs.wait(await quiet.enqueue())
    assert not await captured.of(job)
    assert not await world.store.get_records(KIND)
    assert not captured._attempts


@virtual
async def test_many_attempts_are_read_page_by_page(world: World) -> None:
    jobs, captured = capturing(world)

    @jobs.worker
    async def poll() -> None:
        log.info("look")
        if (await jobs.get(1)).claim < 12:
            raise Snooze(1)

    async with jobs:
        job = await jobs.wait(await poll.enqueue())
    assert [log.claim for log in await captured.of(job, limit=5)] == [1, 2, 3, 4, 5]
    assert [log.claim for log in await captured.of(job, after=9, limit=5)] == [10, 11, 12]
    assert {log.attempt for log in await captured.of(job)} == {1}, "a snooze counts as no attempt"
    with pytest.raises(OptionError):
        await captured.of("1")  # type: ignore[arg-type]


# --- bounds ---


class Attempt:
    """An attempt as its handler sees it, without a runtime."""

    def __init__(self, id: int, claim: int = 1) -> None:
        self.job, self.attempt = self, 1
        self.id, self.claim = id, claim

    def runs(self, captured: CapturedLogs, do: Callable[[], object] = lambda: log.info("hello")) -> None:
        here = contextvars.copy_context()
        me: Any = self
        here.run(current.set, me)
        with captured.running(me):
            here.run(do)


def say(*lines: object) -> None:
    for line in lines:
        log.info("%s", line)


def log_of(captured: CapturedLogs, attempt: Attempt) -> AttemptLog:
    return captured._attempts[attempt.id, attempt.claim].log()


async def test_a_flood_keeps_its_end_and_says_how_much_is_gone() -> None:
    alone()
    captured = CapturedLogs(MemoryStore(), logger=log.name)
    attempt = Attempt(1)
    most: list[int] = []

    def flood() -> None:
        for number in range(100_000):
            log.info("line %d", number)
            if number % 100 == 0:
                most.append(len(captured._attempts[1, 1]._kept))

    attempt.runs(captured, flood)
    kept = log_of(captured, attempt)
    assert [line.text for line in kept.lines] == [f"line {number}" for number in range(99_800, 100_000)]
    assert (kept.dropped, max(most)) == (99_800, 200)


@pytest.mark.parametrize("char", ["x", "ä", "🐌", "\x01", '"', "\0", "\ud800"])
async def test_the_bytes_of_an_attempt_and_of_its_record_are_bounded(char: str) -> None:
    captured = CapturedLogs(MemoryStore(), lines=10_000, bytes=131_072)
    attempt = Attempt(1)
    attempt.runs(captured, lambda: say(*(f"{number} {char * 100_000}" for number in range(40))))
    kept = log_of(captured, attempt)
    sizes = [len(line.text.encode()) for line in kept.lines]
    assert all(MAX_LINE_BYTES - 4 <= size <= MAX_LINE_BYTES for size in sizes)
    assert 131_072 - 2 * MAX_LINE_BYTES < sum(sizes) <= 131_072
    assert kept.dropped + len(sizes) == 40
    assert kept.lines[-1].text.startswith("39 ")
    assert len(Record.of(KIND, "1", kept).value) < RECORD_BYTES


async def test_many_short_lines_fit_into_a_record_too() -> None:
    captured = alone()
    attempt = Attempt(1)
    attempt.runs(captured, lambda: say(*[""] * 20_000))
    assert len(Record.of(KIND, "1", log_of(captured, attempt)).value) < 131_072


async def test_the_smallest_room_holds_a_line() -> None:
    captured = CapturedLogs(MemoryStore(), lines=1, bytes=256, logger="")
    attempt = Attempt(1)
    attempt.runs(captured, lambda: logging.getLogger("x" * 300).error("long " * 100))
    assert log_of(captured, attempt).lines[0].text.startswith("long long")


async def test_attempts_whose_end_is_never_told_are_forgotten_oldest_first() -> None:
    captured = CapturedLogs(MemoryStore())
    silent = Attempt(0)
    silent.runs(captured, lambda: None)
    attempts = [Attempt(number + 1) for number in range(MAX_ATTEMPTS + 500)]
    for attempt in attempts:
        attempt.runs(captured)
    assert list(captured._attempts) == [(attempt.id, 1) for attempt in attempts[500:]]
    assert captured.lost == 500, "what had said nothing is no loss"


@virtual
async def test_old_ones_are_removed_a_few_at_a_time(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SWEEP_SIZE", 2)
        jobs, captured = capturing(world, keep=timedelta(hours=1))

        @jobs.worker
        async def work() -> None:
            log.info("hello")

        async def left() -> list[int]:
            await jobs.wait(await work.enqueue())
            await captured.flush()
            return [int(record.key[:20]) for record in await world.store.get_records(KIND)]

        async with jobs:
            for _ in range(3):
                await left()
            await asyncio.sleep(3700)
            assert await left() == [3, 4], "a full batch"
            assert await left() == [4, 5], "and at once the next, for there is more"
            await asyncio.sleep(3700)
            assert await left() == [6]


@virtual
async def test_the_search_for_old_ones_is_made_now_and_then(world: World) -> None:
    store = FaultyRecords("none")
    jobs, captured = capturing(world, store)

    @jobs.worker
    async def work() -> None:
        log.info("hello")

    async with jobs:
        for _ in range(20):
            await jobs.wait(await work.enqueue())
            await asyncio.sleep(100)
    assert store.calls == 20
    assert store.searches == 7, "every third time, for 300 seconds are to pass"
    assert captured.lost == 0


# --- harm ---


class Chatty:
    """Logs when it is shown."""

    def __str__(self) -> str:
        log.info("shown: %s", self)
        return "chatty"


async def test_what_is_logged_while_a_line_is_captured_does_not_recurse() -> None:
    captured = alone()
    attempt = Attempt(1)
    attempt.runs(captured, lambda: say(Chatty(), "two"))
    assert [line.text for line in log_of(captured, attempt).lines] == ["chatty", "two"]


async def test_whatever_a_record_holds_whoever_logs_does_not_fail() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    captured = alone()
    attempt = Attempt(1)

    def speak() -> None:
        log.info("broken %s", Broken())
        log.handle(logging.makeLogRecord({"name": Broken(), "levelno": 30, "created": "never"}))
        log.info("whole")

    attempt.runs(captured, speak)
    texts = [line.text for line in log_of(captured, attempt).lines]
    assert texts == ["broken %s (its arguments could not be shown: RuntimeError)", "whole"]


class FaultyRecords(MemoryStore):
    """Its records meet one kind of fault; its jobs none."""

    def __init__(self, fault: str) -> None:
        super().__init__(clock=LoopClock())
        self.fault = fault
        self.calls = self.searches = 0

    async def drop_records(self, *args: Any, **options: Any) -> int:
        self.searches += 1
        return await super().drop_records(*args, **options)

    async def put_records(self, records: Sequence[Record], *, only_new: bool = False) -> list[bool]:
        self.calls += 1
        match self.fault:
            case "hangs":
                await asyncio.Event().wait()
            case "raises":
                raise ConnectionError("away")
            case "ends":
                raise SystemExit(3)
            case "cancels":
                raise asyncio.CancelledError
        written = await super().put_records(records, only_new=only_new)
        if self.fault == "loses the answer":
            raise ConnectionError("lost")
        return written


@pytest.mark.parametrize("fault", ["hangs", "raises", "ends", "cancels", "loses the answer"])
def test_a_store_that_takes_no_lines_harms_no_job(fault: str) -> None:
    @virtual
    async def scene(world: World) -> None:
        store = FaultyRecords(fault)
        jobs, captured = capturing(world, store)
        ran: Counter[int] = Counter()

        @jobs.worker(retry_strategy=ConstantBackoff(1))
        async def work(number: int) -> None:
            ran[number] += 1
            log.info("hello")
            if number % 2 and ran[number] == 1:
                raise ValueError("once")

        async with jobs:
            for number in range(100):
                await work.enqueue(number)
            async with asyncio.timeout(20):
                while (await jobs.counts())["default", JobState.completed] < 100:
                    await asyncio.sleep(0.1)
            assert now() < 10, "no job waits for its lines"
        assert ran == {number: 1 + number % 2 for number in range(100)}
        assert (store.calls > 1) is (fault != "hangs")
        assert captured.lost + len(captured._attempts) == 150, "lines are given up, or wait within bounds"
        assert now() < 12, "nor does a stop"
        await asyncio.sleep(20)  # what hangs is given up

    scene()


@virtual
async def test_a_store_that_works_again_gets_what_has_waited(world: World) -> None:
    store = FaultyRecords("raises")
    jobs, captured = capturing(world, store)

    @jobs.worker
    async def work() -> None:
        log.info("hello")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "stopwatch", now)
        async with jobs:
            enqueued = []
            for _ in range(5):
                enqueued.append(await jobs.wait(await work.enqueue()))
                await captured.flush()
            assert (store.calls, captured.lost) == (3, 3), "after three failures in a row it is left alone"
            store.fault = "none"
            await asyncio.sleep(61)
            enqueued.append(await jobs.wait(await work.enqueue()))
    stored = CapturedLogs(store)
    assert [said(await stored.of(job)) for job in enqueued] == [[]] * 3 + [[["hello"]]] * 3


# --- its place ---


async def test_the_handler_goes_when_it_is_closed() -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    with CapturedLogs(MemoryStore()) as captured:
        assert root.handlers == before, "nothing is touched before there is an attempt"
        Attempt(1).runs(captured)
        Attempt(2).runs(captured)
        assert len(root.handlers) == len(before) + 1
    assert root.handlers == before
    Attempt(3).runs(captured)
    assert root.handlers == before
    assert set(captured._attempts) == {(1, 1), (2, 1)}


async def test_where_logging_is_not_configured_warnings_still_reach_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    captured = CapturedLogs(MemoryStore(), level=logging.CRITICAL, logger="tests.shop")
    log.propagate = False
    Attempt(1).runs(captured, lambda: log.warning("seen"))
    log.info("not so important")
    log.addHandler(logging.NullHandler())
    log.warning("for the application to show")
    assert capsys.readouterr().err == "seen\n"


async def test_other_events_are_none_of_its_business() -> None:
    captured = CapturedLogs(MemoryStore())
    attempt = Attempt(1)
    attempt.runs(captured)
    event: Any = JobEnqueued
    captured(event)
    assert set(captured._attempts) == {(1, 1)}


class OnlyJobs:
    """A store without records."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": OnlyJobs()}, "OnlyJobs keeps no records"),
        ({"lines": 0}, "lines must be from 1"),
        ({"bytes": 1 << 20}, "bytes must be from 256"),
        ({"level": "LOUD"}, "level: Unknown level"),
        ({"keep": 0}, "keep must be more than 0"),
    ],
)
def test_what_is_wrong_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CapturedLogs(options.pop("store", MemoryStore()), **options)


@virtual
async def test_a_record_is_plain_json_under_a_key_that_sorts(world: World) -> None:
    jobs, _ = capturing(world)

    @jobs.worker
    async def work() -> None:
        log.info("hello")

    async with jobs:
        await jobs.wait(await work.enqueue())
    (record,) = await world.store.get_records(KIND)
    assert record.key == f"{1:020d}/{1:010d}"
    document = json.loads(record.value)
    ((_, *line),) = document.pop("lines")
    assert line == ["INFO", "tests.shop", "hello"]
    assert document == {"job_id": 1, "attempt": 1, "claim": 1, "dropped": 0}
