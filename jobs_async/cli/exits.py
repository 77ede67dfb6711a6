"""How a command ends: its exit codes, and one line on standard error where it could not do what was asked."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs_async.core.errors import JobsError, StoreError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

OK = 0
FAILED = 1
USAGE = 2
TROUBLE = 4
STORE = 5
"""The store cannot be reached, or its schema is behind."""
LEFT = 6
"""The grace ran out with jobs left for others to rescue."""
INTERRUPTED = 130


class Failure(click.ClickException):
    """Ends the command with one line, and an exit code."""

    exit_code = FAILED


class Misuse(Failure):
    """What was asked for cannot be."""

    exit_code = USAGE


class NoStore(Failure):
    """The store cannot be used."""

    exit_code = STORE


def failure_of(error: JobsError | OSError) -> Failure:
    """An error as the end of a command. Only our own texts are known to hold no secrets."""
    if isinstance(error, JobsError):
        return NoStore(str(error)) if isinstance(error, StoreError) else Failure(str(error))
    return NoStore(f"the store cannot be reached: {type(error).__name__}")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run what a command does, with its errors as exit codes.

    Raises:
        Failure: it raised an error of ours, or one of the operating system.
    """
    try:
        return asyncio.run(work)
    except (JobsError, OSError) as error:
        raise failure_of(error) from error
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
