"""Which Supervisor or store a command is about: an application's, by its place in the code, or a store by its URL."""

from __future__ import annotations

import asyncio
import inspect
import os
import pkgutil
import sys
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs_async.cli.exits import Misuse
from jobs_async.core.errors import OptionError
from jobs_async.core.limits import type_name
from jobs_async.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

F = TypeVar("F", bound="Callable[..., Any]")

APP, STORE = "JOBS_APP", "JOBS_STORE"
"""Environment variables that stand in for what the command line does not say."""


def app_options(command: F) -> F:
    """The options of a command that loads an application."""
    debug = click.option("--debug", is_flag=True, help="Show tracebacks.")
    app_dir = click.option(
        "--app-dir", default=".", show_default=True, metavar="DIR", help="Where modules are looked for first."
    )
    return app_dir(debug(command))


def target_options(command: F) -> F:
    """The options of a command that needs a store, the one of an application or any."""
    store = click.option(
        "--store", "url", metavar="URL", help=f"A store instead of an application; {STORE} says it unseen by others."
    )
    return click.argument("app", required=False)(store(app_options(command)))


def supervisor_of(app: str | None, url: str | None, *, app_dir: str, debug: bool) -> Supervisor:
    """The application's Supervisor, not started; or one that runs nothing, on the store of a URL.

    Raises:
        UsageError: both were named, or none.
        Misuse: it cannot be loaded or made.
    """
    if app and url:
        raise click.UsageError("name an application or a --store, not both")
    if not app and not url:
        app, url = os.environ.get(APP), os.environ.get(STORE)
    if app:
        return load(app, app_dir=app_dir, debug=debug)
    if not url:
        raise click.UsageError(f"name an application (module:supervisor) or a --store URL, or set {APP} or {STORE}")
    try:
        return Supervisor(url, queues={})
    except OptionError as error:
        raise Misuse(str(error)) from error
    except ImportError as error:
        raise Misuse(str(error)) from error  # which says what to install


def load(path: str, *, app_dir: str, debug: bool = False) -> Supervisor:
    """The Supervisor at `module:attribute`, or the one that a function there returns.

    Raises:
        Misuse: there is none. Where the application's own code raised, its traceback was shown.
    """
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise Misuse(f"{path!r} is no place of a Supervisor; say module:attribute, for example shop.tasks:jobs")
    sys.path.insert(0, os.path.abspath(app_dir))
    try:
        found: object = pkgutil.resolve_name(path)
        if inspect.isroutine(found):
            found = found()
    except Exception as error:
        raise _unloadable(path, module, error, debug=debug) from error
    except SystemExit as error:
        raise Misuse(f"cannot load {path!r}: it exits with {error.code!r} when it is imported") from error
    if isinstance(found, Supervisor):
        return found
    if asyncio.iscoroutine(found):
        found.close()
    raise Misuse(f"{path!r} is no Supervisor and returns none, but a {type_name(found)}")


def _unloadable(path: str, module: str, error: Exception, *, debug: bool) -> Misuse:
    """One line, below the traceback where it was the application's code that raised."""
    theirs = _their_part(error.__traceback__)
    if theirs is not None or debug:
        shown = error.__traceback__ if debug else theirs
        click.echo("".join(traceback.format_exception(type(error), error, shown)).rstrip(), err=True)
    elif isinstance(error, ModuleNotFoundError):
        return Misuse(f"cannot load {path!r}: there is no module {error.name!r}")
    elif isinstance(error, AttributeError):
        return Misuse(f"cannot load {path!r}: module {module!r} has nothing of that name")
    return Misuse(f"cannot load {path!r}: {type_name(error)}: {error}")


def _their_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first line that is neither ours nor the import system's; None where there is none."""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in ("jobs_async", "pkgutil", "importlib"):
            return trace
        trace = trace.tb_next
    return None
