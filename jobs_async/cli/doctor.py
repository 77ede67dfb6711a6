"""`jobs-async doctor`: why jobs do not run, one line each, with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict

from jobs_async.cli import exits
from jobs_async.cli.output import say_json, say_rows
from jobs_async.cli.schema import behind
from jobs_async.cli.target import supervisor_of, target_options
from jobs_async.core.health import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs_async.runtime.supervisor import Supervisor

COLORS = {"error": "bold red", "warning": "yellow", "info": "green"}


@click.command()
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(app: str | None, url: str | None, *, app_dir: str, debug: bool, as_json: bool) -> None:
    """Say why jobs on the store of APP (module:supervisor) or --store URL do not run.

    Exit code 0 where nothing is wrong, 4 where something is, 5 where the store cannot be used.
    """
    jobs = supervisor_of(app, url, app_dir=app_dir, debug=debug)
    try:
        found = exits.run(_examine(jobs))
    except exits.Failure as failure:
        if failure.exit_code != exits.STORE:
            raise
        found = [Finding("error", "store-unreachable", failure.message, _advice(failure.message))]
    _say(found, as_json=as_json)
    if code := _exit_code(found):
        raise click.exceptions.Exit(code)


async def _examine(jobs: Supervisor) -> Sequence[Finding]:
    try:
        if problem := await behind(jobs.store):
            text, _, advice = problem.partition(": ")
            return [Finding("error", "schema-behind", f"the store cannot be used: {text}", advice)]
        return await jobs.diagnose()
    finally:
        await jobs.stop()


def _advice(text: str) -> str:
    """What to do about a store that cannot be used, by what it said."""
    if "permission denied" in text:
        return "grant the role its rights on the tables of jobs_async"
    if "authentication" in text or "does not let us in" in text:
        return "correct the user, the password or the database in its address"
    return "start the database, or correct its address"


def _exit_code(found: Sequence[Finding]) -> int:
    if any(one.code in ("store-unreachable", "schema-behind") for one in found):
        return exits.STORE
    return exits.OK if all(one.level == "info" for one in found) else exits.TROUBLE


def _say(found: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        say_json({"ok": not _exit_code(found), "findings": [asdict(one) for one in found]})
        return
    rows = [(one.level, one.code, one.text, one.advice) for one in found]
    say_rows(["", "code", "what", "what to do"], rows, [COLORS[one.level] for one in found])
