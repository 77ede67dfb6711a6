"""Whether the schema of a store is up to date, and `jobs-async migrate`, which makes it so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import click

from jobs_async.cli import exits
from jobs_async.cli.output import say_json
from jobs_async.cli.target import supervisor_of, target_options
from jobs_async.core.schema import Migrates
from jobs_async.runtime.patience import STORE_SECONDS

if TYPE_CHECKING:
    from jobs_async.core.store import Store


def migrates(store: Store) -> Migrates | None:
    """What brings a store's schema up to date, also where somebody watches over the store; None: it has none."""
    inner: object = store
    while inner is not None:
        if isinstance(inner, Migrates):
            return inner
        inner = cast("object", getattr(inner, "inner", None))
    return None


async def behind(store: Store) -> str | None:
    """In what way a store's schema does not fit this version of the package; None where it does.

    Raises:
        StoreError, OSError: the store does not answer.
    """
    schema = migrates(store)
    if schema is None:
        return None
    async with asyncio.timeout(STORE_SECONDS):
        stored, newest = await schema.schema_version()
        if stored == newest or (stored > newest and await schema.fits()):
            return None
    if stored > newest:
        return f"its schema is {stored}, newer than {newest}, the newest known here: upgrade jobs-async"
    if stored == 0:
        return f"it has no schema yet, {newest} is the newest: run `jobs-async migrate`"
    return f"its schema is {stored}, {newest} is the newest: run `jobs-async migrate`"


@click.command()
@target_options
@click.option("--sql", is_flag=True, help="Print the script instead, and leave the store alone.")
@click.option("--since", default=0, metavar="N", type=click.IntRange(0), help="With --sql: what comes after schema N.")
@click.option("--check", is_flag=True, help="Only say whether there is something to do: exit code 0 or 5.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def migrate(
    app: str | None, url: str | None, *, app_dir: str, debug: bool, sql: bool, since: int, check: bool, as_json: bool
) -> None:
    """Bring the schema of a store up to date: of APP (module:supervisor), or of --store URL."""
    if sql and (check or as_json):
        raise click.UsageError("--sql prints a script, and goes with neither --check nor --json")
    schema = migrates(supervisor_of(app, url, app_dir=app_dir, debug=debug).store)
    if schema is None:
        _say([], None, as_json=as_json)
    elif sql:
        click.echo(schema.migration_sql(since), nl=False)
    elif check:
        _check(*exits.run(_versions(schema)), as_json=as_json)
    else:
        applied, versions = exits.run(_migrate(schema))
        _say(applied, versions, as_json=as_json)


async def _migrate(schema: Migrates) -> tuple[list[int], tuple[int, int]]:
    return await schema.migrate(), await schema.schema_version()


async def _versions(schema: Migrates) -> tuple[int, int, bool]:
    return *await schema.schema_version(), await schema.fits()


def _check(stored: int, newest: int, fits: bool, *, as_json: bool) -> None:
    if as_json:
        say_json({"stored": stored, "newest": newest, "applied": []})
    elif stored == newest:
        click.echo(f"up to date: schema {stored}")
    elif fits:
        click.echo(f"up to date: schema {stored}, newer than {newest}, and it fits")
    elif stored < newest:
        click.echo(f"behind: schema {stored}, {newest} is the newest")
    else:
        click.echo(f"too new: schema {stored}, {newest} is the newest known here")
    if not fits:
        raise click.exceptions.Exit(exits.STORE)


def _say(applied: list[int], versions: tuple[int, int] | None, *, as_json: bool) -> None:
    stored, newest = versions or (None, None)
    if as_json:
        say_json({"stored": stored, "newest": newest, "applied": applied})
    elif versions is None:
        click.echo("nothing to migrate: this store has no schema", err=True)
    elif applied:
        click.echo(f"applied {', '.join(map(str, applied))}: schema {stored}")
    else:
        click.echo(f"up to date: schema {stored}")
