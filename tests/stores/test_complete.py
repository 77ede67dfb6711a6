"""`JobContext.complete`: a job that is completed in the transaction in which its handler does its work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest

from jobs_async import (
    ArgsError,
    Cancel,
    ConstantBackoff,
    Discard,
    IllegalTransition,
    Job,
    JobContext,
    JobState,
    OptionError,
    Snooze,
    StaleClaim,
    Supervisor,
    Telemetry,
    UniqueStrategy,
)
from jobs_async.core.lifecycle import Transition, decide
from jobs_async.core.outcome import Lost
from jobs_async.core.store import JobQuery, Store
from jobs_async.observe import ObservedStore
from jobs_async.stores.postgres import PostgresStore
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.testing import Harness
from jobs_async.testing.faults import FaultyStore
from tests.applications import POSTGRES, SQLITE, Application, Open, transaction
from tests.cluster import PgServer
from tests.postgres.support import PATIENCE, TABLES, connected, until

NEVER = 3600.0


class Place:
    """A database for jobs and for a ledger of the application's."""

    def __init__(self, store: Callable[[], Store], address: str, kinds: dict[str, Open]) -> None:
        self.store = store
        self.address = address
        self.kinds = kinds

    @asynccontextmanager
    async def app(self, kind: str | None = None) -> AsyncGenerator[Application]:
        async with self.kinds[kind or next(iter(self.kinds))](self.address) as app:
            yield app

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Any]:
        """With a line in the ledger."""
        async with self.app() as app, transaction(app) as connection:
            await app.execute("INSERT INTO ledger (line) VALUES ('paid')")
            yield connection

    async def lines(self) -> int:
        async with self.app() as app:
            ((count,),) = await app.execute("SELECT count(*) FROM ledger")
            return int(count)

    @asynccontextmanager
    async def supervisor(self, *, store: Store | None = None, **options: Any) -> AsyncGenerator[Supervisor]:
        given: dict[str, Any] = {"poll_interval": 0.05, "max_stall": None, **options}
        async with asyncio.timeout(PATIENCE), Supervisor(store or self.store(), **given) as jobs:
            yield jobs

    @asynccontextmanager
    async def stranger(self) -> AsyncGenerator[Supervisor]:
        """Somebody else, who runs nothing, in another process for all that the first knows."""
        async with Supervisor(self.store(), queues={}) as jobs:
            yield jobs


@pytest.fixture(scope="module")
def database(pg_cluster: PgServer) -> Iterator[str]:
    with pg_cluster.database() as dsn:
        yield dsn


@pytest.fixture(params=["sqlite", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        path = tmp_path / "jobs.db"
        place = Place(lambda: SqliteStore(path), f"sqlite+aiosqlite:///{path}", SQLITE)
    else:
        dsn: str = request.getfixturevalue("database")
        place = Place(lambda: PostgresStore(dsn), dsn, POSTGRES)
        async with place.store(), connected(dsn) as connection:
            await connection.execute(
                "; ".join([*(f"DELETE FROM {table}" for table in TABLES), "DROP TABLE IF EXISTS ledger"])
            )
    async with place.store(), place.app() as app:
        await app.execute("CREATE TABLE ledger (line TEXT)")
    return place


def told(events: list[Any], job: Job[Any]) -> list[str]:
    return [event.type for event in events if getattr(event, "job", None) is not None and event.job.id == job.id]


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def telemetry(events: list[Any]) -> Telemetry:
    telemetry = Telemetry()
    telemetry.attach(events.append)
    return telemetry


async def passed(fact: Callable[[], object]) -> bool:
    return bool(fact())


# ------------------------------------------------------------------------------------------------ commit and rollback


async def test_a_commit_completes_the_job_with_the_handlers_own_rows(
    place: Place, events: list[Any], telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.store()
    written: list[Transition] = []
    apply = type(store).apply

    async def watched(self: Any, steps: Any, **more: Any) -> Any:
        written.extend(() if more else steps)
        return await apply(self, steps, **more)

    monkeypatch.setattr(type(store), "apply", watched)
    async with place.supervisor(store=store, telemetry=telemetry) as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext, amount: int) -> dict[str, int]:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result={"paid": amount})
                assert (await jobs.get(ctx.job.id)).state is JobState.executing
                assert await place.lines() == 0
            assert (await jobs.get(ctx.job.id)).state is JobState.completed
            return {"paid": -1}

        job = await pay.enqueue(5)
        assert await jobs.result(job) == {"paid": 5}
        await jobs.drain()
        record = await jobs.get(job.id)
    assert (record.state, record.attempt, record.result) == (JobState.completed, 1, {"paid": 5})
    assert await place.lines() == 1
    assert written == []
    assert told(events, job) == ["job_enqueued", "job_started", "job_completed"]
    assert events[-1].job == record
    assert events[-1].duration_ms >= 0


KINDS = [*(("sqlite", kind) for kind in SQLITE), *(("postgres", kind) for kind in POSTGRES)]


@pytest.mark.parametrize(("place", "kind"), KINDS, indirect=["place"])
async def test_every_kind_of_connection_will_do(place: Place, kind: str) -> None:
    async with place.supervisor() as jobs, place.app(kind) as app:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> str:
            if ctx.attempt == 1:
                await app.begin()
                await ctx.complete(connection=app.given, result="lost")
                await app.execute("INSERT INTO ledger (line) VALUES ('paid')")
                await app.rollback()
            await app.begin()
            await app.execute("INSERT INTO ledger (line) VALUES ('paid')")
            await ctx.complete(connection=app.given, result="kept")
            await app.commit()
            return "returned"

        assert await jobs.result(await pay.enqueue()) == "kept"
    assert await place.lines() == 1


async def test_after_a_rollback_what_the_handler_returns_counts(place: Place) -> None:
    async with place.supervisor() as jobs, place.app() as app:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> str:
            await app.begin()
            await app.execute("INSERT INTO ledger (line) VALUES ('paid')")
            await ctx.complete(connection=app.given, result="in vain")
            await app.rollback()
            return "returned"

        assert await jobs.result(await pay.enqueue()) == "returned"
    assert await place.lines() == 0


async def test_after_a_rollback_what_the_handler_raises_counts(
    place: Place, events: list[Any], telemetry: Telemetry
) -> None:
    async with place.supervisor(telemetry=telemetry) as jobs:

        @jobs.worker(context=True, retry_strategy=ConstantBackoff(0.01))
        async def pay(ctx: JobContext) -> str:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result=f"attempt {ctx.attempt}")
                if ctx.attempt == 1:
                    raise ValueError("before the commit")
            return "returned"

        job = await pay.enqueue()
        assert await jobs.result(job) == "attempt 2"
        record = await jobs.get(job.id)
    assert (record.attempt, [error.type for error in record.errors]) == (2, ["ValueError"])
    assert await place.lines() == 1
    assert told(events, job) == ["job_enqueued", "job_started", "job_failed", "job_started", "job_completed"]


