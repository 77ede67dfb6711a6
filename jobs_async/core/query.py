"""Which jobs are meant: the question that every store answers, and that acts upon many jobs are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

from msgspec import Struct
from msgspec.structs import force_setattr

from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.core.job import DEFERRED, MAX_ERROR_BYTES, Job, JobState
from jobs_async.core.limits import Seconds

MAX_PAGE = 1000
_INT64 = 2**63

Scalar = str | int | float | bool | None
"""A JSON value that holds no others."""


class JobQuery(Struct, frozen=True, kw_only=True):
    """Which jobs to read. Every condition given must hold. Newest first by default, by id.

    `queue`, `worker` and `external_id` are a name or several, of which one must fit; `tags` must all be there. Times
    are aware datetimes, from `…_since` on and strictly before `…_before`; a job that has not ended meets no condition
    about its end. `error` is a text within the latest error ("Type: message"), upper and lower case told apart. `args`
    are arguments by name that must have these values: strings, numbers, booleans or None, 1 being 1.0 and not True.
    `due` asks for waiting jobs that could start now; `node` for the one that runs a job, or was the last to;
    `orphaned` for executing jobs whose node is dead; `older_than` for jobs that execute for strictly longer, in
    seconds. `after` is the id of the last job already seen: paging by key, never by offset.

    Raises:
        OptionError: a condition is none, or the limit out of 1 … 1,000.
    """

    ids: Sequence[int] | None = None
    states: Iterable[JobState] | None = None
    queue: str | Iterable[str] | None = None
    worker: str | Iterable[str] | None = None
    tags: Iterable[str] | None = None
    external_id: str | Iterable[str] | None = None
    correlation_id: str | None = None
    inserted_since: datetime | None = None
    inserted_before: datetime | None = None
    ended_since: datetime | None = None
    ended_before: datetime | None = None
    error: str | None = None
    args: Mapping[str, Scalar] | None = None
    due: bool = False
    node: str | None = None
    orphaned: bool = False
    older_than: Seconds | None = None
    after: int | None = None
    newest_first: bool = True
    limit: int = 100

    def __post_init__(self) -> None:
        for field, default in zip(self.__struct_fields__, self.__struct_defaults__, strict=True):
            value = getattr(self, field)
            if value is not None or default is not None:
                force_setattr(self, field, _CHECKS[field](value))

    @property
    def queues(self) -> tuple[str, ...] | None:
        """The queues of which a job must be in one."""
        return cast("tuple[str, ...] | None", self.queue)

    @property
    def workers(self) -> tuple[str, ...] | None:
        """The workers of which a job must have one."""
        return cast("tuple[str, ...] | None", self.worker)

    @property
    def external_ids(self) -> tuple[str, ...] | None:
        """The external ids of which a job must have one."""
        return cast("tuple[str, ...] | None", self.external_id)

    @property
    def age(self) -> float | None:
        """`older_than` in seconds."""
        return cast("float | None", self.older_than)

    def accepts(self, job: Job[Any], now: datetime) -> bool:
        """Whether a job meets every condition but `orphaned`, for which one must know the nodes."""
        return self.test(now)(job)

    def test(self, now: datetime) -> Callable[[Job[Any]], bool]:
        """`accepts`, made once for many jobs."""
        conditions = self._conditions(now)
        return lambda job: all(condition(job) for condition in conditions)

    def _conditions(self, now: datetime) -> list[Callable[[Job[Any]], bool]]:
        """What was asked for, and nothing else."""
        ids, tags = frozenset(self.ids or ()), set(self.tags or ())
        asked: list[tuple[Any, Callable[[Job[Any]], bool]]] = [
            (self.ids, lambda job: job.id in ids),
            (self.after, self._comes_later),
            (self.states, lambda job: job.state in (self.states or ())),
            (self.queue, lambda job: job.queue in (self.queues or ())),
            (self.worker, lambda job: job.worker in (self.workers or ())),
            (self.tags, lambda job: tags <= set(job.tags)),
            (self.external_id, lambda job: job.external_id in (self.external_ids or ())),
            (self.correlation_id, lambda job: job.correlation_id == self.correlation_id),
            (self.inserted_since, lambda job: _within(job.inserted_at, self.inserted_since, None)),
            (self.inserted_before, lambda job: _within(job.inserted_at, None, self.inserted_before)),
            (self.ended_since, lambda job: _within(job.completed_at, self.ended_since, None)),
            (self.ended_before, lambda job: _within(job.completed_at, None, self.ended_before)),
            (self.error, lambda job: job.last_error is not None and (self.error or "") in job.last_error.error),
            (self.args, lambda job: _has(job.args, self.args or {})),
            (self.due or None, lambda job: _is_due(job, now)),
            (self.node, lambda job: job.node == self.node),
            (self.age, lambda job: _runs_longer(job, self.age or 0.0, now)),
        ]
        return [condition for given, condition in asked if given is not None]

    def _comes_later(self, job: Job[Any]) -> bool:
        after = self.after or 0
        return job.id < after if self.newest_first else job.id > after

    def __repr__(self) -> str:
        return f"JobQuery({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What was asked, and of arguments only the names: their values may be secrets."""
        every = zip(self.__struct_fields__, self.__struct_defaults__, strict=True)
        asked = [(field, value) for field, default in every if (value := getattr(self, field)) != default]
        return [(field, sorted(value) if field == "args" else value) for field, value in asked]


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{what} must be True or False, not {limits.type_name(value)}")
    return value


