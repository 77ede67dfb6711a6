"""Cron in a fleet: each tick is enqueued once, whoever dies at whichever moment, and however clocks are set.

Time is virtual, so months pass in moments. Rows 27 to 35 of the catalogue are about schedulers that elect a leader;
here there is none, and what the rows ask of one is asked of any node.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime, timedelta, timezone
from itertools import takewhile
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from jobs_async import (
    ArgsError,
    CronError,
    Draft,
    Event,
    Job,
    JobDuplicate,
    JobEnqueued,
    JobOpts,
    JobState,
    MemoryStore,
    OptionError,
    Store,
    StoreBusy,
    Supervisor,
    UniqueStrategy,
    worker,
)
from jobs_async.core.cron import CronExpr
from jobs_async.core.options import NewJob
from jobs_async.core.query import MAX_PAGE, JobQuery
from jobs_async.core.schedule import LATEST
from jobs_async.core.store import Tick
from jobs_async.runtime import scheduler
from jobs_async.testing.faults import Fault, FaultyStore, Plan, odds
from jobs_async.testing.loop import BEGINNING, LoopClock, run_virtual
from tests.conftest import Measured
from tests.runtime.support import World, now, virtual

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
MINUTELY, HOURLY = "* * * * *", "0 * * * *"


async def until(second: float) -> None:
    """Let virtual time pass until so many seconds after the beginning, a midnight."""
    await asyncio.sleep(second - now())


async def fired(store: Store, name: str = "entry") -> list[Job[Any]]:
    """The jobs of an entry, in the order in which they were stored."""
    found: list[Job[Any]] = []
    query = JobQuery(limit=MAX_PAGE, newest_first=False)
    while jobs := await store.select(query):
        found += [job for job in jobs if job.meta.get("cron") == name]
        query = JobQuery(limit=MAX_PAGE, newest_first=False, after=jobs[-1].id)
    return found


async def ticks(store: Store, name: str = "entry") -> list[float]:
    """The ticks that were fired, in seconds after the beginning."""
    due = [datetime.fromisoformat(job.meta["cron_at"]) for job in await fired(store, name)]
    return [(at - BEGINNING).total_seconds() for at in due]


@contextmanager
def months_at_once() -> Iterator[None]:
    """Read the clock but once a day while nothing is due, and compute what several nodes ask only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CronExpr, "next_after", asked_once(CronExpr.next_after))
        patch.setattr(scheduler, "LOOK_EVERY", DAY)
        yield


def asked_once(next_after: Callable[[CronExpr, datetime], datetime]) -> Callable[[CronExpr, datetime], datetime]:
    """Until the next tick has come, it is the next tick."""
    known: dict[CronExpr, deque[tuple[datetime, datetime]]] = defaultdict(lambda: deque(maxlen=4))

    def answer(expr: CronExpr, at: datetime) -> datetime:
        for since, tick in known[expr]:
            if since <= at < tick:
                return tick
        tick = next_after(expr, at)
        known[expr].append((at, tick))
        return tick

    return answer


def producer(world: World, store: Store | None = None, text: str = MINUTELY, **options: Any) -> Supervisor:
    """A Supervisor that runs no jobs, with an entry of its own."""
    jobs = world.supervisor(store, queues={})
    jobs.register_cron("entry", text, "work", **options)
    return jobs


