"""`jobs-async health`: one line and an exit code for the probes of containers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import click

from jobs_async.cli import exits
from jobs_async.cli.output import say_json
from jobs_async.cli.schema import behind
from jobs_async.cli.target import supervisor_of, target_options
from jobs_async.runtime.patience import in_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs_async.core.store import Node
    from jobs_async.runtime.supervisor import Supervisor


@click.command()
@target_options
@click.option("--role", type=click.Choice(["any", "worker"]), default="any", help="worker: a live node is wanted, too.")
@click.option("--here", is_flag=True, help="Only nodes on this host count (in a container: of this one).")
@click.option(
    "--max-age",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="A node counts only with a sign of life no older than this. Default: as long as its lease holds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def health(
    app: str | None,
    url: str | None,
    *,
    app_dir: str,
    debug: bool,
    role: str,
    here: bool,
    max_age: float | None,
    as_json: bool,
) -> None:
    """Say whether the store of APP (module:supervisor) or --store URL answers: exit code 0, or 1 if not.

    With --role worker, --here or --max-age a live node is wanted as well.
    """
    jobs = supervisor_of(app, url, app_dir=app_dir, debug=debug)
    wants_node = role == "worker" or here or max_age is not None
    try:
        ill, nodes = exits.run(_examine(jobs, here=here, max_age=max_age, wants_node=wants_node))
    except exits.Failure as failure:
        ill, nodes = failure.message, 0
    if as_json:
        say_json({"up": ill is None, "detail": ill or "", "nodes": nodes})
    else:
        click.echo(f"up, {nodes} live node{'s' * (nodes != 1)}" if ill is None else f"down: {ill}")
    if ill is not None:
        raise click.exceptions.Exit(exits.FAILED)


async def _examine(jobs: Supervisor, *, here: bool, max_age: float | None, wants_node: bool) -> tuple[str | None, int]:
    """What is wrong, if anything, and how many nodes count."""
    try:
        if problem := await behind(jobs.store):
            return f"the store cannot be used: {problem}", 0
        store = (await jobs.health()).store
        if not store.up:
            return store.detail, 0
        nodes = await in_time(_counted(jobs, here, max_age))
    finally:
        await jobs.stop()
    if wants_node and not nodes:
        where = f" on {socket.gethostname()}" if here else ""
        young = "" if max_age is None else f" with a sign of life in the last {max_age:g} s"
        return f"no live node{where}{young}", 0
    return None, len(nodes)


async def _counted(jobs: Supervisor, here: bool, max_age: float | None) -> Sequence[Node]:
    now, host = jobs.clock.now(), socket.gethostname()
    return [
        node
        for node in await jobs.nodes()
        if node.alive
        and (not here or node.host == host)
        and (max_age is None or (node.beat_at is not None and (now - node.beat_at).total_seconds() <= max_age))
    ]