def _id(value: object, what: str) -> int:
    return limits.integer(value, what, -_INT64, _INT64 - 1)


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise OptionError(f"ids must be a sequence of integers, not {limits.type_name(value)}")
    return tuple(_id(each, "one of the ids") for each in cast("Iterable[object]", value))


def _states(value: object) -> tuple[JobState, ...]:
    given = tuple(cast("Iterable[object]", value)) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(state, JobState) for state in given):
        raise OptionError("states are JobStates, such as [JobState.discarded]")
    return tuple(sorted(set(cast("tuple[JobState, ...]", given))))


def _names(value: object, what: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (limits.name(value, what),)
    if not isinstance(value, Iterable):
        raise OptionError(f"{what} must be a name or several, not {limits.type_name(value)}")
    return tuple(limits.name(each, what) for each in cast("Iterable[object]", value))


def _text(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ERROR_BYTES or not _is_unicode(value) or "\0" in value:
        raise OptionError(f"error must be a text of 1 to {MAX_ERROR_BYTES:,} characters of valid Unicode without NUL")
    return str.__str__(value)


def _is_unicode(text: str) -> bool:
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _scalars(value: object) -> Mapping[str, Scalar]:
    if not isinstance(value, Mapping):
        raise OptionError(f"args must map names to values, not be a {limits.type_name(value)}")
    return {_argument(name): _scalar(wanted) for name, wanted in cast("Mapping[object, object]", value).items()}


def _argument(name: object) -> str:
    if not isinstance(name, str) or not _is_unicode(name):
        raise OptionError("the names in args must be strings of valid Unicode")
    return str.__str__(name)


def _scalar(value: object) -> Scalar:
    """As JSON has it: no subclass, no number that is none."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and _is_unicode(value):
        return str.__str__(value)
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise OptionError("the values in args must be strings, finite numbers of 64 bits, booleans or None")


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "ids": _ids,
    "states": _states,
    "queue": partial(_names, what="queue"),
    "worker": partial(_names, what="worker"),
    "tags": limits.tags,
    "external_id": partial(_names, what="external_id"),
    "correlation_id": partial(limits.name, what="correlation_id"),
    "inserted_since": partial(limits.instant, what="inserted_since"),
    "inserted_before": partial(limits.instant, what="inserted_before"),
    "ended_since": partial(limits.instant, what="ended_since"),
    "ended_before": partial(limits.instant, what="ended_before"),
    "error": _text,
    "args": _scalars,
    "due": partial(_flag, what="due"),
    "node": partial(limits.name, what="node"),
    "orphaned": partial(_flag, what="orphaned"),
    "older_than": partial(limits.seconds, what="older_than"),
    "after": partial(_id, what="after"),
    "newest_first": partial(_flag, what="newest_first"),
    "limit": partial(limits.integer, what="limit", low=1, high=MAX_PAGE),
}


def _within(at: datetime | None, since: datetime | None, before: datetime | None) -> bool:
    return at is not None and (since is None or at >= since) and (before is None or at < before)


def _has(args: Any, wanted: Mapping[str, Scalar]) -> bool:
    if not wanted or not isinstance(args, dict):
        return not wanted
    given = cast("dict[str, Any]", args)
    return all(name in given and _alike(given[name], value) for name, value in wanted.items())


def _alike(given: Any, wanted: Scalar) -> bool:
    """Equal as JSON: a boolean is no number."""
    return isinstance(given, bool) is isinstance(wanted, bool) and bool(given == wanted)


def _is_due(job: Job[Any], now: datetime) -> bool:
    return job.state is JobState.available or (job.state in DEFERRED and job.scheduled_at <= now)


def _runs_longer(job: Job[Any], seconds: float, now: datetime) -> bool:
    since = job.attempted_at
    return job.state is JobState.executing and since is not None and now - since > timedelta(seconds=seconds)
