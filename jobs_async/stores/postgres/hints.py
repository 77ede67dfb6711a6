"""NOTIFY and LISTEN: a hint to other processes that there is something to do, so that they need not wait for a poll."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

from jobs_async.core.hint import Hint
from jobs_async.core.job import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobs_async.core.lifecycle import Transition

_WORK = (JobState.available, JobState.scheduled)
"""Not retryable: whoever put a job off until its retry looks after it."""
_KINDS: dict[str, Any] = {"work": "work", "cancel": "cancel", "queue": "queue"}


class Hints:
    """The words of one store: whom they come from, and what they are about."""

    def __init__(self, schema: str, *, spoken: bool) -> None:
        self.channel = f"jobs_async_{hashlib.sha256(schema.encode()).hexdigest()[:16]}"
        self.origin = uuid.uuid4().hex[:12]
        self._schema = schema
        self._spoken = spoken
        self._of_guest: Hints | None = None

    def of_guest(self) -> Hints:
        """For somebody else's transaction: we follow these words as well, for only they tell us of its commit."""
        if self._of_guest is None:  # always the same, so that words which are said twice in one transaction are one
            self._of_guest = Hints(self._schema, spoken=self._spoken)
        return self._of_guest

    @property
    def echo(self) -> str:
        """What a listener says to hear itself."""
        return f"{self.origin} echo"

    def work(self, queues: Iterable[str]) -> list[str]:
        """Jobs of these queues can be claimed, now or at a time that can be looked up."""
        return self._words("work", queues)

    def queue(self, name: str) -> list[str]:
        """A queue was paused, resumed or scaled."""
        return self._words("queue", [name])

    def of_steps(self, steps: Iterable[Transition]) -> list[str]:
        """What transitions, once applied, are to others."""
        given = list(steps)
        cancelled = {step.job.node for step in given if step.patch.cancel_requested is True and step.job.node}
        return [
            *self._words("work", {step.job.queue for step in given if step.target in _WORK}),
            *self._words("cancel", cancelled),
        ]

    def _words(self, kind: str, names: Iterable[str]) -> list[str]:
        return [f"{self.origin} {kind} {name}" for name in sorted(names)] if self._spoken else []

    def heard(self, payload: str) -> Hint | None:
        """What somebody else said; None for words of our own, and for what nobody of ours says."""
        origin, _, rest = payload.partition(" ")
        kind, _, name = rest.partition(" ")
        if origin == self.origin or kind not in _KINDS:
            return None
        return Hint(_KINDS[kind], name)
