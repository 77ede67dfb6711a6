"""How a job is to be run: options, their defaults and who overrules whom; and a job that is not stored yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypedDict, cast

from msgspec import Struct

from jobs_async.core import codec, limits
from jobs_async.core.errors import ArgsError, OptionError

if TYPE_CHECKING:
    from typing_extensions import TypeVar, Unpack

    from jobs_async.core.limits import Seconds
    from jobs_async.core.retry import RetryStrategy

    R_co = TypeVar("R_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    R_co = TypeVar("R_co", covariant=True)


class UniqueStrategy(Enum):
    """What an enqueue does when a live job already holds its unique key (zzz_jobs: unique-jobs)."""

    IGNORE_NEW = "ignore_new"
    """Insert nothing and return the live job, marked `duplicate`."""
    CANCEL_EXISTING = "cancel_existing"
    """Cancel the live job and insert the new one, in one transaction."""
    REJECT = "reject"
    """Raise UniqueConflict."""


class JobOptions(TypedDict, total=False):
    """The options a job can carry, as keywords; what is not given is decided by the worker, then by the default."""

    queue: str
    priority: int
    max_attempts: int
    delay: Seconds
    scheduled_at: datetime
    timeout_seconds: Seconds | None
    unique_key: str
    unique_strategy: UniqueStrategy
    idempotency_key: str
    correlation_id: str
    external_id: str
    tags: Sequence[str]
    meta: Mapping[str, Any]


class EnqueueOptions(JobOptions, total=False):
    """JobOptions and the connection whose transaction the insert joins."""

    connection: object


class EditOptions(TypedDict, total=False):
    """What can be changed about a job that waits, beside its arguments."""

    queue: str
    priority: int
    max_attempts: int
    delay: Seconds
    scheduled_at: datetime


class WorkerOptions(TypedDict, total=False):
    """What the `worker` decorator accepts."""

    name: str
    queue: str
    priority: int
    max_attempts: int
    retry_strategy: RetryStrategy
    timeout_seconds: Seconds | None
    unique_key: str
    unique_strategy: UniqueStrategy
    tags: Sequence[str]
    meta: Mapping[str, Any]
    process: bool


DEFAULTS: Mapping[str, Any] = {
    "queue": "default",
    "priority": 0,
    "max_attempts": 20,
    "delay": None,
    "scheduled_at": None,
    "timeout_seconds": 300.0,
    "unique_key": None,
    "unique_strategy": UniqueStrategy.IGNORE_NEW,
    "idempotency_key": None,
    "correlation_id": None,
    "external_id": None,
    "tags": (),
    "meta": {},
}
"""zzz_jobs: JobOpts. Lower priority runs first; 20 attempts; 300 seconds."""


def _optional(check: Callable[..., Any], *rest: Any, **more: Any) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value, *rest, **more)


def _strategy(value: object) -> UniqueStrategy:
    if not isinstance(value, UniqueStrategy):
        raise OptionError(f"unique_strategy must be a UniqueStrategy, not {limits.type_name(value)}")
    return value


def _meta(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise OptionError(f"meta must be a mapping, not {limits.type_name(value)}")
    try:
        text = codec.dumps(dict(cast("Mapping[str, Any]", value)), "meta")
    except ArgsError as error:
        raise OptionError(str(error)) from None
    if len(text.encode()) > limits.MAX_META_BYTES:
        raise OptionError(f"meta must be at most {limits.MAX_META_BYTES:,} bytes of JSON")
    parsed: dict[str, Any] = codec.loads(text)
    return parsed


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "queue": lambda value: limits.name(value, "queue"),
    "priority": lambda value: limits.integer(value, "priority"),
    "max_attempts": lambda value: limits.integer(value, "max_attempts", 1),
    "delay": _optional(limits.seconds, "delay"),
    "scheduled_at": _optional(limits.instant, "scheduled_at"),
    "timeout_seconds": _optional(limits.seconds, "timeout_seconds", exclusive=True),
    "unique_key": _optional(limits.name, "unique_key"),
    "unique_strategy": _strategy,
    "idempotency_key": _optional(limits.name, "idempotency_key"),
    "correlation_id": _optional(limits.name, "correlation_id"),
    "external_id": _optional(limits.name, "external_id"),
    "tags": limits.tags,
    "meta": _meta,
}


class JobOpts:
    """Options of a job, checked when written down. Knows what was given from what is a default.

    Merging is `call > worker > default`: `JobOpts(queue="default")` overrules a worker whose queue is "mail",
    `JobOpts()` does not. Reading an option that was not given yields its default (zzz_jobs: JobOpts).

    Raises:
        OptionError: an unknown option, a value out of bounds, or `delay` together with `scheduled_at`.
    """

    queue: str
    priority: int
    max_attempts: int
    delay: float | None
    scheduled_at: datetime | None
    timeout_seconds: float | None
    unique_key: str | None
    unique_strategy: UniqueStrategy
    idempotency_key: str | None
    correlation_id: str | None
    external_id: str | None
    tags: tuple[str, ...]
    meta: Mapping[str, Any]

    __slots__ = ("_given",)
    _given: dict[str, Any]

    def __init__(self, **options: Unpack[JobOptions]) -> None:
        given: dict[str, Any] = {}
        for key, value in options.items():
            check = _CHECKS.get(key)
            if check is None:
                raise OptionError(f"{key!r} is not an option of a job; known are {', '.join(DEFAULTS)}")
            given[key] = check(value)
        if given.get("delay") is not None and given.get("scheduled_at") is not None:
            raise OptionError("give delay or scheduled_at, not both")
        self._given = given

    def __getattr__(self, key: str) -> Any:
        try:
            return self._given[key] if key in self._given else DEFAULTS[key]
        except KeyError:
            raise AttributeError(key) from None

    @property
    def given(self) -> Mapping[str, Any]:
        """Only what was written down, checked."""
        return dict(self._given)

    def over(self, weaker: JobOpts) -> JobOpts:
        """These options, and where nothing is given here those of `weaker`."""
        if not weaker._given:
            return self
        if not self._given:
            return weaker
        merged = JobOpts.__new__(JobOpts)
        merged._given = weaker._given | self._given
        if "delay" in self._given or "scheduled_at" in self._given:
            for key in ("delay", "scheduled_at"):
                if key not in self._given:
                    merged._given.pop(key, None)
        return merged

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobOpts) and self._given == other._given

    def __hash__(self) -> int:
        raise TypeError("JobOpts are not hashable")

    def __repr__(self) -> str:
        shown = {key: value for key, value in self._given.items() if not key.endswith("_key") and key != "meta"}
        return f"JobOpts({', '.join(f'{key}={value!r}' for key, value in shown.items())})"


NO_OPTIONS = JobOpts()


class Draft(Generic[R_co]):
    """A job to be enqueued: a worker's name, its arguments and options. Generic in the worker's result.

    `await jobs.enqueue_many([Draft("resize", {"id": 7}, JobOpts(priority=5)), send_email.draft("a@b.c")])`

    Raises:
        OptionError, ArgsError: the name is no name, or the arguments are not JSON any reader can load.
    """

    __slots__ = ("args_json", "is_checked", "opts", "worker")

    def __init__(self, worker: str, args: object = None, opts: JobOpts = NO_OPTIONS) -> None:
        self.worker = limits.name(worker, "worker")
        self.args_json = codec.dumps({} if args is None else args)
        if not isinstance(opts, JobOpts):
            raise OptionError(f"opts must be JobOpts, not {limits.type_name(opts)}")
        self.opts = opts
        self.is_checked = False

    @classmethod
    def packed(cls, worker: str, args_json: str, opts: JobOpts = NO_OPTIONS) -> Draft[R_co]:
        """A draft whose name and arguments were checked already: what a typed worker makes."""
        draft = cls.__new__(cls)
        draft.worker, draft.args_json, draft.opts, draft.is_checked = worker, args_json, opts, True
        return draft

    def __repr__(self) -> str:
        return f"Draft(worker={self.worker!r}, opts={self.opts!r})"


class NewJob(Struct, frozen=True, gc=False):
    """A draft with every option decided: what `Store.insert` takes. Times are still relative, the store stamps them."""

    worker: str
    args_json: str
    queue: str = "default"
    priority: int = 0
    max_attempts: int = 20
    delay: float | None = None
    scheduled_at: datetime | None = None
    timeout_seconds: float | None = 300.0
    unique_key: str | None = None
    unique_strategy: UniqueStrategy = UniqueStrategy.IGNORE_NEW
    idempotency_key: str | None = None
    correlation_id: str | None = None
    external_id: str | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, Any] = {}  # msgspec copies empty containers

    @classmethod
    def of(cls, worker: str, args_json: str, opts: JobOpts) -> NewJob:
        """Options that were merged already, and the defaults for the rest."""
        return cls(worker, args_json, **opts.given)

    def __repr__(self) -> str:
        return f"NewJob(worker={self.worker!r}, queue={self.queue!r}, priority={self.priority})"
