"""`jobs-async demo`: index real source files, one job per file, in a SQLite file that survives kill -9."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import sysconfig
import warnings
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING

import click

from jobs_async.cli.demo_index import Source
from jobs_async.cli.demo_run import Demo
from jobs_async.cli.demo_view import View, shown, view_for
from jobs_async.core.errors import JobsError

if TYPE_CHECKING:
    from collections.abc import Generator

NOT_STANDARD = frozenset({"site-packages", "dist-packages"})


@click.command()
@click.argument("folder", required=False)
@click.option(
    "--database", default="jobs-async-demo.db", show_default=True, metavar="PATH", help="The file that keeps the jobs."
)
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1, 64), help="Files parsed at once.")
@click.option("--fresh", is_flag=True, help="Drop an unfinished run instead of going on with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; all else goes to standard error.")
def demo(folder: str | None, database: str, concurrency: int, *, fresh: bool, as_json: bool) -> None:
    """Index the Python files of FOLDER, one background job per file.

    Counts lines, functions and classes of every .py file below FOLDER, by default of Python's own standard library,
    and of three broken files written beside the database. Kill it at any moment, even with kill -9: started again, it
    goes on where it was. After a finished run it starts afresh.
    """
    source = Source(
        folder=readable(sysconfig.get_path("stdlib") if folder is None else folder),
        broken=os.path.splitext(os.path.realpath(database))[0] + "-broken",
        leave_out=NOT_STANDARD if folder is None else frozenset(),
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be more than a terminal can show
    try:
        with prepared(), view_for(as_json=as_json) as view:
            asyncio.run(_run(database, source, view, concurrency, fresh=fresh))
    except BrokenPipeError:  # the reader of our output has left; click knows what to do
        raise
    except (JobsError, OSError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on where this one stopped", err=True)
        sys.exit(130)


async def _run(database: str, source: Source, view: View, concurrency: int, *, fresh: bool) -> None:
    from jobs_async.stores.sqlite import SqliteStore

    async with SqliteStore(database) as store:
        await Demo(store, source, view, concurrency).run(fresh=fresh)


def readable(folder: str) -> str:
    """The folder's real path.

    Raises:
        ClickException: it is none, or cannot be read.
    """
    try:
        os.scandir(folder).close()
        return os.path.realpath(folder, strict=True)
    except OSError as error:
        raise click.ClickException(f"cannot read folder {shown(folder)}: {error.strerror}") from None


@contextmanager
def prepared() -> Generator[None]:
    """What parsing a lot of other people's code asks of a process.

    It warns, and broken files fail on purpose: neither belongs on the terminal. A syntax tree is thousands of objects
    in no cycle, and a collector that looks at them again and again takes as long as the parser.
    """
    log = logging.getLogger("jobs_async")
    threshold = gc.get_threshold()
    log.addFilter(_is_worth_a_line)
    gc.set_threshold(100_000, *threshold[1:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        gc.set_threshold(*threshold)
        log.removeFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """All but the failures of handlers, which alone come as warnings with a traceback."""
    return record.levelno > logging.WARNING or not record.exc_info
