"""What a Supervisor is told of its queues and of how long jobs are kept, checked when written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.core.job import FINAL

if TYPE_CHECKING:
    from jobs_async.core.job import JobState
    from jobs_async.core.limits import Seconds

MAX_CONCURRENCY = 10_000


class Queue:
    """A queue to be run: its name and how many of its jobs may run at once here (zzz_jobs: QueueConfig)."""

    __slots__ = ("concurrency", "name")

    def __init__(self, name: str = "default", concurrency: int = 10) -> None:
        self.name = limits.name(name, "a queue's name")
        self.concurrency = limits.integer(concurrency, f"the concurrency of {name}", 1, MAX_CONCURRENCY)

    def __repr__(self) -> str:
        return f"Queue({self.name!r}, {self.concurrency})"


def retention_of(given: Seconds | Mapping[JobState, Seconds] | None) -> dict[JobState, float]:
    """For how many seconds jobs of each final state are kept; nothing is said of those that are kept for ever.

    Raises:
        OptionError: a state is not final, or a duration out of bounds.
    """
    if given is None:
        return {}
    asked: Mapping[JobState, Seconds] = given if isinstance(given, Mapping) else dict.fromkeys(sorted(FINAL), given)
    for state in asked:
        if state not in FINAL:
            raise OptionError(f"retention is for ended jobs: {', '.join(map(str, sorted(FINAL)))}; not for {state}")
    return {state: limits.seconds(age, f"the retention of {state} jobs") for state, age in asked.items()}


def concurrency_of(queues: Mapping[str, int] | Iterable[Queue] | None) -> dict[str, int]:
    """How many jobs of each queue may run at once; one queue of ten where nothing was said.

    Raises:
        OptionError: these are no queues, or two have one name.
    """
    if queues is None:
        return {"default": 10}
    if isinstance(queues, Mapping):
        named = cast("Mapping[str, int]", queues)
        listed = [Queue(name, limit) for name, limit in named.items()]
    else:
        listed = list(queues)
    found: dict[str, int] = {}
    for queue in listed:
        if not isinstance(queue, Queue):
            raise OptionError(f"queues maps names to numbers, or lists Queues, not {limits.type_name(queue)}")
        if queue.name in found:
            raise OptionError(f"queue {queue.name!r} is given twice")
        found[queue.name] = queue.concurrency
    return found
