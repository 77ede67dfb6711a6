"""What is sampled: queues, nodes and the event loop, on virtual time; by one process of several; past failures."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from jobs_async import Draft, JobStarted, MemoryStore, OptionError, StoreBusy, Supervisor
from jobs_async.core.store import MAX_PAGE, Node
from jobs_async.observe import Gauges, Observability
from jobs_async.observe.gauges import SAMPLE_SECONDS
from jobs_async.observe.metrics import Metrics
from jobs_async.testing.faults import Fault, FaultyStore
from jobs_async.testing.loop import VirtualTimeLoop
from tests.observe.support import read
from tests.runtime.support import World, now, virtual

FIRST, LAST = "0" * 32, "z" * 32
"""Ids of nodes before and after all that are drawn."""


def measured() -> tuple[Observability, Metrics]:
    observability = Observability("shop").prometheus()
    assert observability.metrics is not None
    return observability, observability.metrics


async def join(world: World, node: str, **fields: Any) -> None:
    """Another process, somewhere."""
    fields = {"host": "elsewhere", "pid": 1, **fields}
    await world.store.beat(Node(id=node, **fields), 1e9, join=True)


def away(_call: int, verb: str) -> Fault | None:
    """A plan: the store cannot count."""
    return Fault(error=StoreBusy("away")) if verb == "tally" else None


def silent(_call: int, verb: str) -> Fault | None:
    """A plan: the store never says which nodes there are."""
    return Fault(hangs=True) if verb == "nodes" else None


def cluster(metrics: Metrics) -> list[Any]:
    """All that is told of queues and nodes."""
    families = (metrics.depth, metrics.oldest, metrics.limit, metrics.paused, metrics.executing, metrics.heartbeat)
    return [number for family in families for number in read(family).items()]


class Logged(logging.Handler):
    """What is logged inside `with`, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("jobs_async.observe").addHandler(self)
        return self.lines

    def __exit__(self, *_exc: object) -> None:
        logging.getLogger("jobs_async.observe").removeHandler(self)


@virtual
async def test_queues_and_nodes_are_told(world: World) -> None:
    observability, metrics = measured()
    release = asyncio.Event()
    jobs = world.supervisor(queues={"default": 2, "mail": 5})

    @jobs.worker
    async def wait() -> None:
        await release.wait()

    async with jobs:
        running = await wait.enqueue()
        await world.seen.wait(JobStarted, running)
        await jobs.pause_queue("mail")
        for delay in (0, 0, 60):
            await wait.options(queue="mail", delay=delay).enqueue()
        await jobs.enqueue("nobody", queue="elsewhere")
        await asyncio.sleep(30)
        await Gauges(jobs, observability).sample()
        node = (await jobs.get(running)).node or ""
        depth = {key: number for key, number in read(metrics.depth).items() if number}
        assert depth == {
            ("default", "executing"): 1,
            ("elsewhere", "available"): 1,
            ("mail", "available"): 2,
            ("mail", "scheduled"): 1,
        }
        assert read(metrics.depth)["default", "available"] == 0
        assert read(metrics.oldest) == {("default",): 0, ("elsewhere",): 30, ("mail",): 30}
        assert read(metrics.limit) == {("default",): 2, ("mail",): 5}
        assert read(metrics.paused) == {("default",): 0, ("elsewhere",): 0, ("mail",): 1}
        assert read(metrics.executing) == {("default", node): 1, ("mail", node): 0}
        beats = read(metrics.heartbeat)
        assert list(beats) == [(node,)]
        assert 0 <= world.clock.now().timestamp() - beats[node,] <= 10
        release.set()


@virtual
async def test_the_oldest_job_is_the_one_due_the_longest(world: World) -> None:
    """A job of a lower id may have come due later, or have ended."""
    observability, metrics = measured()
    async with world.supervisor(queues={"other": 1}) as jobs:
        await jobs.enqueue("nobody", delay=100)
        await jobs.cancel(await jobs.enqueue("nobody"))
        await asyncio.sleep(10)
        await jobs.enqueue("nobody")
        await asyncio.sleep(100)
        await Gauges(jobs, observability).sample()
        assert read(metrics.oldest)["default",] == 100


