"""What a Supervisor knows: its workers by name, and the entries of its clock (zzz_jobs: workers, cron-scheduling)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, overload

from jobs_async.core import binding, limits
from jobs_async.core.cron import CronExpr
from jobs_async.core.errors import CronError, OptionError, WorkerError
from jobs_async.core.options import NO_OPTIONS, Draft, JobOpts
from jobs_async.core.retry import DEFAULT_STRATEGY, RetryStrategy
from jobs_async.core.schedule import CronEntry
from jobs_async.core.workers import Decorate, DecorateWithContext, Worker, WorkerDef, make_worker
from jobs_async.runtime.operator import Operator
from jobs_async.runtime.producer import check
from jobs_async.tasks import finish_anyway

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import tzinfo

    from typing_extensions import Unpack

    from jobs_async.core.job import Job
    from jobs_async.core.options import JobOptions, WorkerOptions
    from jobs_async.core.schedule import CatchUp
    from jobs_async.core.store import Tick

P = ParamSpec("P")
C = TypeVar("C")
W = TypeVar("W", bound=WorkerDef)


class DecorateCron(Protocol):
    """What `Supervisor.cron(...)` returns: a worker stays what it is, a function becomes one."""

    @overload
    def __call__(self, fn: W, /) -> W: ...
    @overload
    def __call__(self, fn: Callable[P, C], /) -> Worker[P, C]: ...


class Registrar(Operator):
    """The half of a Supervisor that is told what there is to run."""

    # --- workers ---

    @overload
    def worker(self, fn: Callable[P, C], /) -> Worker[P, C]: ...
    @overload
    def worker(self, *, context: Literal[False] = ..., **options: Unpack[WorkerOptions]) -> Decorate: ...
    @overload
    def worker(self, *, context: Literal[True], **options: Unpack[WorkerOptions]) -> DecorateWithContext: ...
    def worker(self, fn: Any = None, *, context: bool = False, **options: Any) -> Any:
        """As the module's `worker`, and registered here.

        Raises:
            WorkerError, OptionError: as `worker`; or the name is taken.
        """
        return make_worker(fn, context=context, options=options, then=self._declare)

    def register_worker(
        self,
        worker: WorkerDef | str,
        handler: Callable[[Any, Any], Any] | None = None,
        *,
        opts: JobOpts = NO_OPTIONS,
        retry_strategy: RetryStrategy = DEFAULT_STRATEGY,
    ) -> WorkerDef:
        """Register `handler(args, ctx)` under a name, the source's form, or a worker made elsewhere. At any time.

        Raises:
            WorkerError: it cannot be a worker, or the name is taken by another.
        """
        if isinstance(worker, str):
            if handler is None:
                raise WorkerError(f"register_worker({worker!r}, ...) needs a handler")
            worker = WorkerDef(worker, handler, opts=opts, retry_strategy=retry_strategy)
        self._register(worker)
        return worker

    def _declare(self, worker: WorkerDef) -> None:
        self._register(worker, declared=True)

    def _register(self, worker: WorkerDef, *, declared: bool = False) -> None:
        if self._workers.setdefault(worker.name, worker) is not worker:
            raise WorkerError(f"a worker named {worker.name!r} is registered already; give this one another name=")
        binding.attach(worker, self, declared=declared)

    # --- cron ---

    @property
    def crons(self) -> Mapping[str, CronEntry]:
        """The entries registered here, by name."""
        return MappingProxyType(self._crons)

    def register_cron(
        self,
        name: str,
        expression: str,
        worker: str | WorkerDef | Draft[Any],
        args: object = None,
        opts: JobOpts = NO_OPTIONS,
        *,
        timezone: str | int | tzinfo = "UTC",
        day_or: bool = True,
        catch_up: CatchUp = "latest",
        **options: Unpack[JobOptions],
    ) -> CronEntry:
        """Enqueue a job at every tick of a cron expression; at any time, before the start or after it.

        Each tick is enqueued once by all Supervisors on the store together that have registered `name`, whichever of
        them die. A tick that came while none of them ran is caught up with at the start of the next, if it is the
        latest and no more than 10 minutes old; with `catch_up="none"` it is skipped. A `unique_key` skips ticks while
        an earlier job is still alive. For `timezone` and `day_or` see `CronExpr.parse`. The job carries the name and
        the instant of its tick in `meta` ("cron", "cron_at").

        Raises:
            CronError: the expression or time zone is none, or the name is taken here.
            ArgsError: the arguments cannot be stored, or do not fit a worker that is registered here.
            OptionError: an option is out of bounds, or belongs to a single job.
        """
        if limits.name(name, "the name of a cron entry") in self._crons:
            raise CronError(f"a cron entry named {name!r} is registered already; unregister_cron it first")
        if not isinstance(opts, JobOpts):
            raise OptionError(f"opts must be JobOpts, not {limits.type_name(opts)}")
        draft = _drafted(worker, args, JobOpts(**options).over(opts))
        expr = CronExpr.parse(expression, timezone=timezone, day_or=day_or)
        entry = CronEntry(name, expr, draft, catch_up)
        known = worker if isinstance(worker, WorkerDef) else self._workers.get(draft.worker)
        if known is not None and not draft.is_checked:
            check(known, draft)
        self._crons[name] = entry
        self._crons_changed()
        return entry

    def unregister_cron(self, name: str) -> CronEntry:
        """Fire no more ticks from here; jobs that were enqueued stay.

        Raises:
            CronError: there is no such entry here.
        """
        entry = self._crons.pop(limits.name(name, "the name of a cron entry"), None)
        if entry is None:
            raise CronError(f"no cron entry named {name!r} is registered here")
        self._crons_changed()
        return entry

    def cron(
        self,
        expression: str,
        *,
        name: str | None = None,
        args: object = None,
        opts: JobOpts = NO_OPTIONS,
        timezone: str | int | tzinfo = "UTC",
        day_or: bool = True,
        catch_up: CatchUp = "latest",
    ) -> DecorateCron:
        """`register_cron` as a decorator, of a worker or of a function that becomes one; named as the worker is.

        Raises:
            CronError, ArgsError, OptionError, WorkerError: as `register_cron` and `worker`.
        """
        CronExpr.parse(expression, timezone=timezone, day_or=day_or)  # before anything is registered

        def decorate(fn: Any) -> Any:
            if isinstance(fn, WorkerDef):
                worker = self.register_worker(fn)
            else:
                worker = make_worker(fn, context=False, options={}, then=self._declare)
            self.register_cron(
                worker.name if name is None else name,
                expression,
                worker,
                args,
                opts,
                timezone=timezone,
                day_or=day_or,
                catch_up=catch_up,
            )
            return worker

        return decorate

    def _crons_changed(self) -> None:
        if self._engine is not None:
            self._engine.look_at_clock()

    # --- what the scheduler calls ---

    async def insert_tick(self, entry: CronEntry | None, tick: Tick) -> list[Job[Any]]:
        """Spend a tick, with the job of its entry or with none; [] where it was spent before."""
        new = [] if entry is None else [entry.at_tick(self._decided(entry.draft), tick.at)]
        return await finish_anyway(self._insert(new, tick))


def _drafted(worker: str | WorkerDef | Draft[Any], args: object, opts: JobOpts) -> Draft[Any]:
    """The draft that a cron entry was given, or the one that is meant."""
    if isinstance(worker, Draft):
        if args is not None or opts.given:
            raise OptionError("a Draft brings its own arguments and options")
        return worker
    return Draft(worker.name if isinstance(worker, WorkerDef) else worker, args, opts)
