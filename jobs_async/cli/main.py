"""`jobs-async`: one group, one module per command."""

from __future__ import annotations

import click

from jobs_async.cli.demo import demo
from jobs_async.cli.doctor import doctor
from jobs_async.cli.health import health
from jobs_async.cli.run import run
from jobs_async.cli.schema import migrate
from jobs_async.core.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="jobs-async", message="%(prog)s %(version)s")
def main() -> None:
    """Background jobs for asyncio."""


for command in (run, migrate, health, doctor, demo):
    main.add_command(command)
