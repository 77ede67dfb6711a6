"""How a run ended, as a value; and the signals a handler raises to choose its ending."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec import Struct

from jobs_async.core import limits
from jobs_async.core.job import MAX_ERROR_BYTES

if TYPE_CHECKING:
    from jobs_async.core.limits import Seconds


class Signal(Exception):
    """A handler raises one to end its run on purpose."""


class Snooze(Signal):
    """Run me again in `seconds`; this attempt does not count."""

    def __init__(self, seconds: Seconds) -> None:
        self.seconds = limits.seconds(seconds, "a snooze")
        super().__init__(f"snoozed for {timedelta(seconds=self.seconds)}")


class Cancel(Signal):
    """I have become pointless: end as cancelled, whatever attempts remain."""

    def __init__(self, reason: str = "cancelled by its handler") -> None:
        super().__init__(reason)


class Discard(Signal):
    """I can never succeed: end as discarded, whatever attempts remain (nidus-jobs: PermanentError)."""

    def __init__(self, reason: str = "discarded by its handler") -> None:
        super().__init__(reason)


def storable(text: str, limit: int = MAX_ERROR_BYTES) -> str:
    """Valid UTF-8 without NUL, cut to `limit` bytes between two characters."""
    data = text.replace("\0", "\ufffd").encode("utf-8", "replace")
    return data[:limit].decode("utf-8", "ignore")


class Failure(Struct, frozen=True, gc=False):
    """What went wrong, safe to store: type, "Type: message" within 2,048 bytes, the last frames."""

    type: str
    error: str
    frames: tuple[str, ...] = ()


class Completed(Struct, frozen=True, gc=False):
    """The handler returned; `result` is its JSON, None where it returned nothing or nothing storable."""

    result: str | None = None


class Failed(Struct, frozen=True, gc=False):
    """The handler raised or ran out of time: retried after back-off, discarded when attempts are spent."""

    failure: Failure


class Discarded(Struct, frozen=True, gc=False):
    """Never to be tried again."""

    failure: Failure


class Cancelled(Struct, frozen=True, gc=False):
    """Ended by the handler's own Cancel, or by a user's request; a result reached all the same is kept."""

    reason: str = "cancelled"
    result: str | None = None


class Snoozed(Struct, frozen=True, gc=False):
    """To be run again after `seconds`, without counting this attempt."""

    seconds: float


class Interrupted(Struct, frozen=True, gc=False):
    """Cut by a stop, or never begun: handed back at once, without counting this attempt."""

    delay: float = 0.0


class Lost(Struct, frozen=True, gc=False):
    """Its node died; a job lost more than `max_rescues` times is taken for the killer."""

    max_rescues: int = 3
    text: str = "rescued: node lost"


Outcome = Completed | Failed | Discarded | Cancelled | Snoozed | Interrupted | Lost
