"""Enqueue inside your own transaction: the row and the job are committed together, or neither is.

    python examples/transactional.py

Without this, a crash between the two writes leaves a customer without a welcome mail, or mails somebody who was never
stored. Here both go to one SQLite file through one connection, so one commit decides for both.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from jobs_async import Job, SqliteStore, Supervisor, worker


@worker(max_attempts=5)
async def send_welcome(email: str) -> str:
    return f"welcome, {email}"


@asynccontextmanager
async def transaction(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    """A write transaction of the application's own: committed at the end, rolled back on an error."""
    async with aiosqlite.connect(path, isolation_level=None) as db:
        await db.execute("BEGIN IMMEDIATE")  # take the write lock now, not halfway through
        try:
            yield db
        except BaseException:
            await db.rollback()
            raise
        await db.commit()


async def sign_up(path: Path, email: str) -> Job[str]:
    """Store a customer, and enqueue the mail to welcome them."""
    async with transaction(path) as db:
        job = await send_welcome.options(connection=db).enqueue(email)
        await db.execute("INSERT INTO customers (email) VALUES (?)", (email,))
    return job


async def main(path: Path) -> None:
    async with transaction(path) as db:
        await db.execute("CREATE TABLE IF NOT EXISTS customers (email TEXT NOT NULL PRIMARY KEY)")

    # A commit of ours wakes nobody, so the Supervisor finds the job at its next poll.
    async with Supervisor(SqliteStore(path), workers=[send_welcome], poll_interval=0.1) as jobs:
        job = await sign_up(path, "ada@example.org")
        print(await jobs.result(job, timeout=10))

        try:
            await sign_up(path, "ada@example.org")
        except aiosqlite.IntegrityError:
            stored = await jobs.find()
            print(f"signed up already; {len(stored)} job was ever stored")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder, "app.db")))
