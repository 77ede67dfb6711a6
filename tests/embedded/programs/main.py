"""`asyncio.run(main())` with jobs in it.

python main.py FILE GRACE
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

from jobs_async import Supervisor


async def main(path: str, grace: str) -> None:
    jobs = Supervisor(f"sqlite:///{path}", shutdown_timeout=float(grace), poll_interval=0.05)

    @jobs.worker
    async def short() -> str:
        """Ends when it is let go."""
        print("short began", flush=True)
        while not Path(path).with_name("go").exists():
            await asyncio.sleep(0.005)
        return "done"

    async with jobs:
        print("ready", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("stopping", flush=True)
            asyncio.get_running_loop().call_later(0.1, partial(print, "in the middle of it", flush=True))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
