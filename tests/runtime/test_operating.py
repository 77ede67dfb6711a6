"""What an operator does to jobs and queues while they run."""

from __future__ import annotations

import asyncio

import pytest

from jobs_async import (
    IllegalTransition,
    JobCancelled,
    JobCompleted,
    JobNotFound,
    JobQuery,
    JobStarted,
    JobState,
    OptionError,
    QueuePaused,
    QueueResumed,
    ResultError,
    UniqueConflict,
    UniqueStrategy,
    current_context,
)
from tests.runtime.support import World, now, virtual


@virtual
async def test_a_paused_queue_starts_nothing_until_resumed(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> None: ...

        await jobs.pause_queue("default")
        await jobs.pause_queue("default")
        job = await work.enqueue()
        await asyncio.sleep(100)
        assert (await jobs.get(job.id)).state is JobState.available
        await jobs.resume_queue("default")
        await jobs.wait(job)
        assert now() == pytest.approx(100, abs=0.2)
    assert [event.queue for event in world.seen.of(QueuePaused)] == ["default"], "told of changes only"
    assert len(world.seen.of(QueueResumed)) == 1


@virtual
async def test_a_pause_outlives_a_restart(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None: ...

    async with jobs:
        await jobs.pause_queue("default")
    async with jobs:
        job = await work.enqueue()
        with pytest.raises(TimeoutError):
            await jobs.wait(job, timeout=60)


@virtual
async def test_row_7_running_jobs_are_settled_while_their_queue_is_paused(world: World) -> None:
    async with world.supervisor(queues={"default": 20}) as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(5)

        await jobs.enqueue_many([work.draft() for _ in range(20)])
        await world.seen.wait(JobStarted, count=20)
        await jobs.pause_queue("default")
        await world.seen.wait(JobCompleted, count=20)
        assert await jobs.counts() == {("default", JobState.completed): 20}
        assert await world.store.is_paused("default")


@virtual
async def test_scaling_takes_effect_at_once_and_on_other_nodes_with_their_next_beat(world: World) -> None:
    async with world.supervisor(queues={"default": 1}) as jobs, world.supervisor(queues={"default": 1}) as other:
        running = peak = 0

        async def work(_args: object, _ctx: object) -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(10)
            running -= 1

        jobs.register_worker("work", work)
        other.register_worker("work", work)
        await jobs.scale_queue("default", 3)
        await asyncio.sleep(6)
        for _ in range(12):
            await jobs.enqueue("work")
        await world.seen.wait(JobCompleted, count=12)
        assert peak == 6


@virtual
async def test_a_waiting_job_is_cancelled_at_once(world: World) -> None:
    async with world.supervisor() as jobs:
        job = await jobs.enqueue("work", delay=1000)
        cancelled = await jobs.cancel(job.id)
        assert (cancelled.state, cancelled.last_error and cancelled.last_error.error) == (
            JobState.cancelled,
            "cancelled on request",
        )
        await world.seen.wait(JobCancelled, job)
        with pytest.raises(ResultError, match="was cancelled"):
            await jobs.result(job)
        with pytest.raises(IllegalTransition):
            await jobs.cancel(job.id)
        with pytest.raises(JobNotFound, match="job 999"):
            await jobs.cancel(999)


@pytest.mark.parametrize("manner", ["returns", "raises", "ignores"])
def test_a_running_job_ends_cancelled_whatever_it_does(manner: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        async with world.supervisor() as jobs:

            @jobs.worker
            async def work() -> str:
                if manner == "ignores":
                    await asyncio.sleep(1000)
                await current_context().cancelled.wait()
                if manner == "raises":
                    raise ValueError("in the middle")
                return "as far as I got"

            job = await work.enqueue()
            await world.seen.wait(JobStarted)
            assert (await jobs.cancel(job.id)).cancel_requested
            ended = await jobs.wait(job)
            assert ended.state is JobState.cancelled
            assert ended.result == ("as far as I got" if manner == "returns" else None)
            assert now() == pytest.approx(5 if manner == "ignores" else 0, abs=0.1)
            await world.seen.wait(JobCancelled, job)

    scenario()


@virtual
async def test_another_supervisor_can_cancel_a_running_job(world: World) -> None:
    async with world.supervisor() as jobs, world.supervisor(queues={}) as operator:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(1000)

        job = await work.on(jobs).enqueue()
        await world.seen.wait(JobStarted)
        await operator.cancel(job.id)
        assert (await operator.wait(job)).state is JobState.cancelled
        assert now() <= 5 + 5 + 1, "told with the next beat, cut 5 seconds later"


@virtual
async def test_a_job_may_be_named_by_its_record_or_its_id(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        job = await jobs.enqueue("work", delay=100)
        assert await jobs.get(job) == await jobs.get(job.id) == await jobs.get(job_id=job.id)
        assert (await jobs.edit(job, priority=3)).priority == 3
        assert (await jobs.cancel(job_id=job.id)).state is JobState.cancelled
        assert (await jobs.retry(job)).state is JobState.available
        await jobs.delete(job)
        with pytest.raises(JobNotFound):
            await jobs.get(job)
        with pytest.raises(OptionError, match="id"):
            await jobs.get("7")  # type: ignore[arg-type]


@virtual
async def test_a_dead_letter_runs_again_with_all_its_attempts(world: World) -> None:
    async with world.supervisor() as jobs:
        broken = True

        @jobs.worker(max_attempts=1)
        async def work() -> int:
            if broken:
                raise OSError
            return current_context().attempt

        job = await work.enqueue()
        assert (await jobs.wait(job)).state is JobState.discarded
        assert [dead.id for dead in await jobs.find(JobQuery(states=[JobState.discarded]))] == [job.id]
        broken = False
        again = await jobs.retry(job.id)
        assert (again.state, again.attempt) == (JobState.available, 0)
        assert await jobs.result(job) == 1


@virtual
async def test_retry_brings_a_waiting_job_forward_and_refuses_the_rest(world: World) -> None:
    async with world.supervisor(queues={"other": 1}) as jobs:
        later = await jobs.enqueue("work", delay=1000)
        assert (await jobs.retry(later.id)).state is JobState.available
        with pytest.raises(IllegalTransition, match="available already"):
            await jobs.retry(later.id)
        await world.store.claim("default")
        with pytest.raises(IllegalTransition, match="executing already"):
            await jobs.retry(later.id)


@virtual
async def test_a_second_life_must_not_break_uniqueness(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        first = await jobs.enqueue("work", unique_key="k")
        await jobs.cancel(first.id)
        twin = await jobs.enqueue("work", unique_key="k")
        with pytest.raises(UniqueConflict) as refused:
            await jobs.retry(first.id)
        assert refused.value.job.id == twin.id
        with pytest.raises(UniqueConflict):
            await jobs.enqueue("work", unique_key="k", unique_strategy=UniqueStrategy.REJECT)


@virtual
async def test_a_running_job_cannot_be_deleted(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        job = await jobs.enqueue("work")
        claimed = await world.store.claim("default")
        assert claimed is not None
        with pytest.raises(IllegalTransition, match="cancel it first"):
            await jobs.delete(job.id)
        await world.store.complete(claimed)
        await jobs.delete(job.id)
        with pytest.raises(JobNotFound):
            await jobs.get(job.id)
        with pytest.raises(JobNotFound):
            await jobs.delete(job.id)


@virtual
async def test_waiting_ends_with_the_job_or_in_time(world: World) -> None:
    async with world.supervisor() as jobs, world.supervisor(queues={}) as elsewhere:

        @jobs.worker
        async def work() -> str:
            await asyncio.sleep(30)
            return "done"

        job = await work.on(jobs).enqueue()
        with pytest.raises(TimeoutError):
            await jobs.wait(job, timeout=5)
        many = await asyncio.gather(*(elsewhere.wait(job) for _ in range(5)), jobs.wait(job.id))
        assert [(ended.id, ended.result) for ended in many] == [(job.id, "done")] * 6
        assert now() == pytest.approx(30, abs=1.5)
        with pytest.raises(JobNotFound):
            await jobs.wait(12345)
