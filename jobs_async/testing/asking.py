"""What was enqueued: assertions for tests of the code that enqueues."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict, cast

from msgspec.structs import replace

from jobs_async.core import binding, codec, limits
from jobs_async.core.errors import OptionError
from jobs_async.core.job import WAITING, Job
from jobs_async.core.query import MAX_PAGE, JobQuery
from jobs_async.core.workers import WorkerDef
from jobs_async.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Unpack

    from jobs_async.core.limits import Seconds

CLOSE = timedelta(seconds=5)
"""How far from the `delay` that is looked for a job may be due."""
AGAIN = 0.01
SHOWN = 10


class Wanted(TypedDict, total=False):
    """What a job that is looked for must have beside its worker and arguments."""

    queue: str
    priority: int
    max_attempts: int
    tags: Iterable[str]
    unique_key: str
    idempotency_key: str
    correlation_id: str
    external_id: str
    meta: Mapping[str, Any]
    delay: Seconds


async def all_enqueued(
    worker: WorkerDef | str | None = None,
    args: object = None,
    /,
    *,
    jobs: Supervisor | None = None,
    **wanted: Unpack[Wanted],
) -> list[Job[Any]]:
    """The waiting jobs of a worker, or of all, that have at least these arguments and all that is `wanted`; oldest
    first. `tags` and `meta` must be among the job's; `delay` is when it is due, in seconds from now, give or take 5.

    Raises:
        NotBound: the worker is attached to no Supervisor, or to several; name one with `jobs=`.
        OptionError: there is no worker to find the Supervisor by, or an option that cannot be looked for.
        ArgsError: the arguments are not JSON.
    """
    fitting, _ = await _search(_home(worker, jobs), worker, args, wanted)
    return fitting


async def assert_enqueued(
    worker: WorkerDef | str,
    args: object = None,
    /,
    *,
    jobs: Supervisor | None = None,
    timeout: Seconds = 0.0,
    **wanted: Unpack[Wanted],
) -> Job[Any]:
    """The newest of `all_enqueued`, of which there must be one; where a task of its own enqueues it, `timeout` is how
    many seconds to wait for it.

    Raises:
        AssertionError: there is none; it lists what there is instead, with arguments.
        NotBound, OptionError, ArgsError: as `all_enqueued`.
    """
    home = _home(worker, jobs)
    give_up_at = asyncio.get_running_loop().time() + limits.seconds(timeout, "timeout")
    while True:
        fitting, others = await _search(home, worker, args, wanted)
        if fitting:
            return fitting[-1]
        if asyncio.get_running_loop().time() >= give_up_at:
            raise AssertionError(f"no waiting job of {_asked(worker, args, wanted)}; {_listed(others)}")
        await asyncio.sleep(AGAIN)


async def refute_enqueued(
    worker: WorkerDef | str,
    args: object = None,
    /,
    *,
    jobs: Supervisor | None = None,
    **wanted: Unpack[Wanted],
) -> None:
    """That `all_enqueued` finds none.

    Raises:
        AssertionError: it does; it lists them, with arguments.
        NotBound, OptionError, ArgsError: as `all_enqueued`.
    """
    fitting, _ = await _search(_home(worker, jobs), worker, args, wanted)
    if fitting:
        raise AssertionError(f"there should be no waiting job of {_asked(worker, args, wanted)}; {_listed(fitting)}")


def _home(worker: WorkerDef | str | None, jobs: Supervisor | None) -> Supervisor:
    if jobs is not None:
        return jobs
    if not isinstance(worker, WorkerDef):
        raise OptionError("without a worker, jobs= must say which Supervisor to ask")
    host = binding.resolve(worker)
    if not isinstance(host, Supervisor):
        raise OptionError(f"{worker.name} is attached to a {limits.type_name(host)}, not to a Supervisor")
    return host


async def _search(
    home: Supervisor, worker: WorkerDef | str | None, args: object, wanted: Wanted
) -> tuple[list[Job[Any]], list[Job[Any]]]:
    """The waiting jobs of a worker: those that fit, and the others."""
    options: dict[str, Any] = dict(wanted)
    unknown = sorted(options.keys() - Wanted.__annotations__.keys())
    if unknown:
        raise OptionError(f"{unknown[0]!r} cannot be looked for; what can: {', '.join(Wanted.__annotations__)}")
    as_stored = _as_stored(args)
    fitting: list[Job[Any]] = []
    others: list[Job[Any]] = []
    for job in await _waiting(home, worker):
        fits = _holds(job.args, as_stored) and all(_has(job, *each, home.clock.now()) for each in options.items())
        (fitting if fits else others).append(job)
    return fitting, others


def _as_stored(value: object) -> Any:
    """What is read back once this was written."""
    return codec.loads(codec.dumps(value))


async def _waiting(home: Supervisor, worker: WorkerDef | str | None) -> list[Job[Any]]:
    name = worker.name if isinstance(worker, WorkerDef) else worker
    found: list[Job[Any]] = []
    query = JobQuery(states=WAITING, worker=name, newest_first=False, limit=MAX_PAGE)
    while page := await home.find(query):
        found += page
        query = replace(query, after=page[-1].id)
    return found


def _holds(given: Any, wanted: Any) -> bool:
    """Has one mapping everything of the other? What is no mapping must be equal."""
    if not (isinstance(given, dict) and isinstance(wanted, dict)):
        return wanted is None or bool(given == wanted)
    has, needed = cast("dict[str, Any]", given), cast("dict[str, Any]", wanted)
    return all(key in has and has[key] == value for key, value in needed.items())


def _has(job: Job[Any], option: str, value: Any, now: datetime) -> bool:
    match option:
        case "tags":
            return set(limits.tags(value)) <= set(job.tags)
        case "meta":
            return _holds(job.meta, _as_stored(value))
        case "delay":
            due = now + timedelta(seconds=limits.seconds(value, "delay"))
            return abs(job.scheduled_at - due) <= CLOSE
        case _:
            return bool(getattr(job, option) == value)


def _asked(worker: WorkerDef | str, args: object, wanted: Wanted) -> str:
    name = worker.name if isinstance(worker, WorkerDef) else worker
    parts = [f"{key}={value!r}" for key, value in wanted.items()]
    return ", ".join([name, *([] if args is None else [f"args {args!r}"]), *parts])


def _listed(jobs: list[Job[Any]]) -> str:
    if not jobs:
        return "none of this worker waits"
    lines = [f"  {job!r} due {job.scheduled_at:%F %T%z} args {job.args!r}" for job in jobs[-SHOWN:]]
    return "\n".join([f"of this worker {len(jobs)} wait:", *lines])
