"""Starts a server, asks who it runs as, and ends it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg

from tests.cluster import PgCluster


async def answer(dsn: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("SELECT 41 + 1")
    finally:
        await connection.close()


with PgCluster.start() as cluster:
    assert asyncio.run(answer(cluster.create_database())) == 42
    assert cluster.folder.stat().st_uid == Path(f"/proc/{cluster.pid}").stat().st_uid == os.geteuid() != 0
assert not cluster.folder.exists()
print("served")
