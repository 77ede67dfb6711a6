"""Where a process finds a worker that was made in another one: by its name in its module, never by what was stored."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs_async.core import limits
from jobs_async.core.annotations import Unresolved
from jobs_async.core.errors import WorkerError

if TYPE_CHECKING:
    from jobs_async.core.workers import WorkerDef


class Place(NamedTuple):
    """Where another process finds a worker: a name in a module, or in the file that the program was started with."""

    module: str
    name: str
    program: str | None = None


def check_for_process(fn: Any, worker: str, *, is_async: bool, takes_context: bool) -> None:
    """Only what another process can find by its name, and call without us, can run there.

    Raises:
        WorkerError: this cannot be found, or not be called there; it says why.
    """
    path = getattr(fn, "__qualname__", "")
    if is_async:
        problem = "an async function; an event loop runs those, write it with `def`"
    elif takes_context:
        problem = "given a context, which stays in the process of the Supervisor; leave context=True out"
    elif "<lambda>" in path:
        problem = "a lambda; give it a `def` of its own"
    elif "<locals>" in path:
        problem = "defined inside a function; move it to the top level of its module"
    elif "." in path:
        problem = "defined in a class; move it to the top level of its module"
    elif not path or not isinstance(getattr(fn, "__module__", None), str):
        problem = f"made of a {limits.type_name(fn)}; give it a `def` of its own"
    else:
        return
    raise WorkerError(f"{worker}: process=True is for what a process can find by its name; this is {problem}")


def place_of(worker: WorkerDef) -> Place:
    """Where a worker process finds this worker, which was made with `process=True`.

    Raises:
        WorkerError: it would find something else there, or nothing. `Unresolved`, as long as that can still change.
    """
    home, name = worker.__module__, str(getattr(worker, "__qualname__", ""))
    module = sys.modules.get(home)
    if getattr(module, name, None) is not worker:
        raise Unresolved(
            f"{worker.name}: a process would look for it as {home}.{name} and not find it there; "
            f"bind the worker to that name, as @worker(process=True) above `def {name}` does"
        )
    if home != "__main__":
        return Place(home, name)
    spec_name = getattr(getattr(module, "__spec__", None), "name", "__main__")
    if spec_name != "__main__":  # python -m
        return Place(spec_name, name)
    program = getattr(module, "__file__", None)
    if program is None:
        raise WorkerError(f"{worker.name}: a process cannot load what was typed into a session; put it into a module")
    return Place(home, name, program)