class Wall(LoopClock):
    """A wall clock that can be set; the uptime does not notice."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


def with_a_wall_clock(world: World) -> Wall:
    wall = world.clock = Wall()
    world.store = MemoryStore(clock=wall)
    return wall


# --- entries come and go ---


@virtual
async def test_an_entry_registered_before_the_start_runs_its_worker_at_each_tick(world: World) -> None:
    ran: list[tuple[int, float]] = []
    jobs = world.supervisor()

    @jobs.worker
    async def work(number: int) -> None:
        ran.append((number, now()))

    jobs.register_cron("entry", "*/5 * * * *", work, {"number": 7})
    async with jobs:
        await until(15 * MINUTE + 1)
    assert [(number, round(at)) for number, at in ran] == [(7, 300), (7, 600), (7, 900)]
    assert all(at % MINUTE < 0.01 for _, at in ran), "each at once"


@virtual
async def test_an_entry_registered_after_the_start_fires_its_next_tick(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        await until(59.9)
        jobs.register_cron("entry", MINUTELY, "work")
        await until(3 * MINUTE + 1)
    assert await ticks(world.store) == [60, 120, 180]


@virtual
async def test_an_entry_unregistered_fires_no_more_and_registered_again_goes_on(world: World) -> None:
    async with producer(world) as jobs:
        await until(2 * MINUTE + 1)
        entry = jobs.unregister_cron("entry")
        assert (entry.name, jobs.crons) == ("entry", {})
        await until(30 * MINUTE + 1)
        assert await ticks(world.store) == [60, 120]
        jobs.register_cron("entry", HOURLY, "work")
        await until(HOUR + 1)
    assert await ticks(world.store) == [60, 120, HOUR]


@virtual
async def test_an_entry_taken_away_over_its_tick_does_not_catch_up_with_it(world: World) -> None:
    async with producer(world, text="0 2 * * *") as jobs:
        await until(HOUR)
        jobs.unregister_cron("entry")
        await until(2 * HOUR + 5 * MINUTE)
        jobs.register_cron("entry", "0 2 * * *", "work")
        await until(3 * HOUR)
        assert await ticks(world.store) == []
        await until(DAY + 2 * HOUR + 1)
    assert await ticks(world.store) == [DAY + 2 * HOUR]


@virtual
async def test_an_entry_replaced_in_one_breath_fires_by_its_new_schedule_alone(world: World) -> None:
    async with producer(world) as jobs:
        await until(MINUTE + 1)
        jobs.unregister_cron("entry")
        jobs.register_cron("entry", "*/3 * * * *", "work", {"new": True})
        await until(6 * MINUTE + 1)
        found = await fired(world.store)
    assert await ticks(world.store) == [60, 180, 360]
    assert [job.args for job in found] == [{}, {"new": True}, {"new": True}]


@virtual
async def test_a_tick_that_was_fired_is_not_fired_again_by_a_new_entry_of_the_same_name(world: World) -> None:
    async with producer(world) as jobs:
        await until(MINUTE + 1)
        jobs.unregister_cron("entry")
        jobs.register_cron("entry", MINUTELY, "work", {"new": True})
        await until(2 * MINUTE - 1)
    assert await ticks(world.store) == [60]


@virtual
async def test_an_entry_unregistered_while_its_neighbour_is_stored_fires_no_more(world: World) -> None:
    slow = FaultyStore(world.store)
    jobs = world.supervisor(slow, queues={})
    for name in ("neighbour", "entry"):
        jobs.register_cron(name, MINUTELY, "work")
    async with jobs:
        await until(MINUTE - 1)
        slow.plan = odds(Random(1), slow=1.0, seconds=4.0)
        await until(MINUTE + 0.01)
        assert await ticks(world.store, "neighbour") == [], "it is on its way"
        jobs.unregister_cron("entry")
        await until(2 * MINUTE - 1)
    assert await ticks(world.store, "neighbour") == [60]
    assert await ticks(world.store) == []


@virtual
async def test_the_entries_can_be_looked_at_and_not_changed(world: World) -> None:
    jobs = producer(world)
    assert [(name, str(entry.expression)) for name, entry in jobs.crons.items()] == [("entry", MINUTELY)]
    with pytest.raises(TypeError):
        jobs.crons["other"] = jobs.crons["entry"]  # type: ignore[index]


@virtual
async def test_the_decorator_makes_workers_of_functions_and_leaves_workers_what_they_are(world: World) -> None:
    ran: list[str] = []
    jobs = world.supervisor()

    @jobs.cron("*/2 * * * *", args={"greeting": "hello"})
    async def greet(greeting: str = "hi") -> None:
        ran.append(greeting)

    @worker(queue="default", priority=5, context=True)
    async def report(ctx: Any) -> None:
        ran.append(f"{ctx.job.priority} {ctx.job.meta['cron']} {ctx.job.meta['cron_at']}")

    assert jobs.cron("*/3 * * * *", name="thrice", opts=JobOpts(priority=-5))(report) is report
    assert list(jobs.crons) == ["greet", "thrice"]
    async with jobs:
        await until(3 * MINUTE + 1)
        await greet("called")
        await greet.enqueue("enqueued")
        await asyncio.sleep(1)
    assert ran == ["hello", "-5 thrice 2030-01-01T00:03:00+00:00", "called", "enqueued"]


@virtual
async def test_one_worker_may_have_several_entries(world: World) -> None:
    jobs = world.supervisor(queues={})

    @jobs.cron("*/2 * * * *", name="even")
    @jobs.cron("1-59/2 * * * *")
    async def work() -> None: ...

    async with jobs:
        await until(4 * MINUTE + 1)
    assert (await ticks(world.store, "even"), await ticks(world.store, "work")) == ([120, 240], [60, 180])


# --- what a job of a tick is ---


@virtual
async def test_its_options_are_those_of_the_entry_over_those_of_the_worker(world: World) -> None:
    jobs = world.supervisor(queues={})
    jobs.register_worker("work", lambda args, ctx: None, opts=JobOpts(queue="slow", priority=3))
    jobs.register_cron("entry", MINUTELY, "work", {}, JobOpts(priority=1, tags=["a"]), priority=2, meta={"mine": 1})
    async with jobs:
        await until(MINUTE + 1)
    [job] = await fired(world.store)
    assert (job.queue, job.priority, job.tags) == ("slow", 2, ("a",))
    assert job.meta == {"mine": 1, "cron": "entry", "cron_at": "2030-01-01T00:01:00+00:00"}
    assert job.scheduled_at == BEGINNING + timedelta(minutes=1)
    assert job.state is JobState.available


@virtual
async def test_a_delay_counts_from_the_tick(world: World) -> None:
    async with producer(world, delay=20):
        await until(MINUTE + 1)
    [job] = await fired(world.store)
    assert job.state is JobState.scheduled
    assert 80 <= (job.scheduled_at - BEGINNING).total_seconds() < 80.1


# --- one fleet ---


@virtual
async def test_row_31_five_nodes_on_one_store_enqueue_one_job_per_tick(world: World) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(producer(world))
        await until(10 * MINUTE + 1)
    assert await ticks(world.store) == [minute * MINUTE for minute in range(1, 11)]


@virtual
async def test_row_28_three_supervisors_of_one_host_are_no_leaders_and_disturb_each_other_in_nothing(
    world: World,
) -> None:
    """All three have the same host name and process id; the ticks go on with any one of them."""
    nodes = [producer(world) for _ in range(3)]
    for node in nodes:
        await node.start()
    await until(MINUTE + 1)
    hosts = {(node.host, node.pid) for node in await world.store.nodes()}
    assert len(hosts) <= 1
    for number, node in enumerate(nodes[:2], 2):
        await node.stop()
        await until(number * MINUTE + 1)
    await nodes[0].start()
    await nodes[2].stop()
    await until(4 * MINUTE + 1)
    await nodes[0].stop()
    assert await ticks(world.store) == [60, 120, 180, 240]


@virtual
async def test_row_27_a_node_whose_answers_get_lost_doubles_nothing(world: World) -> None:
    """Nineteen days of doubled cron came of a leader that had not heard of its end."""
    deaf = FaultyStore(world.store, odds(Random(5), lose=0.9, only=["insert"]))
    with months_at_once():
        async with producer(world, text=HOURLY), producer(world, deaf, text=HOURLY):
            await until(19 * DAY + 1)
    assert await ticks(world.store) == [hour * HOUR for hour in range(1, 19 * 24 + 1)]
    assert deaf.faults > 100


@pytest.mark.parametrize("survivor", range(3))
def test_rows_29_32_any_single_survivor_fires_every_tick_and_nobody_had_to_be_elected(survivor: int) -> None:
    async def main() -> None:
        world = World()
        nodes = [Node(world, seed) for seed in range(3)]
        for node in nodes:
            await node.start()
        await until(MINUTE + 1)
        for node in nodes:
            if node is not nodes[survivor]:
                node.kill()
        await until(5 * MINUTE + 1)
        await nodes[survivor].jobs.stop()
        assert await ticks(world.store) == [60, 120, 180, 240, 300]

    in_a_fleet(main)


@virtual
async def test_row_32_a_node_half_alive_keeps_no_tick_from_the_others(world: World) -> None:
    """All its loops run, and none of them gets anything done."""
    broken = FaultyStore(world.store)
    half_alive = producer(world, broken)
    async with half_alive, producer(world):
        await until(1)
        broken.plan = odds(Random(1), fail=1.0)
        await until(5 * MINUTE + 1)
        assert half_alive.is_running
        broken.calm()
    assert await ticks(world.store) == [60, 120, 180, 240, 300]


@virtual
async def test_nodes_with_entries_of_their_own_fire_those(world: World) -> None:
    first, second = world.supervisor(queues={}), world.supervisor(queues={})
    first.register_cron("entry", MINUTELY, "work")
    second.register_cron("other", MINUTELY, "work")
    async with first, second:
        await until(MINUTE + 1)
    assert (await ticks(world.store), await ticks(world.store, "other")) == ([60], [60])


@virtual
async def test_who_runs_no_queue_fires_ticks_for_whoever_does(world: World) -> None:
    ran: list[float] = []
    other = world.supervisor(poll_interval=1)
    other.register_worker("work", ran_at(ran))
    async with producer(world), other:
        await until(3 * MINUTE - 1)
    assert [round(at, 0) // MINUTE for at in ran] == [1, 2]
    assert await world.store.tally() == {("default", JobState.completed): 2}


def ran_at(ran: list[float]) -> Callable[[Any, Any], Any]:
    async def handle(args: Any, ctx: Any) -> None:
        ran.append(now())

    return handle


@virtual
async def test_a_drain_fires_no_ticks(world: World) -> None:
    jobs = world.supervisor()

    @jobs.cron(MINUTELY)
    async def work() -> None:
        await asyncio.sleep(3 * MINUTE)

    await work.enqueue()
    assert (await jobs.drain()).completed == 1
    assert now() >= 3 * MINUTE
    assert await ticks(world.store, "work") == []


# --- overlap ---


async def overlap(world: World, strategy: UniqueStrategy) -> None:
    """Runs of 150 seconds, due every minute."""
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(150)

    jobs.register_cron("entry", MINUTELY, work, unique_key="entry", unique_strategy=strategy)
    async with jobs, producer(world, unique_key="entry", unique_strategy=strategy):
        await until(8 * MINUTE - 1)


@virtual
async def test_a_unique_key_skips_ticks_while_a_run_goes_on_and_tells_of_each(world: World) -> None:
    await overlap(world, UniqueStrategy.IGNORE_NEW)
    assert await ticks(world.store) == [60, 240, 420]
    assert len(world.seen.of(JobEnqueued)) == 3
    assert len(world.seen.of(JobDuplicate)) == 4


@virtual
async def test_a_tick_that_is_rejected_is_skipped_for_good(world: World) -> None:
    """Where it were not spent, it would come late: as soon as the key is free."""
    await overlap(world, UniqueStrategy.REJECT)
    assert await ticks(world.store) == [60, 240, 420]
    inserted = [(job.inserted_at - BEGINNING).total_seconds() for job in await fired(world.store)]
    assert [round(at) for at in inserted] == [60, 240, 420]


@virtual
async def test_a_rejected_tick_is_not_caught_up_with_by_who_comes_when_the_key_is_free(world: World) -> None:
    options: dict[str, Any] = {"unique_key": "k", "unique_strategy": UniqueStrategy.REJECT}
    async with producer(world, text=HOURLY, **options) as jobs:
        holder = await jobs.enqueue("work", unique_key="k")
        await until(HOUR + 1)
        await jobs.cancel(holder.id)
        async with producer(world, text=HOURLY, **options):
            await asyncio.sleep(1)
    assert await ticks(world.store) == []


@virtual
async def test_without_a_unique_key_runs_overlap(world: World) -> None:
    async with producer(world, unique_key="other"):
        await until(3 * MINUTE + 1)
    assert await ticks(world.store) == [60], "held by a job that nobody runs"
    async with producer(world):
        await until(5 * MINUTE + 1)
    assert await ticks(world.store) == [60, 240, 300]


@virtual
async def test_a_new_run_may_replace_the_old_one(world: World) -> None:
    async with producer(world, unique_key="k", unique_strategy=UniqueStrategy.CANCEL_EXISTING):
        await until(3 * MINUTE + 1)
    assert [job.state.name for job in await fired(world.store)] == ["cancelled", "cancelled", "available"]


# --- catching up ---


async def away(world: World, catch_up: Any, late: float) -> list[float]:
    """An hourly entry whose only node leaves before a tick and is back so many seconds after it."""
    async with producer(world, text=HOURLY, catch_up=catch_up):
        await until(HOUR - 5 * MINUTE)
    await until(HOUR + late)
    async with producer(world, text=HOURLY, catch_up=catch_up):
        await asyncio.sleep(1)
        return await ticks(world.store)


@pytest.mark.parametrize(
    ("catch_up", "late", "expected"),
    [
        ("latest", 0, [HOUR]),
        ("latest", 120, [HOUR]),
        ("latest", 599, [HOUR]),
        ("latest", 601, []),
        ("latest", 3300, []),
        ("none", 0, []),
        ("none", 120, []),
    ],
)
def test_row_30_a_tick_missed_by_all_is_caught_up_with_for_ten_minutes(
    catch_up: str, late: float, expected: list[float]
) -> None:
    async def main() -> None:
        assert await away(World(), catch_up, late) == expected

    run_virtual(main())


@virtual
async def test_only_the_latest_of_several_missed_ticks_is_caught_up_with(world: World) -> None:
    async with producer(world):
        await until(MINUTE + 1)
    await until(7.5 * MINUTE)
    async with producer(world):
        await until(8 * MINUTE + 1)
    assert await ticks(world.store) == [60, 420, 480]


@virtual
async def test_what_others_fired_while_a_node_was_away_is_not_missed(world: World) -> None:
    leaver = producer(world, text=HOURLY)
    await leaver.start()
    async with producer(world, text=HOURLY):
        await until(HOUR - 1)
        await leaver.stop()
        await until(HOUR + 2 * MINUTE)
        await leaver.start()
        await asyncio.sleep(1)
    await leaver.stop()
    assert await ticks(world.store) == [HOUR]


@virtual
async def test_the_first_registration_catches_up_with_nothing(world: World) -> None:
    await until(HOUR + 2 * MINUTE)
    async with producer(world, text=HOURLY), producer(world, text=HOURLY):
        await asyncio.sleep(MINUTE)
    async with producer(world, text=HOURLY):
        await asyncio.sleep(MINUTE)
    assert await ticks(world.store) == []


SCHEDULE: dict[str, Any] = {"text": "0 6 1 * tue", "timezone": "UTC", "day_or": True}


@pytest.mark.parametrize(
    "before",
    [
        {"text": "0 7 * * *"},
        {"timezone": 7200},
        {"timezone": "Asia/Tokyo"},
        {"timezone": "Africa/Abidjan"},
        {"day_or": False},
    ],
    ids=str,
)
def test_a_schedule_just_edited_has_missed_nothing(before: dict[str, Any]) -> None:
    """Its new schedule names a tick of five minutes ago, at which the old one was in force."""

    async def main() -> None:
        world = World()
        async with producer(world, **(SCHEDULE | before)):
            await until(6 * HOUR - 5 * MINUTE)
        await until(6 * HOUR + 5 * MINUTE)
        async with producer(world, **SCHEDULE):
            await asyncio.sleep(1)
        assert 6 * HOUR not in await ticks(world.store)

    run_virtual(main())


@virtual
async def test_the_same_schedule_with_other_work_goes_on_where_it_was(world: World) -> None:
    async with producer(world, text=HOURLY, priority=1):
        await until(HOUR - 1)
    await until(HOUR + 1)
    async with producer(world, text=HOURLY, priority=2):
        await asyncio.sleep(1)
    assert [job.priority for job in await fired(world.store)] == [2]


@virtual
async def test_row_30_a_monthly_entry_is_caught_up_with_after_thirty_days_away(world: World) -> None:
    """Ticks are remembered for a week, the last word of a series for as long as nobody speaks of it."""
    async with producer(world, text="0 0 1 * *"):
        await until(DAY)
    await until(31 * DAY + 2 * MINUTE)
    async with producer(world, text="0 0 1 * *"):
        await asyncio.sleep(1)
    assert await ticks(world.store) == [31 * DAY]


@virtual
async def test_row_30_a_weekly_entry_fires_though_everything_is_deployed_anew_each_day(world: World) -> None:
    """At the very minute at which it is due, too: no countdown in a process is what it depends on."""
    with months_at_once():
        for day in range(30):
            async with producer(world, text="0 9 * * thu"):
                await until((day + 1) * DAY + 9 * HOUR - MINUTE)
            await until((day + 1) * DAY + 9 * HOUR + MINUTE)
    thursdays = [day * DAY + 9 * HOUR for day in range(1, 30) if (BEGINNING + timedelta(days=day)).weekday() == 3]
    assert len(thursdays) == 4
    assert await ticks(world.store) == thursdays


# --- a fleet whose nodes are killed ---

NODE: ContextVar[Node] = ContextVar("NODE")
Schedule = tuple[str, str | int]
"""An expression and its time zone."""
ONE_ENTRY: Mapping[str, Schedule] = {"entry": (MINUTELY, "UTC")}


class Node:
    """A Supervisor that can be killed: nothing it does gets through any more, and nothing of it goes on."""

    def __init__(
        self, world: World, seed: object, plan: Plan | None = None, entries: Mapping[str, Schedule] = ONE_ENTRY
    ) -> None:
        self._line = FaultyStore(world.store, plan)
        self.jobs = Supervisor(self._line, queues={}, max_stall=None, clock=world.clock, rng=Random(f"{seed}"))
        for name, (text, zone) in entries.items():
            self.jobs.register_cron(name, text, "work", timezone=zone)
        self.tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        context = copy_context()
        context.run(NODE.set, self)
        await asyncio.get_running_loop().create_task(self.jobs.start(), context=context)

    def kill(self) -> None:
        self._line.cut()
        for task in self.tasks:
            task.cancel()


def in_a_fleet(main: Callable[[], Any], seed: int | None = None) -> Any:
    """Run what starts nodes: each of their tasks is known as theirs."""

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        if (node := NODE.get(None)) is not None:
            node.tasks.add(task)
            task.add_done_callback(node.tasks.discard)
        return task

    async def run() -> Any:
        loop: Any = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        return await main()

    with quiet():
        return run_virtual(run(), seed)


@contextmanager
def quiet() -> Iterator[None]:
    """A killed node's loops say that a stranger has cancelled them."""
    logger = logging.getLogger("jobs_async")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


