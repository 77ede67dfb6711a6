"""Raw limits: the same work with nothing but the driver or the event loop."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import time
from pathlib import Path

import aiosqlite

SCHEMA = """
CREATE TABLE job (id INTEGER PRIMARY KEY AUTOINCREMENT, state INTEGER, queue TEXT, priority INTEGER, args TEXT,
    attempted_at REAL, completed_at REAL);
CREATE INDEX claimable ON job (queue, priority, id) WHERE state = 0;
"""
CLAIM = """
UPDATE job SET state = 1, attempted_at = ? WHERE id IN (
    SELECT id FROM job WHERE queue = 'default' AND state = 0 ORDER BY priority, id LIMIT ?) RETURNING id, args
"""
COMPLETE = "UPDATE job SET state = 2, completed_at = ? WHERE id IN (SELECT value FROM json_each(?)) AND state = 1"
INSERT = "INSERT INTO job (state, queue, priority, args) VALUES (0, 'default', 0, '{}')"


def task_group(jobs: int, concurrency: int) -> float:
    """asyncio.TaskGroup and a Semaphore around a no-op coroutine, a task a job."""

    async def main() -> float:
        slots = asyncio.Semaphore(concurrency)

        async def noop() -> None:
            slots.release()

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                await slots.acquire()
                group.create_task(noop())
        return jobs / (time.perf_counter() - began)

    return asyncio.run(main())


def sqlite_drain(jobs: int, batch: int) -> float:
    """Claim and complete in turn, each a durable transaction, with sqlite3 itself."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        db = sqlite3.connect(f"{folder}/raw.db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(SCHEMA)
        db.execute("BEGIN")
        for _ in range(jobs):
            db.execute(INSERT)
        db.execute("COMMIT")
        began = time.perf_counter()
        while rows := db.execute(CLAIM, (time.time(), batch)).fetchall():
            for _, args in rows:
                json.loads(args)
            db.execute(COMPLETE, (time.time(), json.dumps([row[0] for row in rows])))
        seconds = time.perf_counter() - began
        db.close()
        return jobs / seconds


def aiosqlite_enqueue(jobs: int) -> float:
    """One insert at a time, each durable, with aiosqlite itself."""

    async def main(path: str) -> float:
        async with aiosqlite.connect(path, isolation_level=None) as db:
            await db.execute("PRAGMA journal_mode = WAL")
            await db.execute("PRAGMA synchronous = FULL")
            await db.executescript(SCHEMA)
            began = time.perf_counter()
            for _ in range(jobs):
                async with db.execute(INSERT):
                    pass
            return jobs / (time.perf_counter() - began)

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return asyncio.run(main(f"{folder}/raw.db"))
