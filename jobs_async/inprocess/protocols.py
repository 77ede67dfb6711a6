"""What a job is, and how one is recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from jobs_async.core import limits
from jobs_async.inprocess.errors import JobTypeError

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T_co = TypeVar("T_co", covariant=True, default=object)
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """Anything with a name and a `run` method; the name is the same in every run.

    1 to 255 bytes of UTF-8 name it in reports, events and logs. What `run` needs to know, the object holds.
    """

    @property
    def name(self) -> str: ...

    def run(self) -> T_co: ...


class AsyncJob(Protocol[T_co]):
    """A job that awaits: its `run` is an `async def`."""

    @property
    def name(self) -> str: ...

    async def run(self) -> T_co: ...


def name_of(job: object) -> str:
    """The name of a job.

    Raises:
        JobTypeError: it is no job.
        OptionError: its name is not acceptable.
    """
    if isinstance(job, type):
        raise JobTypeError(f"{job.__name__} is a class; give an instance of it")
    if not callable(getattr(job, "run", None)):
        raise JobTypeError(f"a job has a name and a run method; {limits.type_name(job)} has no run method")
    if not hasattr(job, "name"):
        raise JobTypeError(f"a job has a name and a run method; {limits.type_name(job)} has no name")
    return limits.name(cast("Job", job).name, "a job's name")
