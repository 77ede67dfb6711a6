"""One job, run by all that would run it in earnest; and what becomes of it when its process dies on the way."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from anyio import CapacityLimiter
from msgspec import Struct

from jobs_async.core import binding
from jobs_async.core.errors import NotBound, OptionError, WorkerNotFound
from jobs_async.core.job import WAITING, Job
from jobs_async.core.options import Draft, JobOpts
from jobs_async.core.workers import ContextWorker, Enqueuer, Worker, WorkerDef
from jobs_async.runtime.processes import Processes
from jobs_async.runtime.run import Cause, Run
from jobs_async.testing.harness import Harness

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping

    from typing_extensions import Unpack

    from jobs_async.core.context import JobContext
    from jobs_async.core.options import JobOptions

R = TypeVar("R")
C = TypeVar("C")
Typed = Worker[..., C] | ContextWorker[..., C]
"""A worker itself, without options of its own; the keywords of `perform` are those."""


@overload
async def perform(
    worker: Typed[Awaitable[R]],
    args: object = ...,
    /,
    *,
    jobs: Harness | None = ...,
    attempt: int = ...,
    **options: Unpack[JobOptions],
) -> Job[R]: ...
@overload
async def perform(
    worker: Typed[R],
    args: object = ...,
    /,
    *,
    jobs: Harness | None = ...,
    attempt: int = ...,
    **options: Unpack[JobOptions],
) -> Job[R]: ...
@overload
async def perform(
    worker: WorkerDef | str,
    args: object = ...,
    /,
    *,
    jobs: Harness | None = ...,
    attempt: int = ...,
    **options: Unpack[JobOptions],
) -> Job[Any]: ...
async def perform(
    worker: Any,
    args: object = None,
    /,
    *,
    jobs: Harness | None = None,
    attempt: int = 1,
    **options: Any,
) -> Job[Any]:
    """Enqueue a job and run one attempt of it at once: arguments are stored and read back, the timeout, retries, result
    and telemetry are those of the real thing. The record as it is then: completed, retryable, discarded …

    `args` are the worker's parameters by name. The job goes to `jobs`, or else to the Harness that the worker is
    attached to, or else to one of its own that is gone afterwards. `attempt` makes it that attempt.

    Raises:
        ArgsError, OptionError: the arguments or options cannot be stored, or do not fit.
        WorkerNotFound: a name that no worker of `jobs` bears.
    """
    with _scene(worker, args, jobs, options) as (harness, draft):
        return await harness.run_one(await harness.put(draft), attempt=attempt)


@overload
async def perform_twice(
    worker: Typed[Awaitable[R]],
    args: object = ...,
    /,
    *,
    jobs: Harness | None = ...,
    **options: Unpack[JobOptions],
) -> Job[R]: ...
@overload
async def perform_twice(
    worker: Typed[R], args: object = ..., /, *, jobs: Harness | None = ..., **options: Unpack[JobOptions]
) -> Job[R]: ...
@overload
async def perform_twice(
    worker: WorkerDef | str, args: object = ..., /, *, jobs: Harness | None = ..., **options: Unpack[JobOptions]
) -> Job[Any]: ...
async def perform_twice(
    worker: Any, args: object = None, /, *, jobs: Harness | None = None, **options: Any
) -> Job[Any]:
    """As `perform`, but the process dies when the handler has returned and before that is stored; then the same job
    runs again, as it will after a rescue. What the handler does should be there once. A job that has no second attempt
    is discarded instead, and does not run again.

    Raises:
        As `perform`.
    """
    with _scene(worker, args, jobs, options) as (harness, draft):
        job = await harness.put(draft)
        await _run_and_die(harness, job, None)
        return await _run_again(harness, job)


class Crash(Struct, frozen=True):
    """A death, and what came after it."""

    awaits: int | None
    """How often the handler had waited for something before; None: it had returned, and that was not stored."""
    job: Job[Any]
    """The record after the run that followed."""


async def crash_at_each_await(
    worker: WorkerDef | str,
    args: object = None,
    /,
    *,
    jobs: Harness | None = None,
    **options: Unpack[JobOptions],
) -> AsyncGenerator[Crash]:
    """Run a job whose process dies at its first await, then one that dies at its second, and so on to one that dies
    after its last line; each then runs again to its end. After each, what the handler does should be there once:

        async for crash in crash_at_each_await(charge, {"order": 7}):
            assert await payments.of(order=7) == [100], crash
            await payments.clear()

    The dying handler is cancelled at that await, and its outcome is lost: `finally` and `async with` do run, as a
    database rolls back what a dead client had open. A handler in a thread or a process dies after its last line only.

    Raises:
        As `perform`.
    """
    with _scene(worker, args, jobs, options) as (harness, draft):
        awaits, died = 0, True
        while died:
            job = await harness.put(draft)
            died = await _run_and_die(harness, job, awaits)
            yield Crash(awaits if died else None, await _run_again(harness, job))
            awaits += 1


@contextmanager
def _scene(
    worker: Any, args: object, jobs: Harness | None, options: Mapping[str, Any]
) -> Generator[tuple[Harness, Draft[Any]]]:
    """Where a job of this worker goes, and the job."""
    if isinstance(worker, Enqueuer) and not isinstance(worker, WorkerDef):
        raise OptionError("give the worker itself, and options as keywords")
    home = jobs or _home(worker)
    harness = home or Harness()
    try:
        if isinstance(worker, WorkerDef):
            harness.register_worker(worker)
        name = worker.name if isinstance(worker, WorkerDef) else worker
        if name not in harness.worker_names:
            raise WorkerNotFound(f"no worker {name!r} is registered with this Harness")
        yield harness, Draft(name, args, JobOpts(**cast("JobOptions", options)))
    finally:
        if home is None:
            binding.detach(harness)


def _home(worker: Any) -> Harness | None:
    """The Harness a worker is attached to, if that is so."""
    if not isinstance(worker, WorkerDef):
        raise OptionError("a worker by name needs jobs=, the Harness that knows it")
    try:
        host = binding.resolve(worker)
    except NotBound:
        return None
    return host if isinstance(host, Harness) else None


async def _run_and_die(harness: Harness, job: Job[Any], awaits: int | None) -> bool:
    """Run an attempt whose outcome nobody learns; whether it died before its end."""
    claimed, worker = await harness.claim_to_crash(job)
    mortal = _Mortal(worker, math.inf if awaits is None else awaits)
    run = mortal.run = Run(claimed, mortal if worker.is_async else worker, harness)
    ended, processes = asyncio.Event(), Processes()
    run.start(CapacityLimiter(math.inf), processes, lambda _: ended.set(), lambda _: None)
    try:
        await ended.wait()
    finally:
        run.stop(Cause.LEASE_LOST)
        await processes.close()
    return mortal.has_died


async def _run_again(harness: Harness, job: Job[R]) -> Job[R]:
    """What becomes of a job whose node has died."""
    rescued = await harness.rescue_one(job)
    return await harness.run_one(rescued) if rescued.state in WAITING else rescued


class _Mortal(WorkerDef):
    """An async worker whose handler is cut where it waits for the n-th time."""

    run: Run

    def __init__(self, worker: WorkerDef, awaits: float) -> None:
        super().__init__(worker.name, _never_called, opts=worker.opts, retry_strategy=worker.retry_strategy)
        self.is_async = True
        self.has_died = False
        self._inner = worker
        self._awaits = awaits

    def invoke(self, args_json: str, ctx: JobContext) -> Any:
        answer = self._inner.invoke(args_json, ctx)
        return _until(answer, self._awaits, self._die) if asyncio.iscoroutine(answer) else answer

    def encode_result(self, value: Any) -> str:
        return self._inner.encode_result(value)

    def _die(self) -> None:
        self.has_died = True
        self.run.stop(Cause.LEASE_LOST)


def _never_called(_args: Any, _ctx: Any) -> None:
    """Stands for the handler of the worker within."""


@coroutine
def _until(inner: Coroutine[Any, Any, R], awaits: float, die: Callable[[], None]) -> Generator[Any, Any, R]:
    """Drive a coroutine, and cancel the task it runs in where it waits for the n-th time."""
    waited, answer, error = 0, None, None
    while True:
        try:
            asked = inner.send(answer) if error is None else inner.throw(error)
        except StopIteration as end:
            return cast("R", end.value)
        if waited == awaits:
            die()
        waited += 1
        answer = error = None
        try:
            answer = yield asked
        except BaseException as raised:
            error = raised
