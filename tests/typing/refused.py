"""What mypy and pyright must refuse: each line marked `# E:` by the checkers named, and no other line.

Checked by test_typing.py, never run. One mistake a line; the marker stands on the line where the checkers report it.
"""

from jobs_async import Draft, Job, JobContext, Supervisor, WorkerDef, worker
from jobs_async.testing import (
    Harness,
    assert_enqueued,
    crash_at_each_await,
    perform,
    perform_twice,
    refute_enqueued,
)

jobs = Supervisor()


@worker
async def add(a: int, b: int = 1) -> int:
    return a + b


@worker
async def send(to: str) -> str:
    return to


@worker
def crop(path: str, *, width: int) -> bytes:
    return path.encode()[:width]


@worker(context=True)
async def report(ctx: JobContext, day: str) -> float:
    return float(ctx.attempt)


def plain(a: int) -> int:
    return a


async def operating() -> None:
    await jobs.edit(7, unique_key="k")  # E: mypy,pyright
    await jobs.edit(7, priority="high")  # E: mypy,pyright
    await jobs.scale_queue("mail", "many")  # E: mypy,pyright


async def many() -> None:
    async for record in jobs.watch(await add.enqueue(1)):
        words: Job[str] = record  # E: mypy,pyright
        print(words)
    await jobs.watch(7)  # E: mypy,pyright
    jobs.watch("7")  # E: mypy,pyright
    await jobs.drain(with_scheduled="yes")  # E: mypy,pyright
    await jobs.drain(60)  # E: mypy,pyright
    await jobs.retry_all([7])  # E: mypy,pyright
    await jobs.cancel_all()  # E: mypy,pyright
    await jobs.delete_all(states=[])  # E: mypy,pyright
    Supervisor(retention="7d")  # E: mypy,pyright
    Supervisor(retention={"completed": 60})  # E: mypy,pyright


async def completing(ctx: JobContext, connection: object) -> None:
    await ctx.complete()  # E: mypy,pyright
    await ctx.complete(connection)  # E: mypy,pyright
    await ctx.complete(connection=connection, error="no")  # E: mypy,pyright


async def arguments(ctx: JobContext) -> None:
    await add.enqueue("1")  # E: mypy,pyright
    await add.enqueue()  # E: mypy,pyright
    await add.enqueue(1, c=2)  # E: mypy,pyright
    await add.enqueue(1, 2, 3)  # E: mypy,pyright
    await crop.enqueue("a.png", 3)  # E: mypy,pyright
    await crop.enqueue("a.png", width="3")  # E: mypy,pyright
    await add.enqueue(1, queue="mail")  # E: mypy,pyright
    await add.enqueue(1, delay=60)  # E: mypy,pyright
    await add.options(delay=60).enqueue("1")  # E: mypy,pyright
    await add.on(jobs).enqueue("1")  # E: mypy,pyright
    add.draft("1")  # E: mypy,pyright
    add.options(queue="mail").draft(1, queue="mail")  # E: mypy,pyright
    await report.enqueue(ctx, "monday")  # E: mypy,pyright
    await report.enqueue()  # E: mypy,pyright
    await send.enqueue(b"a@b.c")  # E: mypy,pyright


async def options() -> None:
    await add.options(prioritty=1).enqueue(1)  # E: mypy,pyright
    await add.options(priority="high").enqueue(1)  # E: mypy,pyright
    await add.options("mail").enqueue(1)  # E: mypy,pyright
    await add.options(scheduled_at=60).enqueue(1)  # E: mypy,pyright
    await add.options(max_attempts=None).enqueue(1)  # E: mypy,pyright
    await add.options(retry_strategy=plain).enqueue(1)  # E: mypy,pyright
    await add.on("memory://").enqueue(1)  # E: mypy,pyright


async def calls(ctx: JobContext) -> None:
    add.options(delay=60)(1)  # E: mypy,pyright
    await add("1")  # E: mypy,pyright
    await report("monday")  # E: mypy,pyright
    await report(ctx, 1)  # E: mypy,pyright
    crop("a.png")  # E: mypy,pyright
    await crop("a.png", width=1)  # E: mypy,pyright