@virtual
async def test_every_running_job_is_counted_however_many_there_are(world: World) -> None:
    observability, metrics = measured()
    jobs = world.supervisor(queues={})
    await jobs.enqueue_many([Draft("nobody") for _ in range(MAX_PAGE + 1)])
    claimed = await world.store.fetch("default", MAX_PAGE + 1, node=None)
    assert len(claimed.jobs) == MAX_PAGE + 1
    await Gauges(jobs, observability, always=True).sample()
    assert read(metrics.executing) == {("default", ""): MAX_PAGE + 1}


@virtual
async def test_limits_of_all_live_nodes_are_added_up(world: World) -> None:
    observability, metrics = measured()
    await join(world, LAST, queues={"default": 7, "cpu": 1})
    async with world.supervisor() as jobs:
        await jobs.scale_queue("default", 4)
        await asyncio.sleep(10)
        await Gauges(jobs, observability).sample()
        assert read(metrics.limit) == {("cpu",): 1, ("default",): 11}
        assert len(read(metrics.heartbeat)) == 2


@virtual
async def test_only_the_process_of_the_first_live_node_tells(world: World) -> None:
    observability, metrics = measured()
    async with world.supervisor() as jobs, Gauges(jobs, observability, interval=10):
        await asyncio.sleep(1)
        assert cluster(metrics)
        await join(world, FIRST)
        await asyncio.sleep(10)
        assert cluster(metrics) == []
        assert list(read(metrics.loop_lag)) == [()], "its own event loop is everybody's own affair"
        await world.store.beat(Node(id=FIRST), 0.0)
        await asyncio.sleep(10)
        assert cluster(metrics)


@virtual
async def test_a_node_is_known_by_its_id_whatever_its_host_and_number(world: World) -> None:
    """Containers may all have one name and the process number 1."""
    observability, metrics = measured()
    async with world.supervisor() as jobs:
        gauges = Gauges(jobs, observability)
        (ours,) = await world.store.nodes()
        await gauges.sample()
        assert cluster(metrics)
        await join(world, FIRST, host=ours.host, pid=ours.pid)
        await gauges.sample()
        assert cluster(metrics) == []


@pytest.mark.parametrize("always", [True, False])
def test_a_supervisor_without_queues_tells_only_where_it_is_to(always: bool) -> None:
    @virtual
    async def test(world: World) -> None:
        observability, metrics = measured()
        await join(world, FIRST)
        async with world.supervisor(queues={}) as jobs, Gauges(jobs, observability, always=always):
            await asyncio.sleep(1)
            assert bool(cluster(metrics)) is always

    test()


@virtual
async def test_it_looks_again_and_again_and_takes_everything_back_at_the_end(world: World) -> None:
    observability, metrics = measured()
    async with world.supervisor() as jobs:
        async with Gauges(jobs, observability, interval=10):
            await asyncio.sleep(1)
            assert read(metrics.depth)["default", "scheduled"] == 0
            await jobs.enqueue("nobody", delay=1000)
            await asyncio.sleep(8)
            assert read(metrics.depth)["default", "scheduled"] == 0
            await asyncio.sleep(2)
            assert read(metrics.depth)["default", "scheduled"] == 1
        assert cluster(metrics) == []
        assert read(metrics.loop_lag) == {}


@virtual
async def test_a_store_that_fails_is_logged_once_and_asked_again(world: World) -> None:
    observability, metrics = measured()
    store = FaultyStore(world.store, away)
    async with world.supervisor(store) as jobs, Gauges(jobs, observability, interval=10):
        with Logged() as lines:
            await asyncio.sleep(95)
            assert cluster(metrics) == []
            store.calm()
            await asyncio.sleep(10)
            assert cluster(metrics)
    assert lines == [
        "queues and nodes cannot be measured (StoreBusy: away); trying again",
        "queues and nodes can be measured again",
    ]


@virtual
async def test_what_was_told_is_taken_back_while_the_store_fails(world: World) -> None:
    observability, metrics = measured()
    store = FaultyStore(world.store)
    async with world.supervisor(store) as jobs, Gauges(jobs, observability, interval=10):
        await asyncio.sleep(1)
        assert cluster(metrics)
        store.plan = away
        await asyncio.sleep(10)
        assert cluster(metrics) == []