async def killed_at_a_tick(dice: Random) -> tuple[list[float], list[float]]:
    """Kill a node within 50 ms of a tick, while another lives or within ten minutes before it comes back."""
    world, entries = World(), {"entry": ("*/10 * * * *", "UTC")}
    hurry = odds(dice, slow=0.8, seconds=0.03)
    nodes = [Node(world, dice.random(), hurry, entries) for _ in range(dice.randint(1, 3))]
    for node in nodes:
        await node.start()
    for tick in (600.0, 1200.0, 1800.0):
        await until(tick + dice.uniform(-0.05, 0.05))
        dead = dice.randrange(len(nodes))
        nodes[dead].kill()
        await asyncio.sleep(dice.uniform(0, 590))
        nodes[dead] = Node(world, dice.random(), hurry, entries)
        await nodes[dead].start()
    await until(2400 + 5.0)
    for node in nodes:
        await node.jobs.stop()
    return await ticks(world.store), [600.0, 1200.0, 1800.0, 2400.0]


def test_row_30_a_node_killed_around_a_tick_neither_loses_nor_doubles_it() -> None:
    """200 kills and more, each with the store's answers under way."""
    for seed in range(70):
        found, expected = in_a_fleet(lambda seed=seed: killed_at_a_tick(Random(seed)), seed)  # type: ignore[misc]
        assert found == expected, f"seed {seed}"