async def raise_an_error(_ctx: JobContext) -> None:
    raise ValueError("after the commit")


async def snooze(_ctx: JobContext) -> None:
    raise Snooze(1)


async def cancel(_ctx: JobContext) -> None:
    raise Cancel("pointless")


async def discard(_ctx: JobContext) -> None:
    raise Discard("never")


async def take_too_long(ctx: JobContext) -> None:
    await ctx.cancelled.wait()
    await asyncio.Event().wait()


@pytest.mark.parametrize("end", [raise_an_error, snooze, cancel, discard, take_too_long], ids=lambda end: end.__name__)
async def test_after_the_commit_nothing_that_the_handler_does_counts(
    place: Place,
    events: list[Any],
    telemetry: Telemetry,
    end: Callable[[JobContext], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place.supervisor(telemetry=telemetry) as jobs:

        @jobs.worker(context=True, timeout_seconds=1 if end is take_too_long else None)
        async def pay(ctx: JobContext) -> None:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result="paid")
            await end(ctx)

        with caplog.at_level(logging.WARNING, "jobs_async"):
            job = await pay.enqueue()
            report = await jobs.drain()
        assert (report.completed, report.total) == (1, 1)
        record = await jobs.get(job.id)
    assert (record.state, record.result, record.errors) == (JobState.completed, "paid", ())
    assert told(events, job) == ["job_enqueued", "job_started", "job_completed"]
    assert "stays completed" in caplog.text
    assert ("ValueError: after the commit" in caplog.text) is (end is raise_an_error)


async def test_a_stop_after_the_commit_leaves_it_completed(place: Place) -> None:
    committed = asyncio.Event()
    async with place.supervisor(shutdown_timeout=0.01) as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> None:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result="paid")
            committed.set()
            await asyncio.Event().wait()

        job = await pay.enqueue()
        await committed.wait()
    async with place.stranger() as stranger:
        record = await stranger.get(job.id)
    assert (record.state, record.attempt, record.result) == (JobState.completed, 1, "paid")


# ------------------------------------------------------------------------------------------- who no longer holds it


async def lose(place: Place, jobs: Supervisor, job: Job[Any]) -> None:
    async with place.store() as store:
        (lost,) = await store.apply([decide(job, Lost())])
        assert lost is not None


async def lose_to_another_run(place: Place, jobs: Supervisor, job: Job[Any]) -> None:
    async with place.store() as store:
        await store.apply([decide(job, Lost())])
        fetched = await store.fetch("default", 1, node=None)
        assert [claimed.id for claimed in fetched.jobs] == [job.id]
        await store.apply([decide(claimed, Lost()) for claimed in fetched.jobs])


