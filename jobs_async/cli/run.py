"""`jobs-async run`: run the jobs of an application, in this process or in several."""

from __future__ import annotations

import asyncio
import logging
import os
import pkgutil
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import click
from msgspec import Struct
from msgspec.structs import asdict

from jobs_async.cli import exits
from jobs_async.cli.fleet import Fleet
from jobs_async.cli.life import End, live
from jobs_async.cli.output import say_json
from jobs_async.cli.target import APP, app_options, load
from jobs_async.cli.urgency import Urgency
from jobs_async.core.errors import JobsError, OptionError, StoreError
from jobs_async.core.version import VERSION
from jobs_async.runtime.patience import in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobs_async.runtime.supervisor import Supervisor

EXIT_SECONDS = 2.0
"""How long the interpreter may take to end, once all is stopped; threads that jobs have left may not hold it up."""

logger = logging.getLogger("jobs_async.cli")


class Settings(Struct, frozen=True, kw_only=True):
    """What the command line said."""

    app: str
    app_dir: str
    queues: tuple[str, ...]
    processes: int
    burst: bool
    loop: str
    as_json: bool
    log_format: str | None
    log_level: str | None
    debug: bool
    child: int | None


@click.command()
@click.argument("app", envvar=APP)
@click.option(
    "-q",
    "--queues",
    multiple=True,
    metavar="NAME[=N],...",
    help="Run these queues, N jobs of each at once, instead of the application's own.",
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes to start.")
@click.option("--burst", is_flag=True, help="End as soon as there is nothing left to run.")
@click.option(
    "--loop",
    type=click.Choice(["auto", "asyncio", "uvloop"]),
    default="auto",
    show_default=True,
    help="The event loop; auto: uvloop where it is installed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line at the start, and one at the end.")
@click.option("--log-format", type=click.Choice(["human", "json"]), help="How log lines look.  [default: human]")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is logged.  [default: info]",
)
@app_options
@click.option("--child", type=int, hidden=True)
def run(**options: Any) -> None:
    """Run the jobs of APP, the place of a Supervisor: module:attribute, or of a function that returns one.

    SIGTERM and Ctrl-C let running jobs finish, for shutdown_timeout seconds; a second one cancels them at once, a third
    leaves without waiting for anything. Logs go to standard error.
    """
    settings = Settings(**options)
    wanted = parsed_queues(settings.queues)
    if settings.processes > 1:
        code = _run_many(settings)
    else:
        code = _run_here(settings, wanted)
    if code:
        raise click.exceptions.Exit(code)


def parsed_queues(given: Sequence[str]) -> dict[str, int | None]:
    """`mail=10,default` as queues and limits; None where none was said.

    Raises:
        BadParameter: that is none.
    """
    found: dict[str, int | None] = {}
    for part in ",".join(given).split(",") if given else ():
        name, equals, number = part.strip().rpartition("=") if "=" in part else (part.strip(), "", "")
        if not name:
            raise click.BadParameter(f"{part!r} names no queue; say NAME or NAME=N", param_hint="--queues")
        if name in found:
            raise click.BadParameter(f"queue {name!r} is given twice", param_hint="--queues")
        if equals and not (number.isascii() and number.isdecimal()):
            raise click.BadParameter(f"{number!r} is no number of jobs for queue {name!r}", param_hint="--queues")
        found[name] = int(number) if equals else None
    return found


# --- one process ---


def _run_here(settings: Settings, queues: dict[str, int | None]) -> int:
    new_loop = loop_factory(settings.loop)
    jobs = load(settings.app, app_dir=settings.app_dir, debug=settings.debug)
    try:
        if queues:
            jobs.serve(queues)
    except OptionError as error:
        raise click.BadParameter(str(error), param_hint="--queues") from error
    if not jobs.served and (settings.burst or not jobs.crons):
        raise exits.Misuse(f"{settings.app!r} runs no queues; say which with --queues")
    _log(settings)
    urgency = Urgency()
    urgency.listen()
    if settings.child is not None:
        urgency.follow(settings.child)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        end = _live(runner, jobs, urgency, settings)
        _say_end(end, as_json=settings.as_json)
        if end.report.still_running:
            _leave(end.exit_code)
        closing = threading.Timer(EXIT_SECONDS, _leave, (end.exit_code,))
        closing.start()
    closing.cancel()
    threading.Thread(target=_see_out, args=(end.exit_code,), name="jobs_async exit", daemon=True).start()
    return end.exit_code


