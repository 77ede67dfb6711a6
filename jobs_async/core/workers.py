"""Workers: functions under a name, with defaults, that can be enqueued with their own arguments, typed.

A `Worker` stays callable like the function it was made of. `WorkerDef` is what a Supervisor takes, typed or raw.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import FrameType, ModuleType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from jobs_async.core import binding, codec, limits
from jobs_async.core.annotations import Hints, layers
from jobs_async.core.arguments import Arguments, Result
from jobs_async.core.binding import Bindable, Host
from jobs_async.core.errors import OptionError, UnreadableArgs, WorkerError
from jobs_async.core.options import NO_OPTIONS, Draft, EnqueueOptions, JobOptions, JobOpts, WorkerOptions
from jobs_async.core.places import check_for_process, place_of
from jobs_async.core.retry import DEFAULT_STRATEGY, RetryStrategy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from jobs_async.core.context import JobContext
    from jobs_async.core.job import Job

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)

_OF_ONE_JOB = ("delay", "scheduled_at", "idempotency_key")


class WorkerDef(Bindable):
    """A named handler and the defaults of its jobs.

    Made directly it is the raw form: `WorkerDef("resize", handler, opts=JobOpts(max_attempts=10))`, whose handler is
    called as `handler(args, ctx)` with the parsed JSON as it is (zzz_jobs: registerWorker). `@worker` makes the typed
    form. Async handlers run in the event loop, others in a thread, or with `@worker(process=True)` in a process.

    Raises:
        WorkerError: the handler cannot be one: a class, a generator, not callable.
        OptionError: the name is no name, or an option belongs to a single job.
    """

    name: str
    opts: JobOpts
    retry_strategy: RetryStrategy
    is_async: bool
    process: bool = False
    """Run each job in a worker process."""

    def __init__(
        self,
        name: str,
        handler: Callable[[Any, JobContext], Any],
        *,
        opts: JobOpts = NO_OPTIONS,
        retry_strategy: RetryStrategy = DEFAULT_STRATEGY,
    ) -> None:
        self.name = limits.name(name, "a worker's name")
        self.is_async = _look_at(handler, self.name)
        self.opts = _worker_opts(opts)
        self.retry_strategy = _strategy(retry_strategy)
        self._handler: Callable[..., Any] = handler

    def prepare(self) -> None:
        """Check that the handler can be called. Done when attached; harmless to repeat.

        Raises:
            WorkerError: the handler does not take (args, ctx); of a typed worker, an argument has no JSON form.
        """
        try:
            inspect.signature(self._handler).bind(None, None)
        except ValueError:
            return  # a builtin without a signature
        except TypeError:
            raise WorkerError(f"{self.name}: a handler registered by name must take (args, ctx)") from None

    def check(self, args_json: str) -> None:
        """Refuse stored arguments that `invoke` would refuse.

        Raises:
            UnreadableArgs: they do not fit.
        """
        _parsed(args_json, self.name)

    def invoke(self, args_json: str, ctx: JobContext) -> Any:
        """Call the handler with stored arguments: a coroutine from an async handler, else what it returned.

        Raises:
            UnreadableArgs: the arguments do not fit the handler, or no longer; the text shows no values.
        """
        return self._handler(_parsed(args_json, self.name), ctx)

    def encode_result(self, value: Any) -> str:
        """The JSON of what the handler returned.

        Raises:
            ArgsError: it is not JSON any reader can load.
        """
        return codec.dumps(value, "result")

    def decode_result(self, value: Any) -> Any:
        """A stored result as the type the handler's annotation promises; as it is where that cannot be."""
        return value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Enqueuer(Generic[P, C_co]):
    """A worker to enqueue, perhaps with options and a Supervisor chosen: what `.options()` and `.on()` return.

    Generic in the function's parameters and in what calling it returns.
    """

    _worker: _TypedWorker[..., Any]
    _opts: JobOpts
    _host: Host | None = None
    _connection: object = None

    @overload
    async def enqueue(self: Enqueuer[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    async def enqueue(self: Enqueuer[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    async def enqueue(self, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Store a job that will call the function with these arguments.

        Raises:
            ArgsError: the arguments do not fit the function, or are not JSON.
            NotBound: no Supervisor, or several, could be meant.
            UniqueConflict, StoreFull, StoreBusy: as the Supervisor's `enqueue`.
        """
        draft = self._packed(args, kwargs)
        host = binding.resolve(self._worker) if self._host is None else self._host
        return await host.enqueue(draft, connection=self._connection)

    @overload
    def draft(self: Enqueuer[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> Draft[R]: ...
    @overload
    def draft(self: Enqueuer[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Draft[R]: ...
    def draft(self, /, *args: Any, **kwargs: Any) -> Draft[Any]:
        """The job `enqueue` would store, for `enqueue_many` and cron entries.

        Raises:
            ArgsError: the arguments do not fit the function, or are not JSON.
            OptionError: a connection was chosen; a draft cannot hold on to a transaction.
        """
        if self._connection is not None:
            raise OptionError("a draft carries no connection; give it to enqueue_many(..., connection=...)")
        return self._packed(args, kwargs)

    def options(self, **options: Unpack[EnqueueOptions]) -> Enqueuer[P, C_co]:
        """The same worker with options for the jobs to come, over those chosen before and the worker's own.

        Raises:
            OptionError: an unknown option, a value out of bounds, or `delay` together with `scheduled_at`.
        """
        given = dict(options)
        chosen = self._copy()
        if "connection" in given:
            chosen._connection = given.pop("connection")
        chosen._opts = JobOpts(**cast("JobOptions", given)).over(self._opts)
        return chosen

    def on(self, supervisor: Host, /) -> Enqueuer[P, C_co]:
        """The same worker, enqueueing into this Supervisor, attached to it or not."""
        chosen = self._copy()
        chosen._host = supervisor
        return chosen

    def _copy(self) -> Enqueuer[P, C_co]:
        copy: Enqueuer[P, C_co] = Enqueuer()
        copy._worker, copy._opts = self._worker, self._opts
        copy._host, copy._connection = self._host, self._connection
        return copy

    def _packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draft[Any]:
        return Draft.packed(self._worker.name, self._worker.arguments.pack(args, kwargs), self._opts)


class _TypedWorker(Enqueuer[P, C_co], WorkerDef):
    """What the two kinds of workers share; siblings, for they are called differently."""

    _takes_context = False

    def __init__(self, fn: Callable[..., Any], given: _Given, frame: FrameType | None) -> None:
        name = given.name if given.name is not None else _name_of(fn)
        WorkerDef.__init__(self, name, fn, opts=given.opts, retry_strategy=given.retry_strategy)
        hints = Hints(fn, self.name, frame)
        self.arguments = Arguments(hints, self.name, context=self._takes_context)
        self._result = Result(hints)
        self._worker, self._opts = self, self.opts
        wrapper: Any = self
        functools.update_wrapper(wrapper, fn, updated=())  # never its __dict__: `name` and `opts` are ours
        if given.process:
            check_for_process(fn, self.name, is_async=self.is_async, takes_context=self._takes_context)
            self.process = True
        if sys.version_info >= (3, 12) and self.is_async:
            inspect.markcoroutinefunction(self)

    def __set_name__(self, owner: type, name: str) -> None:
        if getattr(layers(self._handler)[-1], "__qualname__", "") == f"{owner.__qualname__}.{name}":
            raise WorkerError(
                f"{owner.__qualname__}.{name} is a method, and a job has no self; "
                "put @staticmethod above @worker, or use worker(instance.method)"
            )

    def prepare(self) -> None:
        self.arguments.prepare()
        if self.process:
            place_of(self)

    def check(self, args_json: str) -> None:
        self.arguments.unpack(args_json)

    def invoke(self, args_json: str, ctx: JobContext) -> Any:
        args, kwargs = self.arguments.unpack(args_json)
        if self._takes_context:
            return self._handler(ctx, *args, **kwargs)
        return self._handler(*args, **kwargs)

    def encode_result(self, value: Any) -> str:
        return self._result.dump(value)

    def decode_result(self, value: Any) -> Any:
        return self._result.load(value)


class Worker(_TypedWorker[P, C_co]):
    """A function that can be enqueued, and called as before."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C_co:
        return cast("C_co", self._handler(*args, **kwargs))


class ContextWorker(_TypedWorker[P, C_co]):
    """A function that takes the JobContext first: enqueued without it, called with it."""

    _takes_context = True

    def __call__(self, ctx: JobContext, /, *args: P.args, **kwargs: P.kwargs) -> C_co:
        return cast("C_co", self._handler(ctx, *args, **kwargs))


class Decorate(Protocol):
    """What `worker(...)` with options returns."""

    def __call__(self, fn: Callable[P, C], /) -> Worker[P, C]: ...


class DecorateWithContext(Protocol):
    """What `worker(context=True, ...)` returns."""

    def __call__(self, fn: Callable[Concatenate[JobContext, P], C], /) -> ContextWorker[P, C]: ...


@overload
def worker(fn: Callable[P, C], /) -> Worker[P, C]: ...
@overload
def worker(*, context: Literal[False] = ..., **options: Unpack[WorkerOptions]) -> Decorate: ...
@overload
def worker(*, context: Literal[True], **options: Unpack[WorkerOptions]) -> DecorateWithContext: ...
def worker(fn: Callable[..., Any] | None = None, /, *, context: bool = False, **options: Any) -> Any:
    """Turn a function into a worker, to be passed in `Supervisor(workers=[...])`; bare or with options.

    Its parameters must be of types with a JSON form: they are checked when the worker is attached, arguments at each
    enqueue. `context=True` passes the JobContext as first parameter. `process=True` runs each job in a worker process,
    which can be killed: for a function that is not async and stands at the top level of its module.

    Raises:
        WorkerError: the function cannot be a worker: a class, a generator, a lambda without `name=`.
        OptionError: an option is unknown or out of bounds.
    """
    return make_worker(fn, context=context, options=options)


def make_worker(
    fn: Callable[..., Any] | None,
    *,
    context: bool,
    options: Mapping[str, Any],
    depth: int = 2,
    then: Callable[[WorkerDef], object] | None = None,
) -> Any:
    """What stands behind `worker` and `Supervisor.worker`: a worker, or without `fn` the decorator that makes one.

    `depth` is how many frames up the user's code is, whose local names string annotations may use; a decorator that is
    returned must be called by the user's code itself. `then` is told of every worker made.
    """
    given = _Given(options)
    kind: Any = ContextWorker if context else Worker

    def make(fn: Callable[..., Any], depth: int = 1) -> WorkerDef:
        frame = inspect.currentframe()
        for _ in range(depth):
            frame = frame and frame.f_back
        made: WorkerDef = kind(fn, given, frame)
        if then is not None:
            then(made)
        return made

    return make if fn is None else make(fn, depth + 1)


def collect(workers: Iterable[WorkerDef | ModuleType]) -> list[WorkerDef]:
    """Every worker given, and every worker among the names of a module given; each once.

    Raises:
        WorkerError: something else was given, or two workers bear one name.
    """
    every: Any = workers
    if isinstance(every, str) or not hasattr(every, "__iter__"):
        raise WorkerError(f"workers must be a list of workers and modules, not a {limits.type_name(every)}")
    found: dict[str, WorkerDef] = {}
    for given in every:
        if not isinstance(given, (WorkerDef, ModuleType)):
            kind = limits.type_name(given)
            raise WorkerError(f"workers must be workers and modules, not a {kind}; decorate functions with @worker")
        for one in [given] if isinstance(given, WorkerDef) else list(vars(given).values()):
            if isinstance(one, WorkerDef) and found.setdefault(one.name, one) is not one:
                raise WorkerError(f"two workers are named {one.name!r}; give one of them another name=")
    return list(found.values())


class _Given:
    """What was written into a decorator, checked before there is a function."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        unknown = [option for option in options if option not in WorkerOptions.__optional_keys__]
        if unknown:
            known = ", ".join(sorted(WorkerOptions.__optional_keys__))
            raise OptionError(f"{unknown[0]!r} is not an option of a worker; known are {known}, context")
        rest = dict(options)
        name = rest.pop("name", None)
        self.name = None if name is None else limits.name(name, "a worker's name")
        self.retry_strategy = _strategy(rest.pop("retry_strategy", DEFAULT_STRATEGY))
        self.process = _flag(rest.pop("process", False))
        self.opts = _worker_opts(JobOpts(**cast("JobOptions", rest)))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"process must be True or False, not {limits.type_name(value)}")
    return value


def _strategy(value: Any) -> RetryStrategy:
    if isinstance(value, type) or not (callable(value) or callable(getattr(value, "delay", None))):
        raise OptionError(f"retry_strategy must be a back-off or a function, not {limits.type_name(value)}")
    return cast("RetryStrategy", value)


def _worker_opts(opts: object) -> JobOpts:
    if not isinstance(opts, JobOpts):
        raise OptionError(f"opts must be JobOpts, not {limits.type_name(opts)}")
    for key in _OF_ONE_JOB:
        if key in opts.given:
            raise OptionError(f"{key} belongs to a single job, not to a worker; give it when enqueueing")
    return opts


def _name_of(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", "")
    if not isinstance(name, str) or not name.isidentifier():
        kind = "lambda" if name == "<lambda>" else limits.type_name(fn)
        raise WorkerError(f"a {kind} has no name of its own; give one with @worker(name=...)")
    return limits.name(name, "a worker's name")


def _look_at(fn: Any, name: str) -> bool:
    """Whether calling `fn` gives a coroutine; a decorator that hides that is looked through."""
    if isinstance(fn, WorkerDef):
        raise WorkerError(f"{name}: {fn.name!r} is a worker already")
    if isinstance(fn, type) or not callable(fn):
        raise WorkerError(f"{name}: a {limits.type_name(fn)} cannot be a worker, only a function can")
    found = layers(fn)
    is_async = any(map(inspect.iscoroutinefunction, found))
    hidden = [] if is_async else found
    if inspect.isgeneratorfunction(fn) or any(map(inspect.isasyncgenfunction, (fn, *hidden))):
        raise WorkerError(f"{name}: a generator cannot be a worker, for nothing would run its body; return a value")
    return is_async


def _parsed(args_json: str, name: str) -> Any:
    try:
        return codec.loads(args_json)
    except (ValueError, RecursionError):
        raise UnreadableArgs(f"arguments of {name} are not JSON") from None
