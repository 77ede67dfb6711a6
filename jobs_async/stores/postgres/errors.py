"""What PostgreSQL, or the way to it, refuses: as errors of ours that hold no value of a row and no address."""

from __future__ import annotations

import asyncio

import asyncpg

from jobs_async.core.errors import JobsError, SchemaError, StoreBusy, StoreError, StoreTimeout, WriteRefused

BEHIND = "run `jobs-async migrate`, or open the store with migrate=True"

_AGAIN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError)
_REFUSALS = (
    asyncpg.DataError,  # also what the driver itself refuses to send
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    TypeError,
    OverflowError,
)
"""What will be refused again however often it is asked."""
_MISSING = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError)
_UNREACHABLE = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,  # what was lost is used before the loop has heard of the loss
)


def is_passing(error: BaseException) -> bool:
    """Was a transaction in the way of another, so that the same may work when it is tried again?"""
    return isinstance(error, _AGAIN)


def may_repeat(error: BaseException) -> bool:
    """As `is_passing`, or a migration has outdated what was prepared, which the driver has forgotten by now?"""
    return is_passing(error) or isinstance(error, asyncpg.InvalidCachedStatementError)


def leaves_usable(error: BaseException) -> bool:
    """Did the server answer on a connection that is still good for the next call?

    Not where it refuses to write: a new connection may lead to another server, or find this one a primary.
    """
    if isinstance(error, asyncpg.PostgresError):
        return not isinstance(error, asyncpg.ReadOnlySQLTransactionError)
    return isinstance(error, JobsError)


def typed(error: Exception) -> Exception:
    """As the error that callers of a store know."""
    if isinstance(error, JobsError):
        return error
    return _typed(error).with_traceback(error.__traceback__)


def _typed(error: Exception) -> StoreError:
    name = type(error).__name__
    if isinstance(error, asyncpg.LockNotAvailableError):
        return StoreBusy("the rows are locked by somebody else's transaction; pass connection= or commit first")
    if isinstance(error, (asyncpg.QueryCanceledError, asyncio.TimeoutError)):
        return StoreTimeout("PostgreSQL did not answer in time")
    if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
        return StoreError("PostgreSQL refuses to write: this is a read-only standby, connect to the primary")
    if isinstance(error, _MISSING):
        return SchemaError(f"the tables of jobs_async are missing or old here ({name}): {BEHIND}")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return StoreError(f"PostgreSQL refuses: {_message(error)}")
    if isinstance(error, _REFUSALS):
        return WriteRefused(f"PostgreSQL refused: {name}")
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError):
        return StoreError(f"PostgreSQL refused: {name} ({_message(error)})")
    if isinstance(error, _UNREACHABLE):
        return StoreError(f"PostgreSQL is not reachable: {name}")
    return StoreError(f"PostgreSQL failed: {name}")


def _message(error: asyncpg.PostgresError) -> str:
    """The first line alone: what follows may quote a row."""
    return str(error.args[0]).partition("\n")[0] if error.args else ""


def refused_at_the_door(error: Exception) -> StoreError:
    """Why no connection could be made; without the address, which may hold a password."""
    if isinstance(error, asyncio.TimeoutError):
        return StoreTimeout("PostgreSQL did not accept a connection in time")
    if isinstance(error, asyncpg.PostgresError):
        return StoreError(f"PostgreSQL does not let us in: {_message(error)}")
    if isinstance(error, OSError) and error.strerror:
        return StoreError(f"PostgreSQL is not reachable: {type(error).__name__}: {error.strerror.partition(': ')[0]}")
    return StoreError(f"PostgreSQL is not reachable: {type(error).__name__}")