async def results() -> None:
    job = await add.enqueue(1)
    text: Job[str] = job  # E: mypy,pyright
    job.result + 1  # E: mypy,pyright
    job.priority = 3  # E: mypy,pyright
    add.enqueue(1)  # E: mypy,pyright
    late: Job[int] = add.enqueue(1)  # E: mypy,pyright
    draft: Draft[str] = add.draft(1)  # E: mypy,pyright
    words: str = await jobs.result(job)  # E: mypy,pyright
    print(text, late, draft, words)


worker("mail")  # E: mypy,pyright
worker(queue=3)  # E: mypy,pyright
worker(queue_name="mail")  # E: mypy,pyright
worker(delay=60)  # E: mypy,pyright
worker(process="yes")  # E: mypy,pyright
worker(plain, queue="mail")  # E: mypy,pyright
worker(context=True)(plain)  # E: mypy,pyright
jobs.worker(queue=3)  # E: mypy,pyright
jobs.worker(context=True)(plain)  # E: mypy,pyright


@jobs.cron("@hourly")
async def hourly(a: int = 1) -> int:
    return a


async def cron() -> None:
    await hourly.enqueue("1")  # E: mypy,pyright
    await hourly("1")  # E: mypy,pyright
    await jobs.cron("@daily")(send).enqueue(1)  # E: mypy,pyright
    jobs.cron(15)  # E: mypy,pyright
    jobs.cron("@daily", catch_up="all")  # E: mypy,pyright
    jobs.cron("@daily", priority=1)  # E: mypy,pyright
    jobs.register_cron("a", "@daily", plain)  # E: mypy,pyright
    jobs.register_cron("a", "@daily", "add", prioritty=1)  # E: mypy,pyright
    jobs.register_cron("a", "@daily", "add", priority="high")  # E: mypy,pyright
    jobs.register_cron("a", "@daily", "add", timezone=1.5)  # E: mypy,pyright
    jobs.register_cron("a", "@daily", add.options(delay=1))  # E: mypy,pyright
    jobs.unregister_cron(7)  # E: mypy,pyright
    jobs.crons["a"] = jobs.crons["b"]  # E: mypy,pyright


async def supervisor() -> None:
    Supervisor(workers=[plain])  # E: mypy,pyright
    Supervisor(workers=[add.options(delay=1)])  # E: mypy,pyright
    await jobs.enqueue(add, 1)  # E: mypy,pyright
    await jobs.enqueue("add", {"a": 1}, prioritty=1)  # E: mypy,pyright
    await jobs.enqueue("add", {"a": 1}, scheduled_at="now")  # E: mypy,pyright
    await jobs.enqueue_many([add.enqueue(1)])  # E: mypy,pyright
    await jobs.wait("7")  # E: mypy,pyright
    await jobs.result(7)  # E: mypy,pyright
    WorkerDef("raw", plain)  # E: mypy,pyright


async def in_tests() -> None:
    await perform(add, {"a": 1}, prioritty=1)  # E: mypy,pyright
    await perform(add, {"a": 1}, priority="high")  # E: mypy,pyright
    await perform(add, {"a": 1}, attempt="last")  # E: mypy,pyright
    await perform(add, {"a": 1}, jobs=jobs)  # E: mypy,pyright
    await perform(add.options(priority=1), {"a": 1})  # E: mypy,pyright
    await perform(plain, {"a": 1})  # E: mypy,pyright
    await perform_twice(add, {"a": 1}, attempt=2)  # E: mypy,pyright
    job = await perform(add, {"a": 1})
    text: Job[str] = job  # E: mypy,pyright
    late: Job[int] = perform(add, {"a": 1})  # E: mypy,pyright
    await crash_at_each_await(add)  # E: mypy,pyright
    await assert_enqueued(add, prioritty=1)  # E: mypy,pyright
    await assert_enqueued(add, delay="soon")  # E: mypy,pyright
    await refute_enqueued(add, timeout=1)  # E: mypy,pyright
    Harness(clock="now")  # E: mypy,pyright
    print(text, late)
