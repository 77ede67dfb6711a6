"""Jobs and observers that tests of this package share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs_async.inprocess import JobResultStatus, ObservedJobContext


@dataclass
class Plain:
    """A sync job that does what it is told."""

    name: str = "plain"
    does: Callable[[], object] = lambda: None

    def run(self) -> object:
        return self.does()


@dataclass
class Awaiting:
    """An async job that does what it is told."""

    name: str = "awaiting"
    does: Callable[[], Any] = lambda: None

    async def run(self) -> object:
        answer = self.does()
        return await answer if hasattr(answer, "__await__") else answer


@dataclass
class Notes:
    """An observer that writes down what it hears."""

    started: list[ObservedJobContext] = field(default_factory=list)
    finished: list[tuple[ObservedJobContext, JobResultStatus]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def on_job_started(self, context: ObservedJobContext) -> Any:
        self.started.append(context)
        self.order.append(f"started {context.job_name}")

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus) -> Any:
        self.finished.append((context, status))
        self.order.append(f"finished {context.job_name}: {status}")


class AsyncNotes(Notes):
    """The same, with async hooks."""

    async def on_job_started(self, context: ObservedJobContext) -> None:
        super().on_job_started(context)

    async def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus) -> None:
        super().on_job_finished(context, status)


def failing(error: BaseException) -> Callable[[], object]:
    """What a job does that raises."""

    def fail() -> object:
        raise error

    return fail