async def be_replaced(place: Place, jobs: Supervisor, job: Job[Any]) -> None:
    async with place.stranger() as stranger:
        await stranger.enqueue("note", unique_key="k", unique_strategy=UniqueStrategy.CANCEL_EXISTING)


async def be_completed_and_deleted(place: Place, jobs: Supervisor, job: Job[Any]) -> None:
    async with place.store() as store:
        await store.complete(job)
        assert await store.delete([job.id]) == 1


LOSSES = [lose, lose_to_another_run, be_replaced, be_completed_and_deleted]


@pytest.mark.parametrize("lost", LOSSES, ids=lambda lost: lost.__name__)
async def test_a_run_that_no_longer_holds_its_job_writes_nothing(
    place: Place,
    events: list[Any],
    telemetry: Telemetry,
    lost: Callable[[Place, Supervisor, Job[Any]], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused: list[str] = []
    async with place.supervisor(telemetry=telemetry, queues={"default": 1}) as jobs:

        @jobs.worker
        async def note() -> None: ...

        @jobs.worker(context=True, retry_strategy=ConstantBackoff(0.01))
        async def pay(ctx: JobContext) -> str:
            if not refused:
                await lost(place, jobs, ctx.job)
            try:
                async with place.transaction() as connection:
                    await ctx.complete(connection=connection)
            except StaleClaim as error:
                refused.append(str(error))
                raise
            return "returned"

        job = await pay.options(unique_key="k").enqueue()
        await until(lambda: passed(lambda: "stale_settlement" in told(events, job)))
        await jobs.drain(with_scheduled=True)
    runs_again = lost in (lose, lose_to_another_run)
    assert len(refused) == 1
    assert "no longer held" in refused[0]
    assert await place.lines() == (1 if runs_again else 0)
    assert told(events, job).count("job_completed") == (1 if runs_again else 0)
    assert "failed in attempt" not in caplog.text


async def test_who_was_asked_to_cancel_writes_nothing_and_ends_as_cancelled(
    place: Place, events: list[Any], telemetry: Telemetry
) -> None:
    async with place.supervisor(telemetry=telemetry, heartbeat=NEVER, lease=4 * NEVER) as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> None:
            async with place.stranger() as stranger:
                await stranger.cancel(ctx.job.id)
            async with place.transaction() as connection:
                await ctx.complete(connection=connection)

        job = await jobs.wait(await pay.enqueue())
    assert (job.state, [error.type for error in job.errors]) == (JobState.cancelled, ["Cancelled"])
    assert await place.lines() == 0
    assert told(events, job)[-1] == "job_cancelled"


async def test_who_asks_to_cancel_after_the_commit_comes_too_late(place: Place) -> None:
    async with place.supervisor() as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> Any:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result="paid")
            with pytest.raises(IllegalTransition):
                await jobs.cancel(ctx.job.id)
            assert not ctx.cancelled.is_set()

        assert await jobs.result(await pay.enqueue()) == "paid"
    assert await place.lines() == 1


async def test_a_handler_that_goes_on_after_the_commit_is_not_told_that_its_job_was_taken(place: Place) -> None:
    store = place.store()
    beats = 0
    beat = store.beat

    async def counted(*args: Any, **more: Any) -> Any:
        nonlocal beats
        answer = await beat(*args, **more)
        beats += 1
        return answer

    store.beat = counted  # type: ignore[method-assign]
    async with place.supervisor(store=store, heartbeat=0.02) as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> None:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result="paid")
            seen = beats
            await until(lambda: passed(lambda: beats > seen + 3 or ctx.cancelled.is_set()))
            assert ctx.cause is None
            await store.delete([ctx.job.id])
            await ctx.cancelled.wait()  # deleted it is taken

        job = await pay.enqueue()
        await jobs.drain()
        assert await jobs.find(JobQuery(ids=[job.id])) == []


# --------------------------------------------------------------------------------------------------- wrong use of it


async def test_once_in_a_transaction_and_once_in_all(place: Place) -> None:
    texts: list[str] = []
    async with place.supervisor() as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> Any:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result=1)
                with pytest.raises(OptionError) as error:
                    await ctx.complete(connection=connection, result=2)
                texts.append(str(error.value))
            with pytest.raises(StaleClaim) as late:
                async with place.transaction() as connection:
                    await ctx.complete(connection=connection, result=3)
            texts.append(str(late.value))

        job = await pay.enqueue()
        assert await jobs.result(job) == 1
        assert (await jobs.get(job.id)).errors == ()
    assert "has completed it already" in texts[0]
    assert "is completed already" in texts[1]
    assert await place.lines() == 1


