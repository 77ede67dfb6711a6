"""Is it well, and if not, why? What readiness checks and diagnoses answer with (nidus-jobs: health)."""

from __future__ import annotations

from typing import Literal

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


class Finding(Struct, frozen=True):
    """One reason why jobs do not run, or one thing to know about them, and what to do about it.

    An "error" keeps jobs from running until somebody acts, a "warning" holds them up or will, an "info" needs nothing
    done. `code` is a name for the kind of finding that does not change between versions. `text` and `advice` are one
    line each; they name queues, workers and nodes, never arguments or addresses.
    """

    level: Literal["error", "warning", "info"]
    code: str
    text: str
    advice: str = ""
