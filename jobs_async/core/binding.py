"""Which Supervisor a worker enqueues into: the first rule that names exactly one, never a guess.

Workers know Supervisors by weak references only. A Supervisor that stops is detached by its own word, so that no
answer waits for the garbage collector.
"""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from jobs_async.core import context
from jobs_async.core.annotations import Unresolved
from jobs_async.core.errors import NotBound

if TYPE_CHECKING:
    from jobs_async.core.job import Job
    from jobs_async.core.options import Draft


class Host(Protocol):
    """Where jobs are enqueued: what a worker sees of a Supervisor."""

    @property
    def is_running(self) -> bool: ...

    @property
    def is_stopped(self) -> bool: ...

    async def enqueue(self, draft: Draft[Any], /, *, connection: object = None) -> Job[Any]: ...


class Bindable:
    """What can be attached to a Host. `answer` is the last one of `resolve`, and the epoch it was given in."""

    name: str
    answer: tuple[object, weakref.ref[Host]] | None = None

    def prepare(self) -> None:
        """Make ready to be used; harmless when ready. Raises WorkerError where that cannot be."""


_attached: weakref.WeakKeyDictionary[Host, weakref.WeakSet[Bindable]] = weakref.WeakKeyDictionary()
_epoch = object()
"""Answers given in another epoch are void. An object, for a counter could miss a step between threads."""


def changed() -> None:
    """Forget every answer: a Host has started or stopped."""
    global _epoch  # noqa: PLW0603
    _epoch = object()


def attach(worker: Bindable, host: Host, *, declared: bool = False) -> None:
    """Let a worker find a Host. Harmless when attached.

    `declared` is for a decorator in a module that is still being executed: annotations may name what comes further
    down, and are looked up at the first use or the next `prepare`.

    Raises:
        WorkerError: the worker's parameters cannot be stored as JSON.
    """
    try:
        worker.prepare()
    except Unresolved:
        if not declared:
            raise
    _attached.setdefault(host, weakref.WeakSet()).add(worker)
    changed()


def detach(host: Host) -> None:
    """Let no worker find a Host any more, except by name (`.on()`). Harmless when detached."""
    _attached.pop(host, None)
    changed()


def is_attached(worker: Bindable, host: Host) -> bool:
    """Whether `attach` was called for the two, and `detach` not since."""
    workers = _attached.get(host)
    return workers is not None and worker in workers


def resolve(worker: Bindable) -> Host:
    """The Host to enqueue into: that of the current handler, the only one running, the only one not stopped.

    Raises:
        NotBound: none is attached, or several are.
    """
    here: Host | None = getattr(context.current.get(None), "host", None)
    if here is not None and is_attached(worker, here):
        return here
    epoch = _epoch  # read before looking, so that a change in the meantime voids the answer
    answer = worker.answer
    if answer is not None and answer[0] is epoch:
        known = answer[1]()
        if known is not None:
            return known
    host = _search(worker)
    worker.answer = (epoch, weakref.ref(host))
    return host


def _search(worker: Bindable) -> Host:
    if len(_meant(_hosts_of(worker))) > 1:
        gc.collect()  # one that was dropped without a stop must not count until it happens to be collected
    known = _hosts_of(worker)
    meant = _meant(known)
    if len(meant) == 1:
        return meant[0]
    if any(host.is_running for host in meant):
        problem = f"is attached to {len(meant)} running Supervisors; say which"
    elif meant:
        problem = f"is attached to {len(meant)} Supervisors, of which none is running; start one, or say which"
    elif known:
        problem = "is attached to Supervisors that have stopped; start one, or name another"
    else:
        problem = "is attached to no Supervisor; pass it in workers=[...] to one that is not stopped, or name one"
    raise NotBound(f"{worker.name} {problem} with {worker.name}.on(supervisor).enqueue(...)")


def _hosts_of(worker: Bindable) -> list[Host]:
    return [host for ref in _attached.keyrefs() if (host := ref()) is not None and is_attached(worker, host)]


def _meant(hosts: list[Host]) -> list[Host]:
    """Those running, or where none is those that may still start."""
    return [host for host in hosts if host.is_running] or [host for host in hosts if not host.is_stopped]
