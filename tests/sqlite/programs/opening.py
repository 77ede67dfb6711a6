"""Opens a file when told to, and says what became of it.

python opening.py FILE [USER]       waits for a line on stdin; USER is the id to work under
"""

from __future__ import annotations

import asyncio
import os
import sys

from jobs_async.core.errors import JobsError
from jobs_async.core.options import NewJob
from jobs_async.stores.sqlite import SqliteStore


async def main(path: str) -> None:
    try:
        async with SqliteStore(path) as store:
            await store.insert([NewJob("work", "{}")])
    except JobsError as error:
        print(type(error).__name__, error)
    else:
        print("stored")


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    if len(sys.argv) > 2:
        os.setuid(int(sys.argv[2]))
    asyncio.run(main(sys.argv[1]))