# --- F16 ---

ZONES: Sequence[str | int] = (
    "Europe/Paris",
    "America/Chicago",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "Asia/Kathmandu",
    -18000,
)
A_FEW = ("30 2 * * *", "*/30 1-2 * * sun")
"""A fixed time in the hour that most clocks skip or repeat, and times that follow them through it, on their day."""
MORE = (*A_FEW, "30 1 * * *", "15 2 * * sun", "0 0 * * *", "0 9 13 * fri")


class Deadly(MemoryStore):
    """Kills whoever stored every 7th tick: before he hears of it, or before he stores another one."""

    def __init__(self, clock: LoopClock, dice: Random) -> None:
        super().__init__(None, clock=clock)
        self.fired: dict[str, list[datetime]] = defaultdict(list)
        self.kills = 0
        self.alive: set[Node] = set()
        self._dice = dice
        self._doomed: Node | None = None
        self._stored = 0

    async def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None) -> list[Job[Any]]:
        node = NODE.get()
        if new and node is self._doomed:
            await self._kill(node)
        jobs = await super().insert(new, tick=tick)
        if jobs and tick is not None:
            self.fired[tick.name].append(tick.at)
            self._stored += 1
            if self._stored % 7 == 0 and self._dice.random() < 0.5:
                await self._kill(node)
            elif self._stored % 7 == 0:
                self._doomed = node
        return jobs

    async def _kill(self, node: Node) -> None:
        self._doomed = None
        if len(self.alive) > 1:
            self.kills += 1
            self.alive.remove(node)
            node.kill()
            await asyncio.sleep(0)