def _see_out(exit_code: int) -> None:
    """Threads that jobs have left behind would hold up the end of the interpreter for ever."""
    threading.main_thread().join()
    threading.Event().wait(EXIT_SECONDS)
    _leave(exit_code)


def _live(runner: asyncio.Runner, jobs: Supervisor, urgency: Urgency, settings: Settings) -> End:
    async def began(jobs: Supervisor) -> None:
        await _say_start(jobs, as_json=settings.as_json)
        if settings.child is not None:
            with socket.socket(fileno=os.dup(settings.child)) as line:
                line.send(b".")

    try:
        return runner.run(live(jobs, urgency, burst=settings.burst, began=began))
    except (JobsError, OSError) as error:
        raise exits.failure_of(error) from error


async def _say_start(jobs: Supervisor, *, as_json: bool) -> None:
    queues, node = dict(jobs.served), jobs.node
    workers: tuple[str, ...] = ()
    if node is not None:
        with suppress(StoreError):
            workers = next((one.workers for one in await in_time(jobs.store.nodes()) if one.id == node), ())
    named = ", ".join(f"{name}={limit}" for name, limit in queues.items()) or f"cron entries {', '.join(jobs.crons)}"
    logger.info("running %s from %r%s", named, jobs.store, f" as node {node}" if node else "")
    if as_json:
        say_json(
            {
                "event": "started",
                "pid": os.getpid(),
                "version": VERSION,
                "node": node,
                "queues": queues,
                "workers": workers,
                "crons": sorted(jobs.crons),
            }
        )


def _say_end(end: End, *, as_json: bool) -> None:
    report = end.report
    if report.is_clean:
        logger.info("stopped")
    else:
        logger.error("stopped; jobs %s are left to be rescued", sorted((*report.still_running, *report.unsettled)))
    if as_json:
        drained = None if end.drained is None else asdict(end.drained)
        document = {"event": "stopped", "pid": os.getpid(), "exit_code": end.exit_code, "drained": drained}
        say_json({**document, **asdict(report)})


def _leave(exit_code: int) -> None:
    """Leave at once: handlers that would not end hold up everything else."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes an event loop of the kind asked for.

    Raises:
        Misuse: it is not installed.
    """
    if name != "asyncio":
        try:
            return cast("Callable[[], asyncio.AbstractEventLoop]", pkgutil.resolve_name("uvloop:new_event_loop"))
        except ImportError as error:
            if name == "uvloop":
                raise exits.Misuse("uvloop is not installed: pip install jobs-async[uvloop]") from error
    return asyncio.new_event_loop


def _log(settings: Settings) -> None:
    """To standard error; what the application has set up stays, unless the command line asks for something else."""
    from jobs_async.observe.logs import HumanFormatter, JobFilter, JsonFormatter

    root = logging.getLogger()
    if root.handlers and settings.log_format is None and settings.log_level is None:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(JobFilter())
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else HumanFormatter())
    root.handlers[:] = [handler]
    root.setLevel((settings.log_level or "info").upper())


# --- several ---


def _run_many(settings: Settings) -> int:
    if os.name != "posix":
        raise click.UsageError("--processes needs a POSIX system; start the command several times instead")
    _log(settings)
    fleet = Fleet(_command(settings), settings.processes, burst=settings.burst)
    code = fleet.run()
    if settings.as_json:
        say_json({"event": "ended", "pid": os.getpid(), "exit_code": code, "processes": fleet.codes})
    return code


def _command(settings: Settings) -> list[str]:
    """The command line of a child."""
    valued = {
        "--queues": ",".join(settings.queues) or None,
        "--loop": settings.loop,
        "--log-format": settings.log_format,
        "--log-level": settings.log_level,
        "--app-dir": settings.app_dir,
    }
    flags = {"--burst": settings.burst, "--json": settings.as_json, "--debug": settings.debug}
    return [
        *(sys.executable, "-m", "jobs_async", "run"),
        *(word for name, value in valued.items() if value is not None for word in (name, value)),
        *(name for name, wanted in flags.items() if wanted),
        settings.app,
    ]
