"""`JobContext.complete` where no transaction can be joined: refused with a reason, and the job goes on."""

from __future__ import annotations

from typing import Any

import pytest

from jobs_async import JobContext, JobState, MemoryStore, OptionError, Supervisor, current_context, worker
from jobs_async.core.store import Store
from jobs_async.observe import ObservedStore
from jobs_async.testing import Harness
from jobs_async.testing.faults import FaultyStore


class Plain(MemoryStore):
    """A store of somebody's own, as the guide has it."""

    async def apply(self, steps: Any) -> Any:
        return await super().apply(steps)


@worker(context=True)
async def pay(ctx: JobContext) -> str:
    with pytest.raises(OptionError) as refused:
        await ctx.complete(connection=object(), result="never")
    await ctx.progress(0.5)
    return str(refused.value)


@pytest.mark.parametrize(
    "store",
    [MemoryStore, Plain, lambda: ObservedStore(MemoryStore()), lambda: FaultyStore(MemoryStore())],
    ids=["memory", "custom", "observed", "faulty"],
)
async def test_a_store_without_transactions_says_so(store: Any) -> None:
    async with Supervisor(store(), workers=[pay]) as jobs:
        job = await jobs.wait(await pay.on(jobs).enqueue(), timeout=30)
    assert job.state is JobState.completed
    assert "has no transactions to join with connection=" in str(job.result)
    assert job.progress is not None


async def test_the_harness_on_a_memory_store_says_so() -> None:
    async with Harness(workers=[pay]) as jobs:
        ended = await jobs.run_one(await pay.enqueue())
    assert "MemoryStore has no transactions" in str(ended.result)


async def test_an_error_of_the_stores_own_is_not_taken_for_that() -> None:
    class Broken(MemoryStore):
        async def apply(self, steps: Any, *, connection: object = None) -> Any:
            if connection is not None:
                raise TypeError("a bug")
            return await super().apply(steps)

    @worker(context=True, max_attempts=1)
    async def handler(ctx: JobContext) -> None:
        await ctx.complete(connection=object())

    store: Store = Broken()
    async with Supervisor(store, workers=[handler]) as jobs:
        job = await jobs.wait(await handler.on(jobs).enqueue(), timeout=30)
    assert (job.state, [error.error for error in job.errors]) == (JobState.discarded, ["TypeError: a bug"])


@worker(process=True)
def in_a_process() -> str:
    with pytest.raises(LookupError, match="in a worker process") as refused:
        current_context()
    return str(refused.value)


async def test_a_worker_process_has_no_context_to_complete_with() -> None:
    async with Supervisor(MemoryStore(), workers=[in_a_process]) as jobs:
        assert "in a worker process" in await jobs.result(await in_a_process.on(jobs).enqueue(), timeout=60)
