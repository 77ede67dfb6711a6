"""What is known of a run that is observed."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobs_async.core import limits
from jobs_async.core.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping


class JobResultStatus(StrEnum):
    """How a run ended: it returned, or it did not."""

    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class ObservedJobContext:
    """One run of one job. `duration` is in seconds, None until the run has ended.

    `attributes` is what the runner was told to pass on, sorted by key; it cannot be changed.
    """

    run_id: str
    job_name: str
    attributes: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    duration: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", MappingProxyType(dict(sorted(self.attributes.items()))))

    def with_attribute(self, key: str, value: str) -> ObservedJobContext:
        """A copy with one attribute more, or another value for it.

        Raises:
            OptionError: the key is not 1 to 255 bytes of text, or the value no string.
        """
        return replace(self, attributes=with_attribute(self.attributes, key, value))


def with_attribute(attributes: Mapping[str, str], key: str, value: str) -> Mapping[str, str]:
    """A copy with one attribute more; what was there stays as it is."""
    limits.name(key, "the key of an attribute")
    given: object = value
    if not isinstance(given, str):
        raise OptionError(f"the value of attribute {key!r} must be a string, not {limits.type_name(given)}")
    return {**attributes, key: value}


running: ContextVar[ObservedJobContext | None] = ContextVar("jobs_async_observed_run", default=None)


def current_run() -> ObservedJobContext | None:
    """The observed run that the caller is part of, for a log filter, say; None outside one."""
    return running.get()
