"""Nodes die, stores go away, claims are lost: no job is, and none is settled by somebody who no longer holds it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobs_async import (
    ConstantBackoff,
    JobCompleted,
    JobDiscarded,
    JobFailed,
    JobRescued,
    JobSnoozed,
    JobStarted,
    JobState,
    JobStuck,
    MemoryStore,
    Snooze,
    StaleSettlement,
    StoreBusy,
    current_context,
)
from jobs_async.core.job import replace
from jobs_async.core.options import NewJob
from jobs_async.core.store import Beat, Fetched, Node
from tests.runtime.support import World, now, virtual


async def abandoned(world: World, node: str, **options: Any) -> int:
    """A job claimed by a node that will never beat again."""
    (job,) = await world.store.insert([NewJob("work", "{}", **options)])
    await world.store.beat(Node(id=node), 30, join=True)
    fetched = await world.store.fetch("default", 1, node=node)
    assert [claimed.id for claimed in fetched.jobs] == [job.id]
    return job.id


@virtual
async def test_the_job_of_a_dead_node_runs_again_within_45_seconds(world: World) -> None:
    job_id = await abandoned(world, "dead")
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> int:
            return current_context().attempt

        ended = await jobs.wait(job_id)
        assert now() <= 45
        assert (ended.result, ended.rescues) == (2, 1)
        rescued = await world.seen.wait(JobRescued)
        assert rescued.job.state is JobState.available, "at once the first time"
        assert (rescued.job.last_error.error, rescued.job.last_error.node) == ("rescued: node lost", "dead")


@virtual
async def test_a_lost_job_that_a_transaction_locks_holds_up_no_other(world: World) -> None:
    locked, *others = [await abandoned(world, "dead") for _ in range(4)]
    apply, is_locked = world.store.apply, True

    async def behind_a_lock(steps: Any) -> Any:
        if is_locked and any(step.job.id == locked for step in steps):
            raise StoreBusy("the rows are locked")
        return await apply(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.store, "apply", behind_a_lock)
        async with world.supervisor() as jobs:

            @jobs.worker
            async def work() -> None: ...

            for job_id in others:
                assert (await jobs.wait(job_id)).state is JobState.completed
            assert now() <= 45
            assert (await jobs.get(locked)).state is JobState.executing
            is_locked = False
            assert (await jobs.wait(locked)).state is JobState.completed


@virtual
async def test_a_live_node_keeps_its_jobs_however_long_they_run(world: World) -> None:
    async with world.supervisor(), world.supervisor() as jobs:
        runs = 0

        @jobs.worker(timeout_seconds=None)
        async def long() -> None:
            nonlocal runs
            runs += 1
            await asyncio.sleep(10_000)

        await asyncio.sleep(10)  # the node has told which workers it has
        job = await long.on(jobs).enqueue()
        await jobs.wait(job)
        assert runs == 1


@virtual
async def test_a_worker_only_another_node_has_is_left_to_it(world: World) -> None:
    async with world.supervisor() as old:
        async with world.supervisor(queues={"default": 1}) as new:

            @new.worker
            async def introduced() -> str:
                return "by the new release"

            await asyncio.sleep(10)
            stored = [await old.enqueue("introduced", {}) for _ in range(10)]
            assert {(await new.wait(job)).result for job in stored} == {"by the new release"}
            assert {job.attempt for job in await new.find()} == {1}
        orphan = await old.enqueue("introduced", {})
        assert (await old.wait(orphan)).state is JobState.discarded


@virtual
async def test_a_job_that_kills_its_nodes_is_discarded_in_the_end(world: World) -> None:
    async with world.supervisor(max_rescues=2):
        job_id = await abandoned(world, "dead-0")
        for deaths in (1, 2):
            event = await world.seen.wait(JobRescued, count=deaths)
            assert event.job.state is (JobState.available if deaths == 1 else JobState.retryable)
            async with asyncio.timeout(500):
                await world.store.beat(Node(id=f"dead-{deaths}"), 30, join=True)
                while not (await world.store.fetch("default", 1, node=f"dead-{deaths}")).jobs:
                    await asyncio.sleep(0.001)
                    await world.store.beat(Node(id=f"dead-{deaths}"), 30)
                    discarded = world.seen.of(JobDiscarded)
                    if discarded:  # the supervisor here knows no such worker
                        assert discarded[0].job.id == job_id
                        return
        assert (await world.seen.wait(JobDiscarded)).job.rescues == 3


@virtual
async def test_no_attempt_is_left_to_rescue_for(world: World) -> None:
    job_id = await abandoned(world, "dead", max_attempts=1)
    async with world.supervisor():
        event = await world.seen.wait(JobDiscarded)
        assert (event.job.id, event.error_msg) == (job_id, "rescued: node lost")


class Moody(MemoryStore):
    """A store that can be told to fail, before or after doing what it was asked."""

    away = False
    lossy = 0
    """How many of the next settlements are written and then answered with an error."""

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        self._refuse()
        return await super().fetch(queue, limit, node=node)

    async def apply(self, steps: Any) -> Any:
        self._refuse()
        answer = await super().apply(steps)
        if self.lossy:
            self.lossy -= 1
            raise StoreBusy("the answer got lost")
        return answer

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        self._refuse()
        return await super().beat(node, ttl, join=join)

    def _refuse(self) -> None:
        if self.away:
            raise StoreBusy("away")


@virtual
async def test_a_store_that_is_away_for_a_while_loses_nothing(world: World) -> None:
    store = Moody(clock=world.clock)
    async with world.supervisor(store, queues={"default": 5}) as jobs:

        @jobs.worker
        async def work(n: int) -> int:
            await asyncio.sleep(1)
            return n

        stored = await jobs.enqueue_many([work.draft(n) for n in range(20)])
        await world.seen.wait(JobStarted)
        store.away = True
        await asyncio.sleep(15)
        store.away = False
        assert [await jobs.result(job) for job in stored] == list(range(20))
        assert all(not job.rescues and job.attempt == 1 for job in await jobs.find())


@virtual
async def test_a_settlement_whose_answer_got_lost_counts_once(world: World) -> None:
    store = Moody(clock=world.clock)
    async with world.supervisor(store) as jobs:

        @jobs.worker
        async def work() -> str:
            store.lossy = 1
            return "done"

        job = await work.enqueue()
        assert await jobs.result(job) == "done"
        await world.seen.wait(JobCompleted, job)
        assert (await jobs.get(job.id)).attempt == 1
    assert not world.seen.of(StaleSettlement), "it was our own write that was met"


@pytest.mark.parametrize(("ending", "others"), [("fails", 0), ("fails", 1), ("snoozes", 0)])
def test_what_is_due_or_claimed_again_before_we_look_is_recognised_as_ours(ending: str, others: int) -> None:
    """The answer is lost, and by the time we ask the job is available again, or runs under the next claim."""

    @virtual
    async def scenario(world: World) -> None:
        class Late(Moody):
            async def apply(self, steps: Any) -> Any:
                try:
                    return await super().apply(steps)
                except StoreBusy:
                    await asyncio.sleep(1)
                    await self.fetch("default", others, node=None)  # stages, and claims for somebody else
                    raise

        store = Late(clock=world.clock)
        async with world.supervisor(store, queues={"default": 1}) as jobs:

            @jobs.worker(max_attempts=3, retry_strategy=ConstantBackoff(0.5))
            async def work() -> None:
                store.lossy = 1
                if ending == "snoozes":
                    raise Snooze(0.5)
                raise ValueError("not yet")

            job = await work.enqueue()
            told = await world.seen.wait(JobFailed if ending == "fails" else JobSnoozed, job)
            assert told.job.state is (JobState.retryable if ending == "fails" else JobState.scheduled)
            await jobs.pause_queue("default")
        assert not world.seen.of(StaleSettlement)

    scenario()


@virtual
async def test_row_11_a_lost_claim_is_found_among_more_running_jobs_than_a_page_holds(world: World) -> None:
    class Deaf(MemoryStore):
        loses = False

        async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
            fetched = await super().fetch(queue, limit, node=node)
            if self.loses and fetched.jobs:
                self.loses = False
                raise StoreBusy("the answer got lost")
            return fetched

    store = Deaf(None, clock=world.clock)
    async with world.supervisor(store, queues={"default": 1_010}) as jobs:
        done = asyncio.Event()

        @jobs.worker(timeout_seconds=None)
        async def work(waits: bool) -> None:
            if waits:
                await done.wait()

        await jobs.enqueue_many([work.draft(True) for _ in range(1_000)])
        await world.seen.wait(JobStarted, count=1_000)
        store.loses = True
        stray = await work.enqueue(False)
        assert (await jobs.wait(stray, timeout=60)).state is JobState.completed
        done.set()


@virtual
async def test_a_strategy_that_hangs_holds_up_no_page_of_lost_jobs(world: World) -> None:
    async def never(index: int) -> float:
        await asyncio.Event().wait()
        return 0.0

    lost = [await abandoned(world, f"dead-{n}", max_attempts=9) for n in range(20)]
    rows = [await world.store.get(job_id) for job_id in lost]
    for row in rows:
        world.store._keep(replace(row, rescues=1))
    async with world.supervisor() as jobs:
        jobs.register_worker("work", lambda _args, _ctx: None, retry_strategy=never)
        await world.seen.wait(JobRescued, count=20)
        assert now() <= 45 + 5


@virtual
async def test_a_handler_whose_job_was_taken_is_not_said_to_be_cancelled_on_request(world: World) -> None:
    async with world.supervisor() as jobs:
        enough = asyncio.Event()

        @jobs.worker
        async def deaf() -> None:
            while not enough.is_set():
                try:
                    await enough.wait()
                except asyncio.CancelledError:
                    continue

        job = await deaf.enqueue()
        await world.seen.wait(JobStarted)
        world.store._forget(job.id)
        assert (await world.seen.wait(JobStuck)).cause == "taken over"
        enough.set()


@virtual
async def test_a_node_that_lost_its_lease_cancels_its_handlers_and_goes_on_under_a_new_id(world: World) -> None:
    store = Moody(clock=world.clock)
    nodes: list[str | None] = []
    async with world.supervisor(store) as jobs:

        @jobs.worker(timeout_seconds=None)
        async def work() -> None:
            nodes.append(current_context().job.node)
            if len(nodes) == 1:
                await asyncio.sleep(1000)

        job = await work.enqueue()
        await world.seen.wait(JobStarted)
        store.away = True
        await asyncio.sleep(40)
        store.away = False
        ended = await jobs.wait(job)
        assert now() < 120
        assert len(nodes) == 2
        assert nodes[0] != nodes[1] == ended.node
        alive = [node for node in await store.nodes() if node.alive]
        assert [node.id for node in alive] == [nodes[1]]


@virtual
async def test_row_25_a_stale_settlement_changes_nothing(world: World) -> None:
    async with world.supervisor() as jobs:
        go = asyncio.Event()

        @jobs.worker
        async def work() -> str:
            await go.wait()
            return "late"

        job = await work.enqueue()
        await world.seen.wait(JobStarted)
        assert await world.store.rescue_stuck(0) == 0, "strictly longer"
        await asyncio.sleep(1)
        await jobs.pause_queue("default")
        assert await world.store.rescue_stuck(0.5) == 1
        go.set()
        await world.seen.wait(StaleSettlement, job)
        row = await jobs.get(job.id)
        assert (row.state, row.result) == (JobState.available, None)


@virtual
async def test_row_16_a_job_deleted_while_it_ran_is_let_go(world: World) -> None:
    async with world.supervisor(queues={"default": 1}) as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(1)

        job = await work.enqueue()
        await world.seen.wait(JobStarted)
        world.store._forget(job.id)
        await world.seen.wait(StaleSettlement, job)
        ended = await jobs.wait(await work.enqueue())
        assert ended.state is JobState.completed, "its slot was given back"
        assert [left.id for left in await jobs.find()] == [ended.id], "and it was not written again"


@virtual
async def test_a_clean_stop_leaves_no_live_node(world: World) -> None:
    async with world.supervisor():
        assert [node.alive for node in await world.store.nodes()] == [True]
    assert [node.alive for node in await world.store.nodes()] == [False]


def test_a_lease_must_outlast_four_heartbeats() -> None:
    from jobs_async import OptionError, Supervisor

    with pytest.raises(OptionError, match="4 heartbeats"):
        Supervisor(lease=10, heartbeat=3)


@virtual
async def test_row_3_a_claim_whose_answer_got_lost_is_handed_back_by_its_own_node(world: World) -> None:
    class Deaf(MemoryStore):
        loses = 1

        async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
            fetched = await super().fetch(queue, limit, node=node)
            if fetched.jobs and self.loses:
                self.loses -= 1
                raise StoreBusy("the answer got lost")
            return fetched

    store = Deaf(clock=world.clock)
    async with world.supervisor(store) as jobs:

        @jobs.worker
        async def work() -> int:
            return current_context().attempt

        @jobs.worker(timeout_seconds=None)
        async def long() -> None:
            await asyncio.sleep(200)

        stray = await work.enqueue()
        running = await long.enqueue()
        assert await jobs.result(stray) == 1, "the attempt that never was does not count"
        assert now() <= 45
        assert (await jobs.wait(running)).claim <= 2, "what really runs is left alone"