async def year_of_kills(entries: Mapping[str, Schedule], days: int, seed: int) -> Deadly:
    """Five nodes; whoever is killed is replaced within six hours."""
    world, dice = World(), Random(seed)
    store = world.store = Deadly(world.clock, dice)
    end = days * DAY
    while now() < end:
        while len(store.alive) < 5:
            node = Node(world, dice.random(), odds(dice, slow=0.3, seconds=0.03), entries)
            store.alive.add(node)
            await node.start()
        await until(min(end, now() + dice.uniform(0, 6 * HOUR)))
    for node in store.alive:
        await node.jobs.stop()
    return store


def oracle(text: str, zone: str | int, end: datetime) -> list[datetime]:
    """What cronsim says; where it does not know half an hour's change (Lord Howe), every minute is asked."""
    tz = timezone(timedelta(seconds=zone)) if isinstance(zone, int) else ZoneInfo(zone)
    if text.startswith("*") and zone == "Australia/Lord_Howe":
        return [at for at in half_hours_until(end) if is_met(text, at.astimezone(tz))]
    found = (at.astimezone(UTC) for at in CronSim(text, BEGINNING.astimezone(tz)))
    return list(takewhile(lambda at: at < end, found))


def half_hours_until(end: datetime) -> Iterator[datetime]:
    return (
        BEGINNING + number * timedelta(minutes=30) for number in range(1, (end - BEGINNING) // timedelta(minutes=30))
    )


def is_met(text: str, wall: datetime) -> bool:
    """For the one expression above that follows the clock through its changes."""
    assert text == "*/30 1-2 * * sun"
    return wall.minute in (0, 30) and wall.hour in (1, 2) and wall.isoweekday() == 7


@pytest.mark.parametrize(
    ("texts", "hourly_in"),
    [(A_FEW, ()), pytest.param(MORE, ("Europe/Paris", "America/St_Johns"), marks=pytest.mark.soak)],
    ids=["short", "full"],
)
def test_f16_rows_31_33_400_days_in_6_zones_miss_no_tick_and_double_none(
    texts: Sequence[str], hourly_in: Sequence[str], measured: Measured
) -> None:
    entries: dict[str, Schedule] = {f"{text} {zone}": (text, zone) for text in texts for zone in ZONES}
    entries |= {f"hourly {zone}": ("30 * * * *", zone) for zone in hourly_in}
    with months_at_once():
        store = in_a_fleet(lambda: year_of_kills(entries, 400, seed=16))
    end = BEGINNING + timedelta(days=400)
    expected = {name: oracle(text, zone, end) for name, (text, zone) in entries.items()}
    missing = {name: set(times) - set(store.fired[name]) for name, times in expected.items()}
    assert not any(missing.values())
    assert {name: sorted(times) for name, times in store.fired.items()} == expected, "none double, none besides"
    stored = sum(map(len, expected.values()))
    assert store.kills > stored / 7 * 0.8
    measured(
        "F16",
        f"400 days, {len(ZONES)} zones, {len(entries)} entries, 5 nodes, {store.kills:,} killed",
        f"missing 0, double 0 of {stored:,} ticks",
    )


# --- clocks that are set ---


@pytest.mark.parametrize("back", [1, 30, 61, 150, 3600, 10_000])
def test_row_34_a_clock_set_back_fires_no_minute_again(back: float) -> None:
    async def main() -> None:
        world = World()
        wall = with_a_wall_clock(world)
        async with producer(world), producer(world):
            await until(10 * MINUTE + 0.5)
            wall.ahead = timedelta(seconds=-back)
            await until(10 * MINUTE + back + 3 * MINUTE - 1)
        found = await ticks(world.store)
        assert len(found) == len(set(found)), "none twice"
        first = min(1, (600.5 - back) // MINUTE + 1)
        assert sorted(found) == [minute * MINUTE for minute in range(int(first), 13) if minute or back >= 600.5]

    run_virtual(main())


@pytest.mark.parametrize("forward", [1, 30, 61, 150, 3600, 86_400, 10 * 365 * 86_400])
def test_row_34_a_clock_set_forward_fires_the_latest_tick_of_the_last_ten_minutes(forward: float) -> None:
    async def main() -> None:
        world = World()
        wall = with_a_wall_clock(world)
        async with producer(world), producer(world, text=MINUTELY):
            await until(10 * MINUTE + 0.5)
            wall.ahead = timedelta(seconds=forward)
            await until(11 * MINUTE)
            assert max(await ticks(world.store)) > 9 * MINUTE + forward
            wall.ahead = timedelta(0)
            await until(20 * MINUTE + 1)
        found = await ticks(world.store)
        assert len(found) == len(set(found)), "none twice, once the clock was right again"
        assert set(found) >= {minute * MINUTE for minute in range(1, 21)}

    run_virtual(main())


@virtual
async def test_row_34_nodes_whose_clocks_disagree_fire_each_tick_once(world: World) -> None:
    async with AsyncExitStack() as stack:
        for seconds in (-45, 0, 20, 59):
            wall = Wall()
            wall.ahead = timedelta(seconds=seconds)
            jobs = Supervisor(world.store, queues={}, max_stall=None, clock=wall)
            jobs.register_cron("entry", MINUTELY, "work")
            await stack.enter_async_context(jobs)
        await until(10 * MINUTE)
    found = await ticks(world.store)
    assert found == [minute * MINUTE for minute in range(11)], (
        "the one that is ahead leads, the others have nothing to do"
    )


# --- what goes wrong ---

AWAY = Fault(error=StoreBusy("away"))


@virtual
async def test_a_store_that_is_away_at_a_tick_gets_it_when_it_is_back(world: World) -> None:
    store = FaultyStore(world.store)
    async with producer(world, store, text=HOURLY):
        await until(HOUR - 1)
        store.plan = lambda _call, _primitive: AWAY
        await until(HOUR + 2 * MINUTE)
        store.calm()
        await until(HOUR + 3 * MINUTE)
        assert await ticks(world.store) == [HOUR]
        await until(2 * HOUR + 1)
    assert await ticks(world.store) == [HOUR, 2 * HOUR]


@virtual
async def test_a_store_away_for_longer_than_a_tick_may_be_late_costs_that_tick_and_no_other(world: World) -> None:
    store = FaultyStore(world.store)
    async with producer(world, store, text=HOURLY):
        await until(HOUR - 1)
        store.plan = lambda _call, _primitive: AWAY
        await until(HOUR + LATEST.total_seconds() + 1)
        store.calm()
        await until(2 * HOUR + 1)
    assert await ticks(world.store) == [2 * HOUR]


@virtual
async def test_a_store_that_does_not_answer_is_asked_again(world: World) -> None:
    store = FaultyStore(world.store)
    async with producer(world, store, text=HOURLY):
        await until(HOUR - 1)
        store.plan = lambda _call, _primitive: Fault(hangs=True)
        await until(HOUR + 1)
        store.calm()
        await until(HOUR + MINUTE)
        assert await ticks(world.store) == [HOUR]


@pytest.mark.parametrize("lost", [Fault(error=ConnectionError, done=True), Fault(hangs=True, done=True)], ids=str)
def test_an_answer_that_gets_lost_gives_one_job(lost: Fault) -> None:
    async def main() -> None:
        world = World()
        store = FaultyStore(world.store)
        async with producer(world, store):
            await until(MINUTE - 1)
            store.plan = lambda _call, _primitive: lost
            await until(MINUTE + 1)
            store.calm()
            await until(2 * MINUTE + 1)
        assert await ticks(world.store) == [60, 120]

    run_virtual(main())


@virtual
async def test_a_start_before_a_store_that_is_away_fires_when_it_is_back(world: World) -> None:
    store = FaultyStore(world.store, lambda _call, _primitive: AWAY)
    async with producer(world, store):
        await until(50)
        store.calm()
        await until(4 * MINUTE + 1)
    assert (await ticks(world.store))[-2:] == [180, 240]


@virtual
async def test_a_start_before_a_store_that_stays_away_catches_up_with_nothing_that_is_too_old_by_then(
    world: World,
) -> None:
    async with producer(world, text=HOURLY):
        await until(HOUR - 1)
    await until(HOUR + 5 * MINUTE)
    store = FaultyStore(world.store, odds(Random(1), fail=1.0, only=["insert"]))
    async with producer(world, store, text=HOURLY):
        await until(HOUR + 30 * MINUTE)
        store.calm()
        await until(2 * HOUR + 1)
    assert await ticks(world.store) == [2 * HOUR]


@virtual
async def test_a_full_store_gets_the_tick_when_there_is_room(world: World) -> None:
    world.store = MemoryStore(1, clock=world.clock)
    async with producer(world, text=HOURLY) as jobs:
        blocker = await jobs.enqueue("work")
        await until(HOUR + MINUTE)
        assert await ticks(world.store) == []
        await jobs.delete(blocker.id)
        await until(HOUR + 2 * MINUTE)
    assert await ticks(world.store) == [HOUR]


class Picky(MemoryStore):
    """Fails whenever it is given a job of one worker."""

    async def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None) -> list[Job[Any]]:
        if any(item.worker == "bad" for item in new):
            raise RuntimeError("on purpose")
        return await super().insert(new, tick=tick)


@virtual
async def test_an_entry_that_cannot_be_stored_holds_up_no_neighbour(world: World) -> None:
    """Its own retries pause for 5 seconds at most, and nobody is later than that."""
    world.store = Picky(clock=world.clock)
    jobs = world.supervisor(queues={})
    for name, work in (("first", "work"), ("bad", "bad"), ("last", "work")):
        jobs.register_cron(name, MINUTELY, work)
    async with jobs:
        await until(20 * MINUTE + 6)
    for name in ("first", "last"):
        assert await ticks(world.store, name) == [minute * MINUTE for minute in range(1, 21)]
        assert max((job.inserted_at - job.scheduled_at).total_seconds() for job in await fired(world.store, name)) < 6
    assert await ticks(world.store, "bad") == []


@virtual
async def test_a_strict_supervisor_says_that_it_does_not_know_a_worker_and_leaves_the_tick_to_who_does(
    world: World,
) -> None:
    strict = world.supervisor(queues={}, strict=True)
    strict.register_cron("entry", HOURLY, "unknown")
    strict.register_worker("known", lambda args, ctx: None)
    strict.register_cron("neighbour", HOURLY, "known")
    async with strict:
        await until(HOUR + 1)
        assert await ticks(world.store) == []
        assert await ticks(world.store, "neighbour") == [HOUR]
        knows = world.supervisor(queues={}, strict=True)
        knows.register_worker("unknown", lambda args, ctx: None)
        knows.register_cron("entry", HOURLY, "unknown")
        async with knows:
            await asyncio.sleep(1)
    assert await ticks(world.store) == [HOUR]


@virtual
async def test_arguments_that_fit_a_worker_no_longer_are_refused_at_each_tick_and_neighbours_go_on(
    world: World,
) -> None:
    jobs = world.supervisor(queues={})
    jobs.register_cron("entry", MINUTELY, "resize", {"size": 3})

    @jobs.worker
    async def resize(width: int) -> None: ...

    jobs.register_cron("neighbour", MINUTELY, resize, {"width": 3})
    async with jobs:
        await until(2 * MINUTE + 1)
    assert (await ticks(world.store), await ticks(world.store, "neighbour")) == ([], [60, 120])


@virtual
async def test_an_entry_that_cannot_be_enqueued_is_logged_with_its_name(
    world: World,
) -> None:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("jobs_async")
    logger.addHandler(handler)
    try:
        jobs = world.supervisor(queues={}, strict=True)
        jobs.register_cron("entry", MINUTELY, "unknown")
        async with jobs:
            await until(MINUTE + 1)
    finally:
        logger.removeHandler(handler)
    assert "cron entry entry cannot be enqueued" in records


@virtual
async def test_a_stop_during_a_tick_lets_it_through_once(world: World) -> None:
    store = FaultyStore(world.store)
    jobs = producer(world, store)
    async with jobs:
        await until(MINUTE - 1)
        store.plan = lambda _call, _primitive: Fault(before=0.5, after=0.3)
        await until(MINUTE + 0.2)
        assert await ticks(world.store) == []
        assert (await jobs.stop()).is_clean
    assert await ticks(world.store) == [60]
    async with jobs:
        await until(MINUTE + 5)
    assert await ticks(world.store) == [60]


@virtual
async def test_a_stop_while_the_store_does_not_answer_ends_in_time_and_the_tick_is_caught_up_with(
    world: World,
) -> None:
    store = FaultyStore(world.store)
    jobs = producer(world, store)
    async with jobs:
        await until(MINUTE - 1)
        store.plan = lambda _call, _primitive: Fault(hangs=True)
        await until(MINUTE + 0.2)
        began = now()
    assert now() - began <= 6
    store.calm()
    async with jobs:
        await until(MINUTE + 20)
    assert await ticks(world.store) == [60]


@virtual
async def test_who_was_stopped_fires_no_more(world: World) -> None:
    jobs = producer(world)
    async with jobs:
        await until(MINUTE + 1)
    await until(10 * MINUTE)
    assert await ticks(world.store) == [60]


def block(seconds: float) -> None:
    """As a handler that computes for so long without giving way."""
    loop: Any = asyncio.get_running_loop()
    loop.leap(seconds)


@virtual
async def test_a_loop_blocked_over_several_ticks_fires_the_latest_of_them(world: World) -> None:
    async with producer(world):
        await until(MINUTE + 10)
        block(150)
        await until(5 * MINUTE + 1)
    assert await ticks(world.store) == [60, 180, 240, 300]


@virtual
async def test_without_catching_up_a_tick_noticed_a_minute_late_is_skipped(world: World) -> None:
    async with producer(world, catch_up="none", text="*/3 * * * *"):
        await until(3 * MINUTE - 10)
        block(50)
        await until(6 * MINUTE - 10)
        block(80)
        await until(9 * MINUTE + 1)
    assert await ticks(world.store) == [180, 540]


# --- what is told ---


@virtual
async def test_each_tick_is_told_of_once_by_the_node_that_fired_it(world: World) -> None:
    async with producer(world), producer(world), producer(world):
        await until(3 * MINUTE + 1)
    told = [event.job.meta["cron_at"][14:16] for event in world.seen.of(JobEnqueued)]
    assert told == ["01", "02", "03"]
    assert not world.seen.of(JobDuplicate)


@virtual
async def test_a_handler_that_fails_costs_no_tick(world: World) -> None:
    def fail(event: Event) -> None:
        raise ValueError("on purpose")

    jobs = producer(world)
    assert jobs.telemetry is not None
    jobs.telemetry.attach(fail)
    async with jobs:
        await until(5 * MINUTE + 1)
    assert await ticks(world.store) == [60, 120, 180, 240, 300]


# --- what is refused at once ---


@worker
async def known(a: int = 1) -> None: ...


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Supervisor], object]]] = {
    "no expression": (CronError, "five fields", lambda jobs: jobs.register_cron("a", "", "work")),
    "six fields": (CronError, "five fields", lambda jobs: jobs.register_cron("a", "0 0 * * * *", "work")),
    "no text": (CronError, "string", lambda jobs: jobs.register_cron("a", 5, "work")),  # type: ignore[arg-type]
    "never": (CronError, "never fires", lambda jobs: jobs.register_cron("a", "0 0 31 2 *", "work")),
    "zone": (CronError, "zone", lambda jobs: jobs.register_cron("a", MINUTELY, "work", timezone="Mars/Base")),
    "a boolean for a zone": (CronError, "zone", lambda jobs: jobs.register_cron("a", MINUTELY, "work", timezone=True)),
    "no boolean": (
        CronError,
        "day_or",
        lambda jobs: jobs.register_cron("a", MINUTELY, "work", day_or="no"),  # type: ignore[arg-type]
    ),
    "twice": (CronError, "registered already", lambda jobs: jobs.register_cron("taken", MINUTELY, "work")),
    "catch up": (
        CronError,
        "catch_up",
        lambda jobs: jobs.register_cron("a", MINUTELY, "work", catch_up="all"),  # type: ignore[arg-type]
    ),
    "no name": (OptionError, "name", lambda jobs: jobs.register_cron("", MINUTELY, "work")),
    "a list for a name": (
        OptionError,
        "name",
        lambda jobs: jobs.register_cron(["a"], MINUTELY, "work"),  # type: ignore[arg-type]
    ),
    "no worker": (OptionError, "worker", lambda jobs: jobs.register_cron("a", MINUTELY, 7)),  # type: ignore[arg-type]
    "a dict for options": (
        OptionError,
        "JobOpts",
        lambda jobs: jobs.register_cron("a", MINUTELY, "work", {}, {"priority": 1}),  # type: ignore[arg-type]
    ),
    "unknown option": (
        OptionError,
        "prio",
        lambda jobs: jobs.register_cron("a", MINUTELY, "work", prio=1),  # type: ignore[call-arg]
    ),
    "out of bounds": (OptionError, "max_attempts", lambda jobs: jobs.register_cron("a", MINUTELY, "w", max_attempts=0)),
    "of one job": (
        OptionError,
        "single job",
        lambda jobs: jobs.register_cron("a", MINUTELY, "work", idempotency_key="k"),
    ),
    "at one time": (
        OptionError,
        "single job",
        lambda jobs: jobs.register_cron("a", MINUTELY, Draft("work", None, JobOpts(scheduled_at=BEGINNING))),
    ),
    "draft and more": (
        OptionError,
        "a Draft brings",
        lambda jobs: jobs.register_cron("a", MINUTELY, Draft("work"), {"a": 1}),
    ),
    "no JSON": (ArgsError, "JSON", lambda jobs: jobs.register_cron("a", MINUTELY, "work", object())),
    "misfit": (ArgsError, "do not fit", lambda jobs: jobs.register_cron("a", MINUTELY, "known", {"nope": 1})),
    "unknown name": (CronError, "no cron entry", lambda jobs: jobs.unregister_cron("a")),
    "decorated": (CronError, "five fields", lambda jobs: jobs.cron("nonsense")(known)),
}


@pytest.mark.parametrize(("error", "says", "attempt"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_at_registration_and_leaves_nothing(
    error: type[Exception], says: str, attempt: Callable[[Supervisor], object]
) -> None:
    jobs = Supervisor(queues={}, workers=[known])
    jobs.register_cron("taken", MINUTELY, "work")
    with pytest.raises(error, match=says) as refusal:
        attempt(jobs)
    assert refusal.type is error
    assert list(jobs.crons) == ["taken"]


async def test_a_decorator_that_is_refused_has_registered_no_worker() -> None:
    jobs = Supervisor(queues={})
    with pytest.raises(CronError):

        @jobs.cron("nonsense")
        async def sweep() -> None: ...

    jobs.register_worker("sweep", lambda _args, _ctx: None)
    with pytest.raises(OptionError, match="name"):
        jobs.unregister_cron(["a"])  # type: ignore[arg-type]
