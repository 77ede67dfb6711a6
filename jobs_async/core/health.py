"""Is it well? What a readiness check answers with (nidus-jobs: health)."""

from __future__ import annotations

from msgspec import Struct


class Health(Struct, frozen=True):
    """Whether something answers, what was wrong if not, and how many seconds the answer took.

    `detail` names the kind of an error, never its text, which may hold an address.
    """

    up: bool
    detail: str = ""
    seconds: float = 0.0


class SupervisorHealth(Struct, frozen=True, kw_only=True):
    """Whether a Supervisor does what it is there for: its store answers, and where it is to run queues, it runs, and
    its lease holds. `stuck` are the jobs whose handlers go on after they were told to end; they do not count as ill.
    """

    up: bool
    store: Health
    is_running: bool
    node: str | None = None
    lease_holds: bool = False
    stuck: tuple[int, ...] = ()
