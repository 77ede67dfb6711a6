"""What runs in a worker process: one job after the other, each answered with a few plain words.

A request names a worker that the parent has registered; nothing of it but the arguments was ever in a store.
"""

from __future__ import annotations

import functools
import inspect
import os
import pkgutil
import signal
import sys
import threading
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec
from msgspec import Struct

from jobs_async.core.errors import ArgsError, UnreadableArgs
from jobs_async.core.outcome import Cancel, Discard, Failure, Snooze, storable
from jobs_async.core.places import Place
from jobs_async.core.workers import WorkerDef
from jobs_async.runtime.failures import failure_of

if TYPE_CHECKING:
    from types import ModuleType

PROGRAM = "__mp_main__"
"""The name under which the parent's program is loaded: not `__main__`, so that it does not begin once more."""
HEAD = 4
"""Bytes before a message that say how long it is."""
MAX_TRACE = 8_192


class Request(Struct, frozen=True):
    """Run this worker with these arguments."""

    place: Place
    args_json: str


class Returned(Struct, frozen=True, tag=True):
    """The handler returned; `complaint` says why what it returned is no result."""

    result: str | None = None
    complaint: str = ""


class Snoozing(Struct, frozen=True, tag=True):
    """It asked to be run again later."""

    seconds: float


class Cancelling(Struct, frozen=True, tag=True):
    """It has become pointless."""

    reason: str


class Raised(Struct, frozen=True, tag=True):
    """It raised anything else; `is_final`: it is not to be tried again."""

    failure: Failure
    trace: str = ""
    is_final: bool = False


Reply = Returned | Snoozing | Cancelling | Raised

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_loading = threading.Event()


def is_loading_program() -> bool:
    """Whether the parent's program is being loaded right now, in a worker process of its own."""
    return _loading.is_set()


def framed(message: bytes) -> bytes:
    """A message as it goes through a pipe."""
    return len(message).to_bytes(HEAD, "big") + message


def serve() -> None:
    """Answer requests, one at a time, until the parent closes its end or dies; then the process is gone at once."""
    requests, replies = _take_pipes()
    signal.signal(signal.SIGTERM, _go_on)  # it is for the parent to say when this ends; a group is told as one
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, inbox), name="jobs_async requests", daemon=True).start()
    while True:
        reply = reply_to(_requests.decode(inbox.get()))
        replies.write(framed(msgspec.json.encode(reply)))
        replies.flush()


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output become ours alone; handlers read nothing there, and write to standard error."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    if hasattr(os, "register_at_fork"):  # or what a handler forks would keep the pipes open when this process dies
        os.register_at_fork(after_in_child=lambda: _close(requests, replies))
    return requests, replies


def _go_on(_signal: int, _frame: object) -> None:
    """Not SIG_IGN, which what a handler starts would inherit."""


def _close(*pipes: BinaryIO) -> None:
    for pipe in pipes:
        os.close(pipe.fileno())


def _read(requests: BinaryIO, inbox: SimpleQueue[bytes]) -> None:
    """In a thread of its own, so that a parent that dies is noticed while a handler runs."""
    while len(head := requests.read(HEAD)) == HEAD:
        inbox.put(requests.read(int.from_bytes(head, "big")))
    if sys.platform != "win32" and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)  # and whatever the handler has started
    os._exit(0)


def reply_to(request: Request) -> Reply:
    """Run a job; whatever happens is told, nothing is raised."""
    try:
        try:
            return _run(request)
        except BaseException as error:
            return _raised(error)
    except BaseException as error:  # text that cannot be read
        return Raised(failure_of(error))


def _run(request: Request) -> Returned:
    worker = _find(request.place)
    value = worker.invoke(request.args_json, cast("Any", None))
    if value is None:
        return Returned()
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError("a handler in a process returned something to be awaited; nothing awaits it there")
    try:
        return Returned(worker.encode_result(value))
    except ArgsError as error:
        return Returned(complaint=str(error))


def _raised(error: BaseException) -> Reply:
    match error:
        case Snooze(seconds=seconds):
            return Snoozing(seconds)
        case Cancel():
            return Cancelling(storable(str(error)))
        case _:
            is_final = isinstance(error, Discard | UnreadableArgs)
            return Raised(failure_of(error), _trace(error), is_final)


def _trace(error: BaseException) -> str:
    """The traceback as the log shows it, from the handler on."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("jobs_async."):
        trace = trace.tb_next
    try:
        return storable("".join(traceback.format_exception(type(error), error, trace)).rstrip(), MAX_TRACE)
    except BaseException:
        return ""


def _find(place: Place) -> WorkerDef:
    if place.program is None:
        found: object = pkgutil.resolve_name(f"{place.module}:{place.name}")
    else:
        found = getattr(_program(place.program), place.name, None)
    if not isinstance(found, WorkerDef):
        raise LookupError(f"{place.module}.{place.name} is no worker in a process of its own; is it defined always?")
    return found


@functools.cache
def _program(path: str) -> ModuleType:
    """The file that the parent was started with, as a module; what stands under its guard is left out."""
    spec = spec_from_loader(PROGRAM, SourceFileLoader(PROGRAM, path))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    sys.modules[PROGRAM] = module = module_from_spec(spec)
    _loading.set()
    try:
        spec.loader.exec_module(module)
    finally:
        _loading.clear()
    return module
