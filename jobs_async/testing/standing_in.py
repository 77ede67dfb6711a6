"""An application's own Supervisor, answered for by another one while a test lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import OptionError
from jobs_async.runtime.engine import ShutdownReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobs_async.core.schedule import CronEntry
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.supervisor import Supervisor

TAKEN_OVER = (
    "enqueue_many get find counts wait watch cancel retry edit delete cancel_all retry_all delete_all pause_queue "
    "resume_queue scale_queue drain queues nodes health diagnose"
).split()


class StandIn:
    """Lets another Supervisor answer in place of the application's own, for a while."""

    def __init__(self, app: Supervisor) -> None:
        self._app = app
        self._known: Any = app
        self._was: dict[str, Any] = {}
        self._shadow: dict[str, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        """What is the same in the one that stands in for it."""
        return {"telemetry": self._app.telemetry, "strict": self._known._strict}

    @property
    def workers(self) -> list[WorkerDef]:
        return list(self._known._workers.values())

    @property
    def crons(self) -> Mapping[str, CronEntry]:
        return self._app.crons

    def by(self, other: Supervisor) -> None:
        """Let the other one answer in its place."""
        if self._app.is_running:
            raise OptionError("nothing can stand in for a Supervisor that is running; stop that first")
        self._shadow = {name: getattr(other, name) for name in TAKEN_OVER}
        self._shadow |= {"store": other.store, "start": _stay, "stop": _stay, "_register": self._register_with(other)}
        own = vars(self._app)
        self._was = {name: own[name] for name in self._shadow if name in own}
        own.update(self._shadow)

    def _register_with(self, other: Any) -> Callable[..., None]:
        """Workers that come up meanwhile are known to both."""
        register = self._known._register

        def both(worker: WorkerDef, *, declared: bool = False) -> None:
            register(worker, declared=declared)
            other._register(worker, declared=declared)

        return both

    def undo(self) -> None:
        own = vars(self._app)
        for name in self._shadow:
            del own[name]
        own.update(self._was)


async def _stay() -> ShutdownReport:
    """Neither starts nor stops anything."""
    return ShutdownReport()
