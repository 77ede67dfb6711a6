"""The instruments of a Supervisor, taken together, and held at arm's length: none can harm a job or another one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.core.instrument import Instrument
from jobs_async.core.options import NewJob

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from contextlib import AbstractContextManager
    from types import TracebackType

    from jobs_async.core.context import JobContext

T = TypeVar("T")

logger = logging.getLogger("jobs_async")


class Instruments:
    """Entered in their order, left in the reverse one."""

    def __init__(self, given: Iterable[Instrument]) -> None:
        self._all = tuple(given)
        for one in self._all:
            if not isinstance(one, Instrument):
                raise OptionError(f"instruments must be Instruments, not {limits.type_name(one)}")

    def __bool__(self) -> bool:
        return bool(self._all)

    @contextmanager
    def enqueuing(self, new: Sequence[NewJob]) -> Generator[Sequence[NewJob]]:
        """Around the storing of these jobs; yields those to be stored."""
        with ExitStack() as stack:
            for one in self._all:
                changed = _enter(stack, one, one.enqueuing, new)
                new = changed if changed is not None and _are_the_same(changed, new) else new
            yield new

    @contextmanager
    def running(self, ctx: JobContext) -> Generator[None]:
        """Around a handler."""
        with ExitStack() as stack:
            for one in self._all:
                _enter(stack, one, one.running, ctx)
            yield


def _enter(stack: ExitStack, one: Instrument, make: Callable[[T], AbstractContextManager[Any]], given: T) -> Any:
    try:
        context = make(given)
        entered = context.__enter__()
    except Exception:
        logger.exception("%s could not be entered", limits.type_name(one))
        return None

    def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        try:
            context.__exit__(kind, error, trace)
        except BaseException as raised:
            if raised is not error:  # a generator's context raises anew what it was left with
                logger.exception("%s could not be left", limits.type_name(one))
        return False

    stack.push(leave)
    return entered


def _are_the_same(changed: object, new: Sequence[NewJob]) -> bool:
    """An instrument may add to the `meta` of jobs, and not swap, drop or invent any."""
    given = cast("Sequence[object]", changed) if isinstance(changed, Sequence) else ()
    same = [_identity(job) for job in given] == [_identity(job) for job in new]
    if not same:
        logger.error("an instrument gave back other jobs than it was given; they are left as they were")
    return same


def _identity(job: object) -> object:
    return (job.worker, job.args_json) if isinstance(job, NewJob) else None
