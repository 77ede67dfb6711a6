"""`jobs-async`: one group, one module per command."""

from __future__ import annotations

import click

from jobs_async.cli.demo import demo
from jobs_async.core.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="jobs-async", message="%(prog)s %(version)s")
def main() -> None:
    """Background jobs for asyncio."""


main.add_command(demo)