async def test_it_is_for_the_handler_of_the_job_alone(place: Place) -> None:
    kept: list[JobContext] = []
    async with place.supervisor() as jobs, place.app() as app:

        @jobs.worker(context=True)
        async def first(ctx: JobContext) -> None:
            kept.append(ctx)
            assert await jobs.result(await second.enqueue()) == "refused"

        @jobs.worker
        async def second() -> str:
            with pytest.raises(OptionError, match="is for the handler of job"):
                await kept[0].complete(connection=app.given)
            return "refused"

        job = await jobs.wait(await first.enqueue())
        assert job.state is JobState.completed, job.errors
        with pytest.raises(OptionError, match="is for the handler of job"):
            await kept[0].complete(connection=app.given)


async def test_a_result_without_json_form_is_refused_before_anything_is_written(place: Place) -> None:
    async with place.supervisor() as jobs, place.app() as app:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> str:
            async with transaction(app):
                with pytest.raises(ArgsError):
                    await ctx.complete(connection=app.given, result=object())
            await ctx.progress(0.5)
            return "returned"

        job = await pay.enqueue()
        assert await jobs.result(job) == "returned"
        progress = (await jobs.get(job.id)).progress
        assert progress is not None
        assert progress.fraction == 0.5


@pytest.mark.parametrize("given", [object(), None], ids=["object", "None"])
async def test_what_is_no_connection_is_an_option_error_and_the_job_goes_on(place: Place, given: object) -> None:
    async with place.supervisor() as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> str:
            with pytest.raises(OptionError, match="connection="):
                await ctx.complete(connection=given)
            return "returned"

        assert await jobs.result(await pay.enqueue()) == "returned"


async def test_progress_after_it_does_nothing_and_waits_for_nothing(place: Place) -> None:
    async with place.supervisor() as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> None:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection)
                async with asyncio.timeout(1):  # a lock would be waited for longer
                    await ctx.progress(0.9)

        job = await jobs.wait(await pay.enqueue())
        assert (job.state, job.progress) == (JobState.completed, None)


# ---------------------------------------------------------------------------------------------------- with the others


async def test_the_next_job_of_the_same_unique_key_can_be_enqueued_in_the_same_transaction(place: Place) -> None:
    ran: list[int] = []
    async with place.supervisor() as jobs:

        @jobs.worker(context=True)
        async def step(ctx: JobContext, n: int) -> None:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result=n)
                if n < 3:
                    following = await step.options(unique_key="k", connection=connection).enqueue(n + 1)
                    assert not following.duplicate
            ran.append(n)

        await step.options(unique_key="k").enqueue(1)
        report = await jobs.drain()
    assert (report.completed, report.total) == (3, 3)
    assert ran == [1, 2, 3]
    assert await place.lines() == 3


async def test_many_at_once_some_of_which_roll_back(place: Place) -> None:
    async with place.supervisor(queues={"default": 20}) as jobs:

        @jobs.worker(context=True, max_attempts=1)
        async def pay(ctx: JobContext, n: int) -> int:
            if n % 4 == 0:
                return n
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result=n)
                if n % 4 == 1:
                    raise ValueError(n)
            if n % 4 == 2:
                raise ValueError(n)
            return -n

        stored = await jobs.enqueue_many([pay.draft(n) for n in range(40)])
        report = await jobs.drain()
        ended = [await jobs.get(job.id) for job in stored]
    assert (report.completed, report.discarded, report.total) == (30, 10, 40)
    assert [job.result for job in ended] == [None if n % 4 == 1 else n for n in range(40)]
    assert await place.lines() == 20


async def test_handlers_in_threads_can_do_it_too(place: Place) -> None:
    async with place.supervisor() as jobs:

        @jobs.worker(context=True)
        def pay(ctx: JobContext) -> Any:
            async def in_the_loop() -> None:
                async with place.transaction() as connection:
                    await ctx.complete(connection=connection, result="paid")

            anyio.from_thread.run(in_the_loop)

        assert await jobs.result(await pay.enqueue()) == "paid"
    assert await place.lines() == 1


@pytest.mark.parametrize("around", [ObservedStore, FaultyStore], ids=lambda around: around.__name__)
async def test_stores_around_another_let_it_through(place: Place, around: Callable[[Store], Store]) -> None:
    async with place.supervisor(store=around(place.store())) as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> Any:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result="paid")

        assert await jobs.result(await pay.enqueue()) == "paid"
    assert await place.lines() == 1


async def test_the_harness_runs_it_in_earnest(place: Place) -> None:
    async with Harness(place.store()) as jobs:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> Any:
            async with place.transaction() as connection:
                await ctx.complete(connection=connection, result="paid")
            raise ValueError("after the commit")

        ended = await jobs.run_one(await pay.enqueue())
    assert (ended.state, ended.result) == (JobState.completed, "paid")
    assert await place.lines() == 1