@virtual
async def test_a_store_that_never_answers_is_given_up(world: World) -> None:
    observability, metrics = measured()
    store = FaultyStore(world.store, silent)
    async with world.supervisor(store) as jobs:
        with Logged() as lines:
            async with Gauges(jobs, observability, interval=1):
                await asyncio.sleep(SAMPLE_SECONDS + 0.5)
                assert len(lines) == 1
                store.calm()
                await asyncio.sleep(2)
                assert cluster(metrics)


@virtual
async def test_an_end_does_not_wait_for_a_store_that_hangs(world: World) -> None:
    observability, metrics = measured()
    store = FaultyStore(world.store, silent)
    async with world.supervisor(store) as jobs:
        async with Gauges(jobs, observability):
            await asyncio.sleep(1)
            began = now()
        assert now() - began < 1
    assert cluster(metrics) == []


@virtual
async def test_a_closed_store_is_left_closed(world: World) -> None:
    """A Supervisor that has stopped is not brought back to life by being looked at."""
    observability, metrics = measured()
    opened = 0

    class Closed(MemoryStore):
        is_open = False

        async def open(self) -> None:
            nonlocal opened
            opened += 1

    jobs = Supervisor(Closed(clock=world.clock), clock=world.clock)
    await jobs.store.enqueue("nobody")
    with Logged() as lines:
        async with Gauges(jobs, observability, interval=1, always=True):
            await asyncio.sleep(5)
            assert (cluster(metrics), lines, opened) == ([], [], 0)


@virtual
async def test_off_nothing_is_looked_at(world: World) -> None:
    async with world.supervisor() as jobs:
        before = asyncio.all_tasks()
        async with Gauges(jobs, Observability("shop")) as gauges:
            await gauges.sample()
            assert asyncio.all_tasks() == before


@virtual
async def test_two_for_one_store_tell_the_same_once(world: World) -> None:
    observability, metrics = measured()
    async with world.supervisor() as jobs:
        await jobs.enqueue("nobody", delay=1000)
        async with Gauges(jobs, observability), Gauges(jobs, observability):
            await asyncio.sleep(1)
            assert read(metrics.depth)["default", "scheduled"] == 1


@virtual
async def test_gauges_are_entered_once(world: World) -> None:
    observability, _ = measured()
    async with world.supervisor() as jobs, Gauges(jobs, observability) as gauges:
        with pytest.raises(OptionError, match="in use"):
            await gauges.__aenter__()


@virtual
async def test_gauges_that_ended_may_begin_again(world: World) -> None:
    observability, metrics = measured()
    async with world.supervisor() as jobs:
        gauges = Gauges(jobs, observability)
        for _ in range(2):
            async with gauges:
                await asyncio.sleep(1)
                assert cluster(metrics)


@virtual
async def test_a_stranger_s_cancellation_is_logged_and_takes_everything_back(world: World) -> None:
    observability, metrics = measured()
    async with world.supervisor() as jobs, Gauges(jobs, observability):
        await asyncio.sleep(1)
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "jobs_async gauges"]
        with Logged() as lines:
            task.cancel()
            await asyncio.wait({task})
    assert lines == ["the gauges were cancelled by a stranger; they tell nothing from now on"]
    assert cluster(metrics) == []


@pytest.mark.parametrize("interval", [0, -1, float("nan"), "often"])
def test_an_interval_is_a_duration(interval: Any) -> None:
    with pytest.raises(OptionError):
        Gauges(Supervisor(), Observability("shop"), interval)


@virtual
async def test_the_worst_lag_since_the_last_look_is_told(world: World) -> None:
    observability, metrics = measured()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    async with world.supervisor() as jobs, Gauges(jobs, observability, interval=10):
        await asyncio.sleep(5)
        assert read(metrics.loop_lag) == {(): 0}
        loop.leap(3)  # as where a call blocks for so long
        await asyncio.sleep(6)
        (lag,) = read(metrics.loop_lag).values()
        assert 2.7 <= lag <= 3
        await asyncio.sleep(10)
        (lag,) = read(metrics.loop_lag).values()
        assert lag < 0.01
